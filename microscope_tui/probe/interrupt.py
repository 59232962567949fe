"""Ctrl-C and SIGTERM end a probe between two writes, never inside one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """While entered, a signal raises ``KeyboardInterrupt``, but not inside ``shielded``."""

    def __init__(self) -> None:
        self._depth = 0
        self.waiting = False
        """A signal has come inside ``shielded``."""
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup requires
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """A signal inside is raised at the end."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self.waiting and not self._depth:
                self.waiting = False
                raise KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._depth:
            self.waiting = True
        else:
            raise KeyboardInterrupt
