"""Counts the bytes sent to the terminal, and their rate.

All output passes through the driver, which is where it is counted.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line reads budgets and must not wait for textual
    from textual.driver import Driver

WINDOW_S = 10.0
"""Seconds over which the rate is measured."""
_SLOTS_PER_S = 10
_SLOTS = round(WINDOW_S * _SLOTS_PER_S)


class Traffic:
    """Bytes sent, total and per second. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._total = 0
        # Number of the slot, bytes sent in it. A window of whole slots holds as many redraws of a
        # steady screen at any time, or the rate would swing around its budget.
        self._slots: deque[tuple[int, int]] = deque(maxlen=_SLOTS)

    @property
    def total(self) -> int:
        """All bytes since the start."""
        return self._total

    def add(self, n: int) -> None:
        """Count ``n`` bytes sent now."""
        slot = self._slot(self._clock())
        with self._lock:
            self._total += n
            if self._slots and self._slots[-1][0] == slot:
                n += self._slots.pop()[1]
            self._slots.append((slot, n))

    def bytes_per_s(self, now: float | None = None) -> float:
        """Mean over the last ten seconds, with zeros before the start."""
        before = self._slot(self._clock() if now is None else now) - _SLOTS
        with self._lock:
            return sum(n for slot, n in self._slots if slot > before) / WINDOW_S

    def _slot(self, at: float) -> int:
        return int(at * _SLOTS_PER_S)


def counting(driver_class: "type[Driver]", traffic: Traffic) -> "type[Driver]":
    """``driver_class``, counting what it sends; for ``App.driver_class`` before the app runs.

    A headless app ignores its driver class and sends nothing: its traffic stays 0.
    """

    def write(self: "Driver", data: str) -> None:
        driver_class.write(self, data)
        # Like standard error, to which the driver writes, what UTF-8 cannot say is spelled out.
        size = len(data) if data.isascii() else len(data.encode("utf-8", "backslashreplace"))
        traffic.add(size)

    return type(f"Counting{driver_class.__name__}", (driver_class,), {"write": write})
