"""``make demo`` however it is left: no process stays, the terminal is as before, the code fits.

The trainer is a stub, all else is real: make, the script, the microscope, and tmux where there is.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.scenarios import Shape, lines
from moe_model.training.options import RUN_DEFAULTS
from tests.forked import ROOT
from tests.probe.replay import collapsing, open_recorder, replay

HERE = Path(__file__).parent
SHOWN = "outer collapse"
STOPPING = "stopping the trainer and writing a checkpoint"


class House:
    """A checkout in which the trainer is a stub, and tmux cannot open a session."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("examples", ".venv/bin", "bin"):
            (folder / name).mkdir(parents=True)
        for name in ("Makefile", "pyproject.toml", "examples/demo.sh"):
            shutil.copy(ROOT / name, folder / name)
        shutil.copy(HERE / "stub_trainer.py", folder / "train.py")
        _, collapse = lines("collapse", Shape(steps=400), 0)
        (folder / "stub-log.jsonl").write_bytes(b"".join(list(collapse)[:-1]))  # it goes on
        python = f"exec env PYTHONPATH={ROOT} {sys.executable}"
        self.write(".venv/bin/python", f'{python} "$@"')
        self.write(".venv/bin/moe-microscope", f'{python} -m microscope_tui.cli "$@"')
        (folder / ".venv/.train").touch()
        self.write("bin/tmux", "echo open terminal failed >&2; exit 1")

    def write(self, name: str, line: str) -> None:
        (self.folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (self.folder / name).chmod(0o755)

    def command(self, **more: str) -> str:
        own = {"PATH": f"{self.folder}/bin:{os.environ['PATH']}", "LANG": "C.UTF-8", **more}
        own |= dict.fromkeys(("HOME", "TMUX_TMPDIR"), str(self.folder))
        variables = " ".join(f"{name}='{value}'" for name, value in own.items())
        return f"cd '{self.folder}' && unset TMUX && export {variables} && make demo"

    def written(self, ending: str) -> str:
        """What the only trainer there was has written to ``stub-RUN.ENDING``."""
        [file] = self.folder.glob(f"stub-*.{ending}")
        return file.read_text()

    def processes(self) -> list[int]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                inside = (process / "cwd").readlink() == self.folder
                if inside and (process / "cmdline").read_bytes():
                    found.append(int(process.name))
        return found


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path / "a house")
    yield house
    until = time.monotonic() + 10
    while (left := house.processes()) and time.monotonic() < until:
        time.sleep(0.02)
    for process in left:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    assert not left, "however it is left, nothing stays"


@pytest.mark.parametrize("tmux", [bool(shutil.which("tmux")), False])
def test_q_stops_the_trainer_and_returns_the_terminal(tmux: bool, house: House, shell: Any) -> None:
    if tmux:
        (house.folder / "bin/tmux").unlink()
    modes = [house.folder / name for name in ("before", "after")]
    screen = shell(
        f"stty -g >'{modes[0]}'; {house.command()}; code=$?; stty -g >'{modes[1]}'; exit $code",
        columns=120, rows=40,
    )  # fmt: skip
    screen.wait_for("the trainer narrates" if tmux else "showing only the microscope", SHOWN)
    screen.press("q")
    assert screen.exit_code() == 0
    assert STOPPING in screen.text
    assert "watch it again:  .venv/bin/moe-microscope logs/demo-" in screen.text
    assert " --resume auto" in screen.text
    assert house.written("end") == "SIGTERM"
    assert modes[0].read_text() == modes[1].read_text()


def test_a_terminal_that_is_closed_takes_everything_with_it(house: House, shell: Any) -> None:
    screen = shell(house.command())
    screen.wait_for(SHOWN)
    screen.hang_up()
    screen.exit_code()
    assert house.written("end") in ("SIGHUP", "SIGTERM"), "either way there is a checkpoint"


def test_ctrl_c_before_the_first_step_leaves_a_line_and_no_folder(house: House, shell: Any) -> None:
    screen = shell(house.command(STUB="slow"))
    screen.wait_for("the verdict appears by step")
    screen.press("\x03")
    assert screen.exit_code() in (2, -signal.SIGINT), "what make and sh end with"
    assert "demo: stopped before the first step; nothing was written" in screen.text
    assert STOPPING not in screen.text
    assert "Traceback" not in screen.text
    assert not list((house.folder / "logs").iterdir())


def test_a_trainer_that_fails_is_reported_and_leaves_no_folder(house: House, shell: Any) -> None:
    screen = shell(house.command(STUB="fails"))
    assert screen.exit_code() == 2, "what make ends with, whatever the recipe did"
    assert "the trainer failed with exit code 1" in screen.text
    assert "the disk is full" in screen.text
    assert not [path for path in (house.folder / "logs").iterdir() if path.is_dir()]


def test_without_a_terminal_it_trains_until_the_verdict_and_says_what_is_next(house: House) -> None:
    words = ["sh", "-c", house.command()]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "CRITICAL" in done.stdout
    assert SHOWN in done.stdout
    assert '"--steps", "150"' in house.written("json")
    assert "probe it (20 s): .venv/bin/moe-microscope probe checkpoints/demo-" in done.stderr


def test_ctrl_c_while_the_command_line_is_imported_prints_no_traceback() -> None:
    code = (
        "import sys\n"
        "def find_spec(name, *_):\n"
        "    if name == 'microscope_tui.commands.explain': raise KeyboardInterrupt\n"
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
