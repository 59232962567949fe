"""Stopping on a signal: the step is finished and a checkpoint written.

Ctrl-C, SIGTERM and a lost terminal do that. Batch systems send SIGTERM some seconds before SIGKILL,
enough for a step and a checkpoint. A second Ctrl-C exits at once. Signals that were ignored at the
start stay ignored, as nohup requires, except SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_Handlers = dict[signal.Signals, Any]


def _replaced(handler: Any, *, always: Collection[signal.Signals] = ()) -> _Handlers:
    """Set ``handler``, except for signals that are ignored and not in ``always``; return the
    handlers before."""
    return {
        number: signal.signal(number, handler)
        for number in _STOPPING
        if number in always or signal.getsignal(number) is not signal.SIG_IGN
    }


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """In this block signals end the process: ranks connect, torch blocks Python's handlers, and
    there is nothing to save yet."""
    before = _replaced(signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopRequest:
    """While entered, a signal sets :attr:`requested`; a Ctrl-C after that interrupts at once."""

    def __init__(self, *, to_the_end: bool = False) -> None:
        """``to_the_end``: the process ends with the block, so SIGTERM and SIGHUP are ignored after
        it. torchrun sends SIGTERM to every rank as soon as the first has ended; without this the
        slower ranks would report 143."""
        self.requested = False
        self._to_the_end = to_the_end
        self._before: _Handlers = {}

    def __enter__(self) -> StopRequest:
        self._before = _replaced(self._on_signal, always=(signal.SIGTERM,))
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # Not a Python handler: those are removed while Python shuts down.
            ignored = self._to_the_end and number != signal.SIGINT
            signal.signal(number, signal.SIG_IGN if ignored else handler)

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
        with suppress(OSError):
            os.write(2, line.encode())
