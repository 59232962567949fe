"""The commands as programs of their own: started, fed, and looked at from outside."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import IO

import pytest

PLAYER = Path(__file__).with_name("play_in_terminal.py")


class Following:
    """``check --follow`` beside us: what it said so far, and how it ended."""

    def __init__(self, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "microscope_tui.cli", "check", *map(str, arguments), "--follow"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONUTF8": "1"},
        )
        self.out, self.err = [], []
        pairs = ((self.process.stdout, self.out), (self.process.stderr, self.err))
        self._readers = [Thread(target=self._read, args=pair, daemon=True) for pair in pairs]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream: IO[bytes], lines: list[str]) -> None:
        lines.extend(iter(lambda: stream.readline().decode(), ""))

    def wait_for(self, text: str, within_s: float = 30.0) -> None:
        """Until it has said ``text``, on either stream."""
        until = time.monotonic() + within_s
        while not any(text in line for line in [*self.out, *self.err]):
            assert time.monotonic() < until, (text, self.out, self.err)
            assert self.process.poll() is None or any(r.is_alive() for r in self._readers)
            time.sleep(0.02)

    def end(self) -> tuple[int, str, str]:
        """Wait for its end: exit code, standard output, standard error."""
        code = self.process.wait(60)
        for reader in self._readers:
            reader.join(10)
        return code, "".join(self.out), "".join(self.err)


@pytest.fixture
def follow() -> Iterator[Callable[..., Following]]:
    """Start ``check --follow`` with more arguments; ended with the test at the latest."""
    started: list[Following] = []

    def start(*arguments: object) -> Following:
        started.append(Following(*arguments))
        return started[-1]

    yield start
    for following in started:
        following.process.kill()
        following.end()
        for stream in (following.process.stdout, following.process.stderr):
            if stream is not None:
                stream.close()


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
