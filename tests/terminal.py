"""A program under a pseudo-terminal, for tests: what it shows, what it sends, how it ends."""

import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
from collections.abc import Sequence
from contextlib import suppress

import pyte

ESCAPED = ("NO_COLOR", "COLUMNS", "LINES", "TEXTUAL_COLOR_SYSTEM")


class Terminal:
    def __init__(self, command: Sequence[str], columns: int, rows: int, **environment: str) -> None:
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self.output = b""
        self._code: int | None = None
        self.pid, self._file = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, a shell does not
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            plain = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "PYTHONUTF8": "1"}
            kept = {name: value for name, value in os.environ.items() if name not in ESCAPED}
            # execvpe: readline sets COLUMNS and LINES behind the back of os.environ.
            os.execvpe(command[0], list(command), kept | plain | environment)

    @property
    def text(self) -> str:
        return "\n".join(self.screen.display)

    def read(self, seconds: float) -> bytes:
        end, got = time.monotonic() + seconds, b""
        while (left := end - time.monotonic()) > 0:
            if not select.select([self._file], [], [], left)[0]:
                break
            try:
                data = os.read(self._file, 65536)
            except OSError:
                break
            if not data:
                time.sleep(min(left, 0.02))
                break
            got += data
            self._stream.feed(data.replace(b"\x1b[?2026$p", b"").replace(b"\x1b[?2048$p", b""))
        self.output += got
        return got

    def wait_for(self, *texts: str) -> None:
        for text in texts:
            end = time.monotonic() + 20.0
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
        end = time.monotonic() + seconds
        while self._code is None and time.monotonic() < end:
            self.read(0.05)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        assert self._code is not None, f"still running:\n{self.text}"
        return self._code

    def hang_up(self) -> None:
        os.close(self._file)
        self._file = os.open(os.devnull, os.O_RDWR)

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if self._code is None:
            os.waitpid(self.pid, 0)
        os.close(self._file)
