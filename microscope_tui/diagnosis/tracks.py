"""Hysteresis: an alarm needs persistent evidence to start and a margin to end.

A single bad step is noise. An alarm starts when enough (usually 90 %) of the last evaluations
were over the limit, is dated back to the first of them, and ends after a number of evaluations
in a row well inside it. A router that is well has no track at all.
"""

import msgspec

from microscope_tui.diagnosis.reading import Severity


class Track(msgspec.Struct):
    """The evidence of one rule on one router."""

    window: int
    needed: int
    """Evaluations over the limit, of the last ``window``, that raise an alarm."""
    leave: int
    """Clear evaluations in a row that end an episode."""
    recent: list[tuple[int, int]] = []
    """Step and severity (0: inside) of the last evaluations."""
    over: int = 0
    clear: int = 0
    clear_since: int | None = None
    since: int | None = None
    """First step of the evidence that is building up; ``None`` while most evaluations are inside.
    """
    dated: int | None = None
    """The onset given by the rule at the last evaluation."""

    def observe(self, step: int, severity: Severity | None, clear: bool) -> None:
        """Add one evaluation; ``clear`` means inside the limit by its margin."""
        recent = self.recent
        while len(recent) >= self.window:
            self.over -= recent[0][1] > 0
            del recent[0]
        recent.append((step, int(severity or 0)))
        if severity is not None:
            self.over += 1
        if clear:
            self.clear += 1
            self.clear_since = step if self.clear == 1 else self.clear_since
        else:
            self.clear, self.clear_since = 0, None
        if 2 * self.over * self.window < len(recent) * self.needed or not self.over:
            self.since = None
        elif self.since is None and severity is not None:
            self.since = self._first_evidence()

    def ask(self, window: int, needed: int, leave: int) -> None:
        """Set the required number of evaluations."""
        self.window, self.needed, self.leave = window, needed, leave

    @property
    def began(self) -> int | None:
        """First step of the evidence, or the onset given by the rule if earlier."""
        if self.since is None or self.dated is None:
            return self.since
        return min(self.since, self.dated)

    @property
    def pending(self) -> Severity | None:
        """The worst of the evidence that is building up."""
        if self.since is None:
            return None
        return Severity(max(severity for _, severity in self.recent))

    @property
    def idle(self) -> bool:
        """Whether no recent evaluation was over the limit."""
        return not self.over

    @property
    def severity(self) -> Severity | None:
        """The highest severity that enough of the last evaluations reach."""
        if self.over < self.needed:
            return None
        over = sorted((severity for _, severity in self.recent if severity), reverse=True)
        return Severity(over[self.needed - 1])

    @property
    def cleared_at(self) -> int | None:
        """First of ``leave`` clear evaluations in a row, once there are as many."""
        return self.clear_since if self.clear >= self.leave else None

    def forget_from(self, step: int) -> None:
        """Forget the evidence from ``step`` on: the run resumes there."""
        self.recent = [(at, severity) for at, severity in self.recent if at < step]
        self.over = sum(severity > 0 for _, severity in self.recent)
        self.clear, self.clear_since = 0, None
        if not self.over or (self.since is not None and self.since >= step):
            self.since = None

    def recall(self, since: int, last: int, severity: Severity) -> None:
        """Restore evidence from ``since`` to ``last`` that the window has lost."""
        if self.idle:
            self.recent, self.over, self.since = [(last, int(severity))], 1, since

    def _first_evidence(self) -> int:
        """The earliest step from which enough evaluations are over the limit."""
        over, first = 0, self.recent[-1][0]
        for total, (step, severity) in enumerate(reversed(self.recent), start=1):
            over += severity > 0
            if severity and over * self.window >= self.needed * total:
                first = step
        return first
