"""Hysteresis: an alarm needs persistent evidence to start and a margin to end.

A single bad step is noise. An alarm starts when at least 90 % of the last ``enter`` evaluations
were over the limit, is dated back to the first of them, and ends after ``leave`` evaluations in
a row well inside it.
"""

from collections import deque

from microscope_tui.diagnosis.episodes import Severity
from microscope_tui.diagnosis.thresholds import ENTER_SHARE


class Persistence:
    """Watches the evaluations of one rule on one router."""

    def __init__(self, enter: int, leave: int) -> None:
        self._recent: deque[tuple[int, Severity | None]] = deque(maxlen=enter)
        self._enter, self._leave = enter, leave
        self._over = 0
        self._clear = 0
        self._clear_since: int | None = None
        self.since: int | None = None
        """First step of the evidence that is building up; ``None`` while most is inside."""

    def observe(self, step: int, severity: Severity | None, clear: bool) -> None:
        """Take in one evaluation; ``clear`` means inside the limit by its margin."""
        recent = self._recent
        if len(recent) == self._enter and recent[0][1] is not None:
            self._over -= 1
        recent.append((step, severity))
        if severity is not None:
            self._over += 1
        if clear:
            self._clear += 1
            self._clear_since = step if self._clear == 1 else self._clear_since
        else:
            self._clear, self._clear_since = 0, None
        if 2 * self._over < len(recent):
            self.since = None
        elif self.since is None and severity is not None:
            self.since = self._first_evidence()

    @property
    def pending(self) -> bool:
        """Most of the recent evaluations are over the limit."""
        return self.since is not None

    @property
    def severity(self) -> Severity | None:
        """The highest severity that 90 % of a full window of evaluations reach."""
        needed = ENTER_SHARE * self._enter
        if self._over < needed or len(self._recent) < self._enter:
            return None
        over = sorted((s for _, s in self._recent if s is not None), reverse=True)
        return over[int(-(-needed // 1)) - 1]

    @property
    def cleared_at(self) -> int | None:
        """First step of a stretch of ``leave`` clear evaluations, once it is that long."""
        return self._clear_since if self._clear >= self._leave else None

    def forget_from(self, step: int) -> None:
        """Forget the evidence from ``step`` on: the run goes on from there again."""
        kept = [(at, severity) for at, severity in self._recent if at < step]
        self._recent.clear()
        self._recent.extend(kept)
        self._over = sum(severity is not None for _, severity in kept)
        self._clear, self._clear_since = 0, None
        if 2 * self._over < len(kept) or (self.since is not None and self.since >= step):
            self.since = None

    def _first_evidence(self) -> int:
        """The earliest step from which on at least 90 % of the evaluations are over."""
        over, first = 0, self._recent[-1][0]
        for total, (step, severity) in enumerate(reversed(self._recent), start=1):
            over += severity is not None
            if severity is not None and over >= ENTER_SHARE * total:
                first = step
        return first
