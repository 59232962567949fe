"""A terminal in memory, and a pilot for the screens."""

import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pyte
import pytest
from textual.pilot import Pilot

from microscope_tui.app import Rows, Tiles
from tests.app import sitting


class Terminal:
    """A program under a real pseudo-terminal, its screen kept by pyte."""

    def __init__(self, arguments: list[str], columns: int, rows: int, **environment: str) -> None:
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self.output = b""
        self.pid, self._file = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            plain = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "PYTHONUTF8": "1"}
            unwanted = ("NO_COLOR", "COLUMNS", "LINES", "TEXTUAL_COLOR_SYSTEM")
            kept = {key: value for key, value in os.environ.items() if key not in unwanted}
            command = [sys.executable, "-m", "microscope_tui.cli", *arguments]
            # execve: readline sets COLUMNS and LINES behind the back of os.environ.
            os.execve(sys.executable, command, kept | plain | environment)
        self._code: int | None = None

    @property
    def text(self) -> str:
        return "\n".join(self.screen.display)

    def read(self, seconds: float) -> bytes:
        """Whatever the program writes in the next ``seconds``."""
        end, got = time.monotonic() + seconds, b""
        while (left := end - time.monotonic()) > 0:
            if not select.select([self._file], [], [], left)[0]:
                break
            try:
                data = os.read(self._file, 65536)
            except OSError:
                break
            if not data:
                break
            got += data
            self._stream.feed(data.replace(b"\x1b[?2026$p", b"").replace(b"\x1b[?2048$p", b""))
        self.output += got
        return got

    def wait_for(self, text: str, seconds: float = 20.0) -> None:
        """Read until ``text`` stands on the screen."""
        end = time.monotonic() + seconds
        while text not in self.text and time.monotonic() < end:
            self.read(0.05)
        assert text in self.text, self.text

    def settle(self, seconds: float = 0.6) -> None:
        """Read until nothing has come for longer than the interval of the screen."""
        while self.read(seconds):
            pass

    def press(self, keys: str) -> None:
        os.write(self._file, keys.encode())

    def kill(self, signal_: int) -> None:
        os.kill(self.pid, signal_)

    def exit_code(self, seconds: float = 30.0) -> int:
        """Wait for the end of the program."""
        end = time.monotonic() + seconds
        while self._code is None and time.monotonic() < end:
            self.read(0.05)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        assert self._code is not None, "still running"
        return self._code

    def close(self) -> None:
        if self._code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._file)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(
        *arguments: object, columns: int = 100, rows: int = 30, **environment: str
    ) -> Terminal:
        opened.append(Terminal([str(a) for a in arguments], columns, rows, **environment))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


@pytest.fixture
def collapsed(scenario: Any) -> Path:
    """A finished run of 5 routers whose L4 collapses at step 150."""
    return scenario("collapse", routers=5, steps=450)  # type: ignore[no-any-return]


@pytest.fixture
def until() -> Callable[..., Awaitable[None]]:
    """``await until(pilot, condition, what)``: let the app run until the condition holds."""

    return sitting.until


@pytest.fixture
def seen() -> Callable[[Pilot[None], str], str]:
    """``seen(pilot, selector)``: the text of the rows there on the present screen, or nothing."""

    def text(pilot: Pilot[None], selector: str) -> str:
        found = pilot.app.screen.query(selector)
        if not found:
            return ""
        parts = found.first().query(Rows) if isinstance(found.first(), Tiles) else found
        columns = [[s.text for s in part._strips] for part in parts]  # type: ignore[attr-defined]
        return "\n".join("".join(row) for row in zip(*columns, strict=True))

    return text
