"""``--notify-command``: runs the user's command for every alert.

The command is passed to the shell unchanged; nothing from a log is ever part of it. The finding is
one line of JSON on its standard input. Commands run in the background, a few at a time, with a
timeout; their failures never stop the following.
"""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from microscope_tui.console import say

_MOST_WAITING = 64


@dataclass(slots=True)
class _Running:
    process: "subprocess.Popen[bytes]"
    until: float


class Notifier:
    """Runs the command; call ``look`` regularly and ``finish`` at the end."""

    def __init__(self, command: str, *, timeout_s: float = 30.0, at_once: int = 4) -> None:
        """Run ``command``.

        Args:
            command: for ``sh -c``.
            timeout_s: a command that runs longer is ended.
            at_once: how many may run at a time; the others wait.
        """
        self._command = command
        self._timeout_s = timeout_s
        self._at_once = at_once
        self._waiting: deque[bytes] = deque()
        self._running: list[_Running] = []
        self._said: set[str] = set()

    def send(self, alert: Mapping[str, Any]) -> None:
        """Queue the command for ``alert``."""
        if len(self._waiting) >= _MOST_WAITING:
            self._say("surplus", f"more than {_MOST_WAITING} alerts are queued: some are dropped")
            return
        self._waiting.append(json.dumps(alert, ensure_ascii=False).encode() + b"\n")
        self.look()

    def look(self) -> None:
        """Reap finished commands, kill those over their timeout, start queued ones."""
        self._running = [running for running in self._running if not self._is_over(running)]
        while self._waiting and len(self._running) < self._at_once:
            self._start(self._waiting.popleft())

    def finish(self, within_s: float = 60.0) -> None:
        """Wait for running and queued commands, up to a timeout."""
        until = time.monotonic() + within_s
        try:
            self.look()
            while self._running and time.monotonic() < until:
                time.sleep(0.02)
                self.look()
        finally:  # Ctrl-C stops the waiting and kills what runs
            for running in self._running:
                _end(running.process)
        if self._running or self._waiting:
            left = len(self._running) + len(self._waiting)
            self._say("left", f"{left} alerts not delivered within {within_s:.0f} s; dropped")
        self._running.clear()
        self._waiting.clear()

    def _start(self, text: bytes) -> None:
        # A file, not a pipe: a command that does not read must not block us.
        with tempfile.TemporaryFile() as given:
            given.write(text)
            given.seek(0)
            try:
                process = subprocess.Popen(
                    ["sh", "-c", self._command],
                    stdin=given,
                    stdout=2,  # standard output is for our data
                    start_new_session=True,
                )
            except (OSError, ValueError) as error:
                self._say("start", f"cannot be started: {error}")
                return
        self._running.append(_Running(process, time.monotonic() + self._timeout_s))

    def _is_over(self, running: _Running) -> bool:
        code = running.process.poll()
        if code is None and time.monotonic() >= running.until:
            _end(running.process)
            self._say("timeout", f"ran for more than {self._timeout_s:.0f} s and was killed")
            return True
        if code:
            how = f"exited with {code}" if code > 0 else f"was killed by signal {-code}"
            self._say("failed", f"{how}; alerts continue, test it with a finding on its input")
        return code is not None

    def _say(self, kind: str, message: str) -> None:
        """Report each kind of problem once."""
        if kind not in self._said:
            self._said.add(kind)
            say(f"--notify-command: {message} (reported once)")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill the command and its children, which are in their own session."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(1.0)
