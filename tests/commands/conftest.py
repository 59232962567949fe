"""The commands as programs of their own: started, fed, and looked at from outside."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PLAYER = Path(__file__).with_name("play_in_terminal.py")


@pytest.fixture
def microscope() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the program without a terminal; ``given`` is its standard input."""

    def run(*arguments: object, given: bytes = b"") -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "microscope_tui.cli", *map(str, arguments)],
            capture_output=True,
            input=given,
            env=os.environ | {"PYTHONUTF8": "1"},
            timeout=60,
        )
        out, err = done.stdout.decode(), done.stderr.decode()
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    return run


@pytest.fixture
def play() -> Callable[..., tuple[list[str], int | None]]:
    """Run a shell command in a terminal of its own and act there; see ``play_in_terminal.py``.

    Returns the screen after each ``see``, and the exit code.
    """

    def run(
        command: str, *acts: tuple[str, str], columns: int = 100, rows: int = 30
    ) -> tuple[list[str], int | None]:
        order = {"command": command, "acts": acts, "columns": columns, "rows": rows}
        done = subprocess.run(
            [sys.executable, PLAYER],
            input=json.dumps(order),
            capture_output=True,
            text=True,
            env=os.environ | {"MICROSCOPE": f"{sys.executable} -m microscope_tui.cli"},
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        return told["screens"], told["exit_code"]

    return run
