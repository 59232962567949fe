"""``make demo`` however it is left: no process stays, the terminal is as before, the code fits.

The trainer is a stub, everything else is real: make, the script, the microscope, tmux where it is
installed (a fake one that understands the same words is tried everywhere).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.probe.folders import own

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TOOLS = (
    "make",
    "bash",
    "sh",
    "date",
    "dirname",
    "mkdir",
    "rmdir",
    "sleep",
    "stty",
    "tail",
    "touch",
    "env",
)
SHOWN = "outer collapse"
STOPPING = "stopping the trainer and writing a checkpoint"
TERMINALS = ["no tmux", "inside tmux", "fake tmux", "tmux"]

Play = Callable[..., tuple[list[str], int | None]]


class House:
    """A checkout in which everything is installed and the trainer is a stub."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("examples", ".venv/bin", "bin"):
            (folder / name).mkdir(parents=True)
        for name in ("Makefile", "pyproject.toml", "examples/demo.sh"):
            shutil.copy(ROOT / name, folder / name)
        shutil.copy(HERE / "stub_trainer.py", folder / "train.py")
        path = f"PYTHONPATH={ROOT}"
        self.write(".venv/bin/python", f'exec env {path} {sys.executable} "$@"')
        self.write(
            ".venv/bin/moe-microscope",
            f'exec env {path} {sys.executable} -m microscope_tui.cli "$@"',
        )
        (folder / ".venv/.train").touch()
        for tool in TOOLS:
            (folder / "bin" / tool).symlink_to(shutil.which(tool) or "missing")
        self.environment = {
            "PATH": str(folder / "bin"),
            "HOME": str(folder),
            "TMUX_TMPDIR": str(folder),
            "FAKE_TMUX": str(folder),
            "LANG": "C.UTF-8",
        }

    def write(self, name: str, line: str) -> None:
        program = self.folder / name
        program.unlink(missing_ok=True)  # never write through a link to the system's own program
        program.write_text(f"#!/bin/sh\n{line}\n")
        program.chmod(0o755)

    def furnish(self, terminal: str) -> None:
        """Have tmux or not, be inside or not."""
        if terminal == "inside tmux":
            self.environment["TMUX"] = "/tmp/tmux-0/default,1,0"
        if terminal == "fake tmux":
            self.write("bin/tmux", f'exec {sys.executable} {HERE / "fake_tmux.py"} "$@"')
        if terminal == "tmux":
            real = shutil.which("tmux")
            if real is None:
                pytest.skip("tmux is not installed")
            (self.folder / "bin" / "tmux").symlink_to(real)

    def command(self, **more: str) -> str:
        variables = " ".join(f"{k}='{v}'" for k, v in (self.environment | more).items())
        return f"cd '{self.folder}' && unset TMUX && export {variables} && make demo"

    def pids(self) -> list[int]:
        texts = [path.read_text() for path in self.folder.glob("stub-*.pid")]
        return [int(text) for text in texts if text]

    def ending(self) -> str:
        """The signal that the only trainer there was has stopped for."""
        [end] = self.folder.glob("stub-*.end")
        return end.read_text()

    def assert_no_orphan(self) -> None:
        """Nothing that has to do with this folder runs any more."""
        until = time.monotonic() + 10
        while left := self.processes():
            assert time.monotonic() < until, left
            time.sleep(0.05)

    def processes(self) -> list[str]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().replace(b"\0", b" ")
                inside = (process / "cwd").readlink() == self.folder
            except OSError:
                continue
            if inside and words and process.name != str(os.getpid()):
                found.append(f"{process.name} {words!r}")
        return found


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path / "a house")
    yield house
    for line in house.processes():  # of a test that failed
        with suppress(ProcessLookupError):
            os.kill(int(line.split()[0]), signal.SIGKILL)


@pytest.mark.parametrize("terminal", TERMINALS)
def test_q_stops_the_trainer_and_gives_the_terminal_back(
    terminal: str, house: House, play: Play
) -> None:
    house.furnish(terminal)
    screens, code = play(
        f"stty -g >'{house.folder}/before'; {house.command()}; code=$?; "
        f"stty -g >'{house.folder}/after'; exit $code",
        ("wait", SHOWN), ("see", ""), ("press", "q"), ("wait", STOPPING), ("wait", "generate text"),
        ("see", ""), ("end", ""), columns=120, rows=40,
    )  # fmt: skip
    assert code == 0
    assert house.ending() == "SIGTERM"
    if terminal == "tmux":
        assert "the trainer narrates" in screens[0], "its output is above the microscope"
    assert "watch it again:  .venv/bin/moe-microscope logs/demo-" in screens[1]
    before, after = ((house.folder / name).read_text() for name in ("before", "after"))
    assert before == after
    house.assert_no_orphan()


def test_the_printed_commands_probe_the_checkpoint_and_show_its_tokens(
    house: House, play: Play
) -> None:
    said, _ = play(
        house.command(), ("wait", SHOWN), ("press", "q"), ("wait", "see tokens (7):"),
        ("see", ""), ("end", ""), columns=200, rows=40,
    )  # fmt: skip
    [latest] = house.folder.glob("checkpoints/*/latest")
    run = latest.parent.name
    made = (
        f".venv/bin/moe-microscope probe checkpoints/{run} README.md train.py -o logs/{run}-probe"
    )
    opened = f".venv/bin/moe-microscope logs/{run}-probe"
    assert f"probe it (20 s): {made}" in said[0]
    assert f"see tokens (7):  {opened}" in said[0]
    latest.rmdir()  # of the stub
    own(latest)
    (house.folder / "README.md").write_text("Here `prose` is read.\n" * 20)
    (house.folder / "train.py").write_text("def read(self): return 0\n" * 20)
    screens, code = play(
        f"cd '{house.folder}' && {made} && {opened}",
        ("wait", "7 tokens"), ("press", "7"), ("wait", "Here prose is read."),
        ("see", ""), ("press", "q"), ("end", ""),
    )  # fmt: skip
    assert code == 0
    assert "slice README" in screens[0]


@pytest.mark.parametrize("terminal", TERMINALS)
def test_a_terminal_that_is_closed_takes_everything_with_it(
    terminal: str, house: House, play: Play
) -> None:
    house.furnish(terminal)
    play(house.command(), ("wait", SHOWN), ("hang up", ""), ("end", ""))
    house.assert_no_orphan()
    assert house.ending() in ("SIGHUP", "SIGTERM"), "either way there is a checkpoint"


def test_ctrl_c_while_the_trainer_starts_ends_both(house: House, play: Play) -> None:
    _, code = play(
        house.command(STUB="slow"),
        ("wait", "at step 60"), ("press", "\x03"), ("end", ""),
    )  # fmt: skip
    assert code in (-signal.SIGINT, 130)
    house.assert_no_orphan()


def test_a_second_ctrl_c_does_not_wait_for_the_checkpoint(house: House, play: Play) -> None:
    _, code = play(
        house.command(STUB="deaf"),
        ("wait", SHOWN), ("press", "q"), ("wait", STOPPING), ("press", "\x03"), ("end", ""),
    )  # fmt: skip
    assert code is not None
    house.assert_no_orphan()


@pytest.mark.parametrize("terminal", TERMINALS)
def test_a_trainer_that_cannot_start_is_reported(terminal: str, house: House, play: Play) -> None:
    house.furnish(terminal)
    _, code = play(
        house.command(STUB="fails"),
        ("wait", "the trainer failed with exit code 1"), ("wait", "train.py: the disk is full"),
        ("wait", "Error 1"), ("end", ""),
    )  # fmt: skip
    assert code == 2, "what make ends with, whatever the recipe did"
    assert not any(path.is_dir() for path in (house.folder / "logs").iterdir())
    house.assert_no_orphan()


def test_a_trainer_that_dies_while_it_is_watched_is_reported_at_the_end(
    house: House, play: Play
) -> None:
    _, code = play(
        house.command(STUB="dies"),
        ("wait", SHOWN), ("press", "q"), ("wait", "the trainer failed with exit code 1"),
        ("wait", "the trainer narrates"), ("end", ""),
    )  # fmt: skip
    assert code == 2
    house.assert_no_orphan()


def test_tmux_that_cannot_open_gives_way_to_the_microscope_alone(house: House, play: Play) -> None:
    house.furnish("fake tmux")
    _, code = play(
        house.command(STUB_TMUX="fails"),
        ("wait", "open terminal failed"), ("wait", SHOWN), ("press", "q"), ("end", ""),
    )  # fmt: skip
    assert code == 0
    assert house.ending() == "SIGTERM"
    house.assert_no_orphan()


def test_two_demos_of_one_second_take_two_names(house: House, play: Play) -> None:
    house.write("bin/date", "echo 2026-01-01-000000")
    with running(house, STUB="slow") as beside:
        _, code = play(house.command(), ("wait", SHOWN), ("press", "q"), ("end", ""))
        assert code == 0
        assert beside.poll() is None, "what stops one demo leaves the other alone"
        beside.send_signal(signal.SIGTERM)
        beside.communicate(timeout=60)
    runs = {path.stem for path in house.folder.glob("stub-*.pid")}
    assert runs == {"stub-demo-2026-01-01-000000", "stub-demo-2026-01-01-000000-2"}
    house.assert_no_orphan()


@contextmanager
def running(house: House, **more: str) -> Iterator[subprocess.Popen[str]]:
    """The script without a terminal, in a process group of its own, once its trainer is there."""
    with subprocess.Popen(
        ["bash", "examples/demo.sh"],
        cwd=house.folder, env=house.environment | more, text=True, process_group=0,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as script:  # fmt: skip
        until = time.monotonic() + 20
        while not house.pids():
            assert time.monotonic() < until
            time.sleep(0.05)
        yield script


def run_without_terminal(house: House, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", house.command(**more)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_without_a_terminal_it_trains_until_the_verdict_and_prints_it(house: House) -> None:
    done = run_without_terminal(house)
    assert done.returncode == 0, done.stderr
    assert "CRITICAL" in done.stdout
    assert SHOWN in done.stdout
    [called] = house.folder.glob("stub-*.json")
    words = json.loads(called.read_text())
    assert words[words.index("--steps") + 1] == "150"
    assert words[words.index("--force-collapse") + 1] == "3@60"
    house.assert_no_orphan()


def test_what_is_installed_is_announced_and_pip_shows_its_progress(house: House) -> None:
    (house.folder / ".venv/.train").unlink()
    house.write(".venv/bin/pip", 'echo "pip $*"')
    done = run_without_terminal(house)
    assert done.returncode == 0, done.stderr
    assert done.stdout.index("about 5.6 GB") < done.stdout.index("pip install -e .[train]")
    assert "--quiet" not in done.stdout


def test_without_a_terminal_the_code_of_a_trainer_that_failed_is_kept(house: House) -> None:
    done = run_without_terminal(house, STUB="fails")
    assert done.returncode == 2
    assert "the disk is full" in done.stderr
    assert "Error 1" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_without_a_terminal_a_signal_stops_the_trainer_first(
    number: signal.Signals, house: House
) -> None:
    """As CI ends a job: the whole process group."""
    with running(house, STUB="slow") as script:
        os.killpg(script.pid, number)
        _, said = script.communicate(timeout=60)
    assert script.returncode == 128 + number, said
    house.assert_no_orphan()
