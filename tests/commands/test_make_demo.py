"""``make demo`` however it is left: no process stays, the terminal is as before, the code fits.

The trainer is a stub, everything else is real: make, the script, the microscope, and tmux where it
is installed.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.scenarios import Shape, lines
from moe_model.training import RUN_DEFAULTS
from tests.forked import ForkServer
from tests.probe.folders import own
from tests.probe.replay import collapsing, open_recorder, replay

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TOOLS = [
    *("make", "bash", "sh", "date", "dirname", "mkdir", "rm", "rmdir"),
    *("sleep", "stty", "tail", "touch", "env"),
]
SHOWN = "outer collapse"
STOPPING = "stopping the trainer and writing a checkpoint"

Shell = Callable[..., Any]


@pytest.fixture(scope="module")
def log() -> bytes:
    """A collapse that has not ended."""
    _, records = lines("collapse", Shape(steps=400), 0)
    return b"".join(list(records)[:-1])


class House:
    """A checkout in which everything is installed and the trainer is a stub."""

    def __init__(self, folder: Path, log: bytes) -> None:
        self.folder = folder
        for name in ("examples", ".venv/bin", "bin"):
            (folder / name).mkdir(parents=True)
        for name in ("Makefile", "pyproject.toml", "examples/demo.sh"):
            shutil.copy(ROOT / name, folder / name)
        shutil.copy(HERE / "stub_trainer.py", folder / "train.py")
        (folder / "stub-log.jsonl").write_bytes(log)
        python = f"exec env PYTHONPATH={ROOT} {sys.executable}"
        self.write(".venv/bin/python", f'{python} "$@"')
        self.write(".venv/bin/moe-microscope", f'{python} -m microscope_tui.cli "$@"')
        (folder / ".venv/.train").touch()
        for tool in TOOLS:
            (folder / "bin" / tool).symlink_to(shutil.which(tool) or "missing")
        self.environment = {
            "PATH": str(folder / "bin"),
            "HOME": str(folder),
            "TMUX_TMPDIR": str(folder),
            "LANG": "C.UTF-8",
        }

    def write(self, name: str, line: str) -> None:
        program = self.folder / name
        program.unlink(missing_ok=True)  # never write through a link to the system's own program
        program.write_text(f"#!/bin/sh\n{line}\n")
        program.chmod(0o755)

    def install_tmux(self) -> None:
        real = shutil.which("tmux")
        if real is None:
            pytest.skip("tmux is not installed")
        (self.folder / "bin" / "tmux").symlink_to(real)

    def command(self, **more: str) -> str:
        variables = " ".join(f"{k}='{v}'" for k, v in (self.environment | more).items())
        return f"cd '{self.folder}' && unset TMUX && export {variables} && make demo"

    def run_without_terminal(self, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", self.command(**more)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    def ending(self) -> str:
        """The signal that the only trainer there was has stopped for."""
        [end] = self.folder.glob("stub-*.end")
        return end.read_text()

    def assert_no_orphan(self) -> None:
        """Nothing that has to do with this folder runs any more."""
        until = time.monotonic() + 10
        while left := self.processes():
            assert time.monotonic() < until, left
            time.sleep(0.02)

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
def house(tmp_path: Path, log: bytes) -> Iterator[House]:
    house = House(tmp_path / "a house", log)
    yield house
    for line in house.processes():  # of a test that failed
        with suppress(ProcessLookupError):
            os.kill(int(line.split()[0]), signal.SIGKILL)


@pytest.mark.parametrize("terminal", ["inside tmux", "outside tmux"])
def test_q_stops_the_trainer_and_gives_the_terminal_back(
    terminal: str, house: House, shell: Shell
) -> None:
    if terminal == "outside tmux":
        house.install_tmux()
    else:
        house.environment["TMUX"] = "/tmp/tmux-0/default,1,0"
        house.write("bin/tmux", "touch called")
    screen = shell(
        f"stty -g >'{house.folder}/before'; {house.command()}; code=$?; "
        f"stty -g >'{house.folder}/after'; exit $code",
        columns=120, rows=40,
    )  # fmt: skip
    screen.wait_for(SHOWN)
    if terminal == "outside tmux":
        assert "the trainer narrates" in screen.text, "its output is above the microscope"
    screen.press("q")
    assert screen.exit_code() == 0
    assert STOPPING in screen.text
    assert "watch it again:  .venv/bin/moe-microscope logs/demo-" in screen.text
    assert house.ending() == "SIGTERM"
    assert not (house.folder / "called").exists(), "no session within a session"
    before, after = ((house.folder / name).read_text() for name in ("before", "after"))
    assert before == after
    house.assert_no_orphan()


@pytest.mark.parametrize("tmux", [False, True], ids=["no tmux", "tmux"])
def test_a_terminal_that_is_closed_takes_everything_with_it(
    tmux: bool, house: House, shell: Shell
) -> None:
    if tmux:
        house.install_tmux()
    screen = shell(house.command())
    screen.wait_for(SHOWN)
    screen.hang_up()
    screen.exit_code()
    house.assert_no_orphan()
    assert house.ending() in ("SIGHUP", "SIGTERM"), "either way there is a checkpoint"


def test_tmux_that_cannot_open_gives_way_to_the_microscope_alone(
    house: House, shell: Shell
) -> None:
    house.write("bin/tmux", "echo open terminal failed >&2; exit 1")
    screen = shell(house.command())
    screen.wait_for("showing only the microscope")
    screen.wait_for(SHOWN)
    screen.press("q")
    assert screen.exit_code() == 0
    assert house.ending() == "SIGTERM"
    house.assert_no_orphan()


def test_a_second_ctrl_c_does_not_wait_for_the_checkpoint(house: House, shell: Shell) -> None:
    screen = shell(house.command(STUB="deaf"))
    screen.wait_for(SHOWN)
    screen.press("q")
    screen.wait_for(STOPPING)
    screen.press("\x03")
    screen.exit_code()
    house.assert_no_orphan()


def test_ctrl_c_before_the_first_step_leaves_one_line_and_nothing_else(
    house: House, shell: Shell
) -> None:
    screen = shell(house.command(STUB="slow"))
    screen.wait_for("the verdict appears by step")
    screen.press("\x03")
    assert screen.exit_code() in (2, -signal.SIGINT), "what make and sh end with"
    assert "demo: stopped before the first step; nothing was written" in screen.text
    assert STOPPING not in screen.text
    assert "Traceback" not in screen.text
    assert not list((house.folder / "logs").iterdir())
    house.assert_no_orphan()


@pytest.mark.parametrize("tmux", [False, True], ids=["no tmux", "tmux"])
def test_ctrl_c_while_the_microscope_starts_ends_the_demo_too(
    tmux: bool, house: House, shell: Shell
) -> None:
    if tmux:
        house.install_tmux()
    house.write(".venv/bin/moe-microscope", "echo it imports; sleep 60")
    screen = shell(house.command())
    screen.wait_for("it imports")
    screen.press("\x03")
    screen.exit_code()
    assert STOPPING in screen.text
    house.assert_no_orphan()


def test_ctrl_c_while_the_command_line_is_imported_prints_no_traceback() -> None:
    code = (
        "import sys\n"
        "def find_spec(name, *_):\n"
        "    if name == 'microscope_tui.report': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, type('Key', (), {'find_spec': staticmethod(find_spec)}))\n"
        "import microscope_tui.cli as cli; cli.main(['explain'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize("uneven", [0, 25])
def test_the_demo_names_the_step_by_which_its_verdict_appears(tmp_path: Path, uneven: int) -> None:
    """A layer that was uneven shortly before its collapse takes longest."""
    script = (ROOT / "examples/demo.sh").read_text("utf-8")
    at, latest = map(int, re.findall(r"(?:at|appears by) step (\d+)", script))
    assert f"collapse=(--force-collapse 3@{at})" in script
    steps = [*collapsing(1, uneven, at=1), *collapsing(uneven + 1, 150, at=at)]
    recorder = open_recorder(tmp_path, planned_steps=RUN_DEFAULTS["tiny"]["steps"])
    (alert,) = [alert for alert in replay(recorder, steps) if alert.severity == "crit"]
    assert alert.onset == at
    assert alert.step == latest if uneven else alert.step < latest
    readme = (ROOT / "README.md").read_text("utf-8")
    assert f"collapses L3 at step {at}; the verdict appears by step {latest}" in readme


@pytest.mark.parametrize(
    ("stub", "reported"),
    [("fails", ("the disk is full", "Error 1")), ("dies", ("the trainer narrates",))],
)
def test_a_trainer_that_fails_before_or_while_it_is_watched_is_reported(
    house: House, shell: Shell, stub: str, reported: tuple[str, ...]
) -> None:
    screen = shell(house.command(STUB=stub))
    if stub == "dies":
        screen.wait_for(SHOWN)
        screen.press("q")
    assert screen.exit_code() == 2, "what make ends with, whatever the recipe did"
    for words in ("the trainer failed with exit code 1", *reported):
        assert words in screen.text
    folders = [path for path in (house.folder / "logs").iterdir() if path.is_dir()]
    assert bool(folders) == (stub == "dies"), "a run that never began leaves no folder"
    house.assert_no_orphan()


def test_without_a_terminal_it_trains_until_the_verdict_and_prints_what_to_do_next(
    house: House,
    fork_server: ForkServer,
    microscope: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = house.run_without_terminal()
    assert done.returncode == 0, done.stderr
    assert "CRITICAL" in done.stdout
    assert SHOWN in done.stdout
    [called] = house.folder.glob("stub-*.json")
    words = json.loads(called.read_text())
    assert words[words.index("--steps") + 1] == "150"
    assert words[words.index("--force-collapse") + 1] == "3@60"
    house.assert_no_orphan()
    [latest] = house.folder.glob("checkpoints/*/latest")
    run = latest.parent.name
    made = f"probe checkpoints/{run} README.md train.py -o logs/{run}-probe"
    assert f"probe it (20 s): .venv/bin/moe-microscope {made}" in done.stderr
    assert f"see tokens (7):  .venv/bin/moe-microscope logs/{run}-probe" in done.stderr
    latest.rmdir()  # of the stub
    own(latest, collapsed=3)
    (house.folder / "README.md").write_text("Here `prose` is read.\n" * 20)
    monkeypatch.chdir(house.folder)
    probe = fork_server.start("-m", "microscope_tui.cli", *made.split())
    assert probe.wait() == 0, probe.communicate()
    shown = microscope("snapshot", f"logs/{run}-probe", "--screen", "tokens")
    assert "Here prose is read." in shown.stdout
    assert "slice README" in shown.stdout
    checked = microscope("check", f"logs/{run}-probe")
    assert "Router collapse in L3 in" in checked.stdout, "what the demo showed"
    assert "experts 0, 1 take 100%" in checked.stdout


def test_without_a_terminal_the_installation_is_announced_and_the_code_of_the_trainer_kept(
    house: House,
) -> None:
    (house.folder / ".venv/.train").unlink()
    house.write(".venv/bin/pip", 'echo "pip $*"')
    done = house.run_without_terminal(STUB="fails")
    assert done.stdout.index("about 5.6 GB") < done.stdout.index("pip install -e .[train]")
    assert "--quiet" not in done.stdout
    assert done.returncode == 2
    assert "the disk is full" in done.stderr
    assert "Error 1" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_without_a_terminal_a_signal_stops_the_trainer_first(
    number: signal.Signals, house: House
) -> None:
    """As CI ends a job: the whole process group, which the script leads."""
    with subprocess.Popen(
        ["bash", "examples/demo.sh"],
        cwd=house.folder, env=house.environment | {"STUB": "slow"}, text=True, process_group=0,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as script:  # fmt: skip
        until = time.monotonic() + 20
        while not any(path.read_text() for path in house.folder.glob("stub-*.pid")):
            assert time.monotonic() < until
            time.sleep(0.02)
        os.killpg(script.pid, number)
        _, errors = script.communicate(timeout=60)
    assert script.returncode == 128 + number, errors
    assert errors.endswith("demo: stopped before the first step; nothing was written\n")
    house.assert_no_orphan()
