"""What a rule looks at: one step of one router, its matrices decoded only on demand."""

import math
from collections import deque
from collections.abc import Callable, Sequence

from microscope_tui.runlog.records import Matrices, StepRecord, Values

MatrixSource = Callable[[], Matrices | None]


def value_at(values: Values | None, index: int) -> float | None:
    """The entry of router ``index``; ``None`` where the list is absent or too short."""
    return values[index] if values is not None and index < len(values) else None


class StepView:
    """One step as the rules see it. ``counts`` costs a decode; the summaries are free."""

    def __init__(self, record: StepRecord, matrices: MatrixSource) -> None:
        self.record = record
        self.step = record.step
        self._source = matrices
        self._matrices: Matrices | None = None
        self._asked = False

    def counts(self, router_index: int) -> list[int] | None:
        """Selected pairs per expert of this step, where the line holds them."""
        if not self._asked:
            self._asked, self._matrices = True, self._source()
        if self._matrices is None:
            return None
        return self._matrices.tokens_per_expert[router_index]

    def has_non_finite(self, router_index: int) -> str | None:
        """Name of a non-finite reading of this router or of the loss; NaN looks like collapse."""
        if _broken(self.record.loss):
            return "loss"
        router = self.record.router
        for name in ("entropy", "mean_entropy", "z_loss", "max_logit"):
            if _broken(value_at(getattr(router, name), router_index)):
                return f"router {name.replace('_', ' ')}"
        return None


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


def _broken(value: float | None) -> bool:
    return value is not None and not math.isfinite(value)
