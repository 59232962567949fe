"""Stopping on request: Ctrl-C, SIGTERM and a lost terminal finish the step and save.

Batch systems send SIGTERM some seconds before SIGKILL, enough for a step and a checkpoint. A second
Ctrl-C exits at once. Signals that were ignored at the start stay ignored, as nohup requires, except
SIGTERM.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """While entered, a signal sets :attr:`requested`; a Ctrl-C after that interrupts at once.

    SIGINT and SIGHUP are left alone where the process was started with them ignored.
    """

    def __init__(self, *, to_the_end: bool = False) -> None:
        """Prepare.

        Args:
            to_the_end: The process ends with the block, so SIGTERM and SIGHUP are ignored after
                it. torchrun sends SIGTERM to every rank as soon as the first has ended; without
                this the slower ranks would report 143.
        """
        self.requested = False
        self._to_the_end = to_the_end
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        taken = [number for number in _SIGNALS if number == signal.SIGTERM or not _ignored(number)]
        self._before = {number: signal.signal(number, self._on_signal) for number in taken}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            if self._to_the_end and number != signal.SIGINT:
                # Not a Python handler: those are removed while Python shuts down.
                handler = signal.SIG_IGN
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            # A closing terminal sends several, and torchrun repeats what the scheduler sent.
            if number != signal.SIGINT:
                return
            raise KeyboardInterrupt
        self.requested = True
        if sys.__stderr__ is None:
            return  # closed from the start: descriptor 2 may now be any file, such as the run log
        name = signal.Signals(number).name
        line = f"\n{name}: saving, then stopping; press Ctrl-C to exit without saving.\n"
        # Not through sys.stderr: the signal may have come in the middle of a write to it.
        with contextlib.suppress(OSError):
            os.write(2, line.encode())


def _ignored(number: signal.Signals) -> bool:
    return signal.getsignal(number) is signal.SIG_IGN
