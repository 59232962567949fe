"""What rules read: one step, its readings as clean lists, its matrices on demand.

Most steps of most routers are healthy. A ``Signal`` lets a rule see that with one comparison for
all routers, so that a healthy run costs almost nothing however many layers it has.
"""

import math
from collections.abc import Callable, Sequence
from itertools import repeat

from microscope_tui import measures
from microscope_tui.diagnosis.reading import WHOLE_RUN
from microscope_tui.runlog import RouterInfo, StepRecord, Values

CountSource = Callable[[int], list[int] | None]
"""Decodes the counts of one router of the current step."""
BiasSource = Callable[[int], list[float] | None]
"""Decodes the bias of one router of the current step."""
NAN = math.nan
MOST_COUNTS = 1 << 50
"""Upper bound of the assignments in a step; rows above it are not counts."""


def value_at(values: Values | None, index: int) -> float | None:
    """The entry of router ``index``; ``None`` where the list is absent or too short."""
    return values[index] if values is not None and index < len(values) else None


class Signal:
    """One reading of every router at one step; NaN where there is no value."""

    __slots__ = ("known", "values")

    def __init__(self, values: Sequence[float | None]) -> None:
        # One sum checks a whole list, which is nearly always finite.
        self.known = None not in values and math.isfinite(sum(values))  # type: ignore[arg-type]
        """Whether every router has a finite value."""
        self.values: Sequence[float] = (
            values  # type: ignore[assignment]
            if self.known
            else [NAN if v is None or not math.isfinite(v) else v for v in values]
        )

    @property
    def high(self) -> float:
        """The largest value, without NaN; −∞ without values."""
        values = self.values if self.known else [v for v in self.values if v == v]
        return max(values, default=-math.inf)

    @property
    def low(self) -> float:
        """The smallest value, without NaN; ∞ without values."""
        values = self.values if self.known else [v for v in self.values if v == v]
        return min(values, default=math.inf)


class StepView:
    """One step as seen by the rules. ``counts`` costs a decode; the summaries are free."""

    def __init__(
        self,
        record: StepRecord,
        routers: Sequence[RouterInfo],
        counts: CountSource,
        biases: BiasSource | None = None,
    ) -> None:
        self.record = record
        self.step = record.step
        self._routers = routers
        self._count_source = counts
        self._bias_source = biases
        self._counts: dict[int, list[int] | None] = {}
        self._signals: dict[str, Signal | None] = {}
        self._collapse_index: Signal | None = None
        self._plain_index: Signal | None = None

    def signal(self, name: str) -> Signal | None:
        """A per-router summary by its name in the format; ``None`` if not logged."""
        if name not in self._signals:
            values = getattr(self.record.router, name)
            usable = values is not None and len(values) == len(self._routers) and values
            self._signals[name] = Signal(values) if usable else None
        return self._signals[name]

    @property
    def collapse_index(self) -> Signal | None:
        """c of every router in this step alone; NaN where E ≤ k.

        Without an expert that every token chooses, where the maximal load shows that there is one.
        """
        if self._collapse_index is None:
            effective, loads = self.signal("effective_experts"), self.signal("max_load")
            if effective is None:
                return None
            known = loads.values if loads is not None else repeat(None)
            self._collapse_index = Signal(
                [
                    measures.balance_of_summary(value, load, router.num_experts, router.top_k)
                    for value, load, router in zip(
                        effective.values, known, self._routers, strict=False
                    )
                ]
            )
        return self._collapse_index

    @property
    def plain_index(self) -> Signal | None:
        """The collapse index of every router with all of its experts."""
        if self._plain_index is None and (effective := self.signal("effective_experts")):
            pairs = zip(effective.values, self._routers, strict=True)
            self._plain_index = Signal(
                [measures.collapse_index(value, r.num_experts, r.top_k) for value, r in pairs]
            )
        return self._plain_index

    @property
    def tokens(self) -> float | None:
        """Tokens of this step, if they are a valid number."""
        tokens = self.record.tokens
        return tokens if tokens is not None and 1 <= tokens < MOST_COUNTS else None

    def tokens_of(self, router_index: int) -> float | None:
        """Tokens of this router: its own number if logged, else that of the step."""
        own = self.signal("tokens")
        if own is None:
            return self.tokens
        value = own.values[router_index]
        return value if 1 <= value < MOST_COUNTS else None

    @property
    def has_counts(self) -> bool:
        """Whether the line has counts: one of the first three routers has a row."""
        return any(self.counts(index) for index in range(min(3, len(self._routers))))

    def counts(self, router_index: int) -> list[int] | None:
        """Selected pairs per expert of this step, where the line holds them."""
        if router_index not in self._counts:
            row = self._count_source(router_index)
            usable = row and min(row) >= 0 and sum(row) < MOST_COUNTS
            self._counts[router_index] = row if usable else None
        return self._counts[router_index]

    def full_counts(self, router_index: int) -> list[int] | None:
        """The counts, where there is one for every expert of the header."""
        row = self.counts(router_index)
        return row if row and len(row) == self._routers[router_index].num_experts else None

    def biases(self, router_index: int) -> list[float] | None:
        """The selection bias of every expert at this step, where the line holds it."""
        row = self._bias_source(router_index) if self._bias_source is not None else None
        return row if row and all(map(math.isfinite, row)) else None

    def non_finite(self) -> dict[int, str]:
        """Router, or the whole run, → name of a reading that is NaN or infinite."""
        record = self.record
        if record.loss is not None and not math.isfinite(record.loss):
            return {WHOLE_RUN: "loss"}
        found: dict[int, str] = {}
        for name in ("entropy", "mean_entropy", "z_loss", "max_logit"):
            signal = self.signal(name)
            if signal is None or signal.known:
                continue
            for index, value in enumerate(getattr(record.router, name)):
                if value is not None and not math.isfinite(value):
                    found.setdefault(index, f"router {name.replace('_', ' ')}")
        return found
