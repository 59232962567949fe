"""Runs a shell command in a pseudo-terminal and plays a user: a program, so that no test forks.

Standard input: ``{"command", "acts", "columns", "rows"}``; an act is ``["wait", TEXT]`` until it
stands on the screen, ``["gone", TEXT]`` until it does not, ``["press", KEYS]``, ``["see", ""]`` to
remember the screen, ``["hang up", ""]`` to close the terminal, or ``["end", ""]`` to wait for the
end of the command.
Standard output: ``{"screens": [...], "exit_code": N}``.
"""

import fcntl
import json
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from contextlib import suppress

import pyte

PATIENCE_S = 20.0


class Screen:
    """What the command shows."""

    def __init__(self, command: str, columns: int, rows: int) -> None:
        self.exit_code: int | None = None
        self._closed = False
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self.pid, self._file = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, a shell does not
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            dropped = ("NO_COLOR", "COLUMNS", "LINES", "TEXTUAL_COLOR_SYSTEM")
            kept = {name: value for name, value in os.environ.items() if name not in dropped}
            kept |= {"TERM": "xterm-256color", "COLORTERM": "truecolor", "PYTHONUTF8": "1"}
            os.execve("/bin/sh", ["sh", "-c", command], kept)

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self._screen.display)

    def read(self) -> None:
        """Take in what has come, or wait a little for it."""
        if self._closed:
            time.sleep(0.05)
            return
        if not select.select([self._file], [], [], 0.05)[0]:
            return
        with suppress(OSError):
            data = os.read(self._file, 65536)
            self._stream.feed(data.replace(b"\x1b[?2026$p", b"").replace(b"\x1b[?2048$p", b""))

    def press(self, keys: str) -> None:
        os.write(self._file, keys.encode())

    def hang_up(self) -> None:
        os.close(self._file)
        self._closed = True

    def ended(self) -> bool:
        if self.exit_code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.exit_code = os.waitstatus_to_exitcode(status)
        return self.exit_code is not None


def main() -> None:
    order = json.load(sys.stdin)
    screen = Screen(order["command"], order["columns"], order["rows"])
    screens = []
    for act, text in order["acts"]:
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            if (
                act in ("press", "see", "hang up")
                or (act == "wait" and text in screen.text)
                or (act == "gone" and text not in screen.text)
                or (act == "end" and screen.ended())
            ):
                break
            screen.read()
        else:
            sys.exit(f"{act} {text!r} never came about; the screen:\n{screen.text}")
        if act == "press":
            screen.press(text)
        elif act == "hang up":
            screen.hang_up()
        elif act == "see":
            screens.append(screen.text)
    if not screen.ended():
        with suppress(ProcessLookupError):
            os.killpg(screen.pid, 9)
    json.dump({"screens": screens, "exit_code": screen.exit_code}, sys.stdout)


if __name__ == "__main__":
    main()
