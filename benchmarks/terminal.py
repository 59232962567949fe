"""A program in a real pseudo-terminal: what it shows, what it sends, and what it costs."""

import fcntl
import os
import pty
import select
import signal
import struct
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyte

ANSWERS = {
    b"\x1b]11;?": b"\x1b]11;rgb:1010/1414/1818\x07",  # background colour
    b"\x1b[?2026$p": b"\x1b[?2026;2$y",  # synchronised output: known
    b"\x1b[?2027$p": b"\x1b[?2027;0$y",  # grapheme clusters: unknown
    b"\x1b[c": b"\x1b[?62;22c",  # who are you
}
"""What a terminal replies when a program asks; some wait for it."""
NOT_OURS = ("COLUMNS", "LINES", "PYTHONDONTWRITEBYTECODE")  # an installed program is compiled
_LEAVING_S = 5.0
_WEIGH_S = 0.1


def microscope(*arguments: object) -> list[str]:
    """The command of ``moe-microscope``."""
    return [sys.executable, "-m", "microscope_tui.cli", *map(str, arguments)]


class Terminal:
    """A program started in a terminal of its own; it and its children end with the context."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        columns: int = 120,
        rows: int = 40,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start ``command``; ``environment`` is added to ours, without ``NOT_OURS``."""
        kept = {k: v for k, v in os.environ.items() if k not in NOT_OURS}
        kept |= {"TERM": "xterm-256color", "COLORTERM": "truecolor", **(environment or {})}
        self._state = tempfile.TemporaryDirectory(prefix="moe-microscope-state-")
        kept = {k: v for k, v in kept.items() if v} | {"XDG_STATE_HOME": self._state.name}
        self.started = time.monotonic()
        self.sent = 0
        self.open = True
        self._weighed = self._peak = 0.0
        self.pid, self._file = pty.fork()
        if self.pid == 0:
            try:
                fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
                os.execve(command[0], list(command), kept)
            finally:
                os._exit(127)
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        """End the program politely, then not, and reap it."""
        family = tree(self.pid)
        for signal_ in (signal.SIGTERM, signal.SIGKILL):
            for pid in family:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal_)
            if self._has_left():
                break
        for orphan in family[1:]:
            with suppress(ProcessLookupError):
                os.kill(orphan, signal.SIGKILL)
        os.close(self._file)
        self._state.cleanup()

    def _has_left(self) -> bool:
        until = time.monotonic() + _LEAVING_S
        while time.monotonic() < until:
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                return True
            self.read(0.05)  # or it could wait for ever for room in the terminal
        return False

    @property
    def text(self) -> str:
        return "\n".join(self._screen.display)

    @property
    def age(self) -> float:
        return time.monotonic() - self.started

    def read(self, seconds: float) -> None:
        """Take in what the program sends, for so long."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if not self.open:
                time.sleep(left)
            elif select.select([self._file], [], [], min(left, 0.02))[0]:
                self._take()

    def wait_until(self, condition: Callable[[str], bool], timeout: float = 120.0) -> float:
        """Seconds from the start of the program until ``condition`` holds for the screen."""
        until = time.monotonic() + timeout
        while not condition(self.text):
            while not select.select([self._file], [], [], 0.1)[0]:
                self._weigh()
                if time.monotonic() > until:
                    raise TimeoutError(f"not seen in {timeout:.0f} s; the screen:\n{self.text}")
            self._take()
            if time.monotonic() > until or not self.open:
                raise TimeoutError(f"not seen in {self.age:.0f} s; the screen:\n{self.text}")
        return self.age

    def press(self, keys: str) -> None:
        os.write(self._file, keys.encode())

    def react(self, keys: str, seen: Callable[[str], bool]) -> float:
        """Milliseconds from typing ``keys`` until the bytes that make ``seen`` true have arrived.

        What arrives is stamped first and drawn afterwards: our screen is slower than the program.
        """
        arrived: list[tuple[float, bytes]] = []
        found: float | None = None
        started = time.monotonic()
        self.press(keys)
        while True:
            while select.select([self._file], [], [], 0.15)[0]:
                data = os.read(self._file, 65536)
                arrived.append((time.monotonic(), data))
            for at, data in arrived:
                self.sent += len(data)
                self._stream.feed(data)
                if found is None and seen(self.text):
                    found = (at - started) * 1000
            if found is not None:
                return found
            arrived.clear()
            if time.monotonic() - started > 10:
                raise TimeoutError(f"not seen in 10 s; the screen:\n{self.text}")

    def usage(self) -> "Usage":
        """What the program and its children have cost so far."""
        cpu = 0.0
        for process in tree(self.pid):
            with suppress(OSError):
                fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
                # own time, and that of children that have ended
                cpu += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
        self._weighed = 0.0
        memory = self._weigh()
        return Usage(cpu, memory, self._peak)

    def _weigh(self) -> float:
        """Megabytes of the program and its children, a page of several in equal parts."""
        memory = 0.0
        if time.monotonic() - self._weighed > _WEIGH_S:
            for process in tree(self.pid):
                with suppress(OSError, StopIteration):
                    parts = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
                    line = next(line for line in parts if line.startswith("Pss:"))
                    memory += int(line.split()[1]) / 1024
            self._weighed, self._peak = time.monotonic(), max(self._peak, memory)
        return memory

    def _take(self) -> None:
        self._weigh()
        try:
            data = os.read(self._file, 65536)
        except OSError:  # the program is gone
            data = b""
        self.open = bool(data)
        self.sent += len(data)
        for question, answer in ANSWERS.items():
            if question in data:
                os.write(self._file, answer)
        self._stream.feed(data)


@dataclass(frozen=True, slots=True)
class Usage:
    """Processor seconds and memory of a program with its children, those that ended included."""

    cpu_s: float
    memory_mb: float
    """Proportional set size: shared pages are divided among the processes that have them."""
    peak_mb: float
    """The most of it at any tenth of a second."""


def tree(pid: int) -> list[int]:
    """A process and its living descendants, parents first."""
    found = [pid]
    for process in found:  # grows while it is walked
        with suppress(OSError):
            for task in Path(f"/proc/{process}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found
