"""What a rule looks at: one step of one router, its matrices decoded only on demand."""

import math
from collections import deque
from collections.abc import Callable, Sequence

from microscope_tui.runlog.records import StepRecord, Values

CountSource = Callable[[int], list[int] | None]
"""Decodes the counts of one router of the step at hand."""
_EVERY_ROUTER = -1


def value_at(values: Values | None, index: int) -> float | None:
    """The entry of router ``index``; ``None`` where the list is absent or too short."""
    return values[index] if values is not None and index < len(values) else None


class StepView:
    """One step as the rules see it. ``counts`` costs a decode; the summaries are free."""

    def __init__(self, record: StepRecord, counts: CountSource) -> None:
        self.record = record
        self.step = record.step
        self._source = counts
        self._counts: dict[int, list[int] | None] = {}
        self._non_finite: dict[int, str] | None = None

    def counts(self, router_index: int) -> list[int] | None:
        """Selected pairs per expert of this step, where the line holds them."""
        if router_index not in self._counts:
            self._counts[router_index] = self._source(router_index)
        return self._counts[router_index]

    def has_non_finite(self, router_index: int) -> str | None:
        """Name of a non-finite reading of this router or of the loss; NaN looks like collapse."""
        if self._non_finite is None:
            self._non_finite = _non_finite(self.record)
        return self._non_finite.get(_EVERY_ROUTER) or self._non_finite.get(router_index)


class SummedCounts:
    """Counts summed over the last ``window`` steps."""

    def __init__(self, window: int) -> None:
        self._rows: deque[Sequence[int]] = deque(maxlen=window)
        self.totals: list[int] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: Sequence[int]) -> None:
        """Add the counts of one more step; the oldest leaves a full window."""
        if len(row) != len(self.totals):
            self.clear()
            self.totals = [0] * len(row)
        if len(self._rows) == self._rows.maxlen:
            oldest = self._rows[0]
            self.totals = [t - o + n for t, o, n in zip(self.totals, oldest, row, strict=True)]
        else:
            self.totals = [t + n for t, n in zip(self.totals, row, strict=True)]
        self._rows.append(row)

    def clear(self) -> None:
        """Forget everything."""
        self._rows.clear()
        self.totals = []


def _non_finite(record: StepRecord) -> dict[int, str]:
    """Router → name of its first non-finite reading."""
    if record.loss is not None and not math.isfinite(record.loss):
        return {_EVERY_ROUTER: "loss"}
    found: dict[int, str] = {}
    for name in ("entropy", "mean_entropy", "z_loss", "max_logit"):
        values = getattr(record.router, name)
        # One sum tells of a whole list that all is well, which it nearly always is.
        if values is None or (None not in values and math.isfinite(sum(values))):
            continue
        for index, value in enumerate(values):
            if value is not None and not math.isfinite(value):
                found.setdefault(index, f"router {name.replace('_', ' ')}")
    return found
