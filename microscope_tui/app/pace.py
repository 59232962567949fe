"""How often the screen is redrawn, to stay within a bandwidth budget.

The rate drops at once and as far as needed, and rises slowly, one notch at a time. A notch that
proves too fast is tried again after longer and longer waits.
"""

import math
from collections.abc import Mapping

from microscope_tui.app.traffic import WINDOW_S
from microscope_tui.console import size_of
from microscope_tui.report import is_remote
from microscope_tui.runlog import safe_text

INTERVALS_S = (0.5, 1.0, 2.0, 3.8)
"""Seconds between two redraws, by notch; at most four including the redraw itself."""
COARSE_FROM = 2
"""The notch from which heat levels are coarser."""
LEAST_BUDGET = 100
REMOTE_BUDGET = 10_000
"""Default budget for possibly slow connections, in bytes per second."""
UNLIMITED = 0
"""The budget ``none``: unlimited."""
_DECIDE_S = 1.0
_PATIENCE_S, _MOST_PATIENCE_S = 20.0, 320.0
_HELD_S = 60.0  # a recovery that lasts so long was right
_SHOWN_TOLERANCE = 0.1


class Pace:
    """The redraw interval of all screens. Without a budget it is constant."""

    def __init__(self, budget: int | None = None) -> None:
        """``budget``: bytes a second that may be sent to the terminal; ``None`` for any number."""
        self.budget = budget
        self._notch = 0
        self._shown = 0.0
        self._decided = self._slowed = self._recovered = -math.inf
        self._calm_since: float | None = None
        self._patience_s = _PATIENCE_S

    @property
    def interval_s(self) -> float:
        """Seconds between two redraws."""
        return INTERVALS_S[self._notch]

    @property
    def coarse(self) -> bool:
        """Heat in fewer levels, so that fewer cells change."""
        return self._notch >= COARSE_FROM

    def observe(self, rate: float, now: float) -> bool:
        """Update with the measured rate in bytes per second; true if the interval changed.

        It may be called at any rhythm: a second must pass between two decisions.
        """
        if now - self._decided < _DECIDE_S:
            return False
        self._decided = now
        self._show(rate)
        if self.budget is None:
            return False
        if rate > self.budget:
            self._calm_since = None
            return self._slow_down(rate, self.budget, now)
        if rate >= self.budget / 2 or not self._notch:
            self._calm_since = None
            return False
        return self._recover(now)

    def words(self) -> str:
        """``net 6.8 kB/s``, or ``net 9.9 of 10 kB/s, every 4 s``, for a footer.

        It stands still while the rate only trembles: it costs bytes itself.
        """
        if self.budget is None:
            return f"net {_kilobytes(self._shown)} kB/s"
        said = f"net {_kilobytes(self._shown)} of {_kilobytes(self.budget)} kB/s"
        return f"{said}, every {self.interval_s:.0f} s" if self._notch else said

    def _slow_down(self, rate: float, budget: int, now: float) -> bool:
        if self._notch == len(INTERVALS_S) - 1 or now - self._slowed < WINDOW_S:
            return False  # the rate still includes bytes sent at the previous interval
        failed = now - self._recovered < _HELD_S
        self._patience_s = min(_MOST_PATIENCE_S, 2 * self._patience_s) if failed else _PATIENCE_S
        wanted = self.interval_s * rate / budget
        slower = range(self._notch + 1, len(INTERVALS_S))
        self._notch = next((n for n in slower if INTERVALS_S[n] >= wanted), slower[-1])
        self._slowed = now
        return True

    def _recover(self, now: float) -> bool:
        if self._calm_since is None:
            self._calm_since = now
        if now - self._calm_since < self._patience_s:
            return False
        self._notch -= 1
        self._calm_since = self._recovered = now
        return True

    def _show(self, rate: float) -> None:
        limit = self.budget if self.budget is not None else math.inf
        crossed = (rate > limit) != (self._shown > limit)
        if crossed or abs(rate - self._shown) > _SHOWN_TOLERANCE * max(rate, self._shown):
            self._shown = rate


def budget_of(text: str) -> int | None:
    """``10k``, ``10kB/s`` or a number of bytes a second; ``UNLIMITED`` for ``none``.

    ``None`` for no text: then the environment decides, see ``budget_for``.

    Raises:
        ValueError: anything else; the message says what to write.
    """
    if not text.strip():
        return None
    if text.strip().lower() == "none":
        return UNLIMITED
    size = size_of(text.strip().removesuffix("/s"))
    if size is None or size < LEAST_BUDGET:
        raise ValueError(
            f"budget {safe_text(text, 20)!r}: write bytes per second from {LEAST_BUDGET} up, "
            "for example 10k, or none"
        )
    return size


def budget_for(asked: int | None, environment: Mapping[str, str]) -> int | None:
    """The budget in bytes per second; ``None`` for unlimited.

    Over SSH and in tmux or screen there is a budget unless one was asked for, or none.
    """
    if asked is not None:
        return asked or None
    return REMOTE_BUDGET if is_remote(environment) else None


def _kilobytes(rate: float) -> str:
    """Two digits are enough, and below a twentieth of a kilobyte it is nothing."""
    scaled = rate / 1024
    if scaled >= 9.95:
        return f"{scaled:.0f}"
    text = f"{scaled:.1f}"
    return text.removesuffix(".0")
