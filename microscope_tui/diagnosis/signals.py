"""What rules read: one step and its matrices on demand; past steps.

Most steps of most routers are healthy. A ``Signal`` lets a rule see that with one comparison for
all routers, so that a healthy run costs almost nothing however many layers it has.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from operator import add, sub, truediv
from typing import TypeVar

import msgspec

from microscope_tui import measures
from microscope_tui.runlog import RouterInfo, RouterSummary, RunRecord, StepRecord, Values

CountSource = Callable[[int], list[int] | None]
"""Decodes the counts of one router of the current step."""
BiasSource = Callable[[int], list[float] | None]
"""Decodes the bias of one router of the current step."""
NAN = math.nan
MOST_COUNTS = 1 << 50
"""Upper bound of the assignments in a step; rows above it are not counts."""

_OF_COUNTS = ("effective_experts", "max_load", "dead_experts", "starved_experts")
BALANCE = ("effective_experts", "num_experts", "top_k")
"""What the collapse index is computed from."""
_SUMMARIES = ("effective_experts", "max_load", "starved_experts")
_NEEDED = {name: f"counts or {name}" for name in _SUMMARIES} | {
    "counts": "counts",
    "tokens": "tokens",
}
"""Numbers of a step, in words."""
_UNKNOWN = {
    "num_experts": "the number of experts is unknown: use --num-experts",
    "top_k": "top_k, the experts per token, is unknown: use --top-k, or model.top_k in a run log",
}
"""Numbers of the header."""


def value_at(values: Values | None, index: int) -> float | None:
    """``None`` where the list is absent or too short."""
    return values[index] if values is not None and index < len(values) else None


class Routers(tuple[RouterInfo, ...]):
    """With what every step needs of all of them."""

    def __init__(self, routers: Sequence[RouterInfo]) -> None:
        self.top_k = [r.top_k for r in routers]
        self.spans = [r.num_experts - r.top_k for r in routers]
        self.have_index = min(self.top_k, default=0) > 0 and min(self.spans) > 0
        most = max((r.top_k / max(1, r.num_experts) for r in routers if r.top_k > 1), default=0.0)
        self.plain_below = (measures.ALWAYS_CHOSEN - 1e-9) / most if most else math.inf
        """A maximal load with which no even router excuses its busiest expert."""

    def collapse_index(self, effective: "Signal") -> Sequence[float | None]:
        """``measures.collapse_index`` of all; at once where no value has to be clamped."""
        if self.have_index and effective.known:
            values = list(map(truediv, map(sub, effective.values, self.top_k), self.spans))
            if min(values) >= 0.0 and max(values) <= 1.0:
                return values
        pairs = zip(effective.values, self, strict=True)
        return [measures.collapse_index(v, r.num_experts, r.top_k) for v, r in pairs]


class Signal(msgspec.Struct, gc=False):
    """One number of every router; NaN where one is missing or not finite."""

    values: Sequence[float]
    """In forward order."""
    known: bool
    """Whether every router has a finite value."""
    _high: float | None = None
    _low: float | None = None

    @classmethod
    def of(cls, values: Sequence[float | None]) -> "Signal":
        """One sum checks a whole list, which is nearly always finite."""
        try:
            if math.isfinite(sum(values)):  # type: ignore[arg-type]
                return cls(values, True)  # type: ignore[arg-type]
        except TypeError:
            pass  # there is a None
        return cls(list(map(_finite_or_nan, values)), False)

    @property
    def high(self) -> float:
        """Without NaN; −∞ without values."""
        if self._high is None:
            known = self.values if self.known else _finite(self.values)
            self._high = max(known, default=-math.inf)
        return self._high

    @property
    def low(self) -> float:
        """Without NaN; ∞ without values."""
        if self._low is None:
            known = self.values if self.known else _finite(self.values)
            self._low = min(known, default=math.inf)
        return self._low


class _Signals(dict[str, Signal | None]):
    def __init__(self, summary: RouterSummary, routers: int) -> None:
        self._summary, self._routers = summary, routers

    def __missing__(self, name: str) -> Signal | None:
        values = getattr(self._summary, name)
        signal = None
        if values and len(values) == self._routers:
            signal = Signal.of(values)
        self[name] = signal
        return signal


class StepView:
    """One step. ``counts`` costs a decode; the summaries are free."""

    def __init__(
        self,
        record: StepRecord,
        routers: Sequence[RouterInfo],
        counts: CountSource,
        biases: BiasSource | None = None,
    ) -> None:
        self.record = record
        self.step = record.step
        tokens = record.tokens
        self.tokens = tokens if tokens is not None and 1 <= tokens < MOST_COUNTS else None
        """Tokens of this step, if they are a valid number."""
        self._routers = routers if isinstance(routers, Routers) else Routers(routers)
        self._count_source = counts
        self._bias_source = biases
        self._counts: dict[int, list[int] | None] = {}
        self.sums: dict[int, tuple[int, int]] = {}
        """The lowest count and the sum of every row that was decoded."""
        self.sick: Sequence[int] = ()
        """Routers with a COLLAPSE or DEAD in the steps before."""
        self._signals = _Signals(record.router, len(routers))
        self.signal: Callable[[str], Signal | None] = self._signals.__getitem__
        """A per-router summary by its name in the format; ``None`` if not logged."""
        self._judged: Signal | None = None
        self._plain: Signal | None = None

    @property
    def collapse_index(self) -> Signal | None:
        """c of every router in this step alone, NaN where E ≤ k; without its busiest expert, where
        the maximal load shows that ``balance`` excuses it.
        """
        if self._judged is None:  # ``cached_property`` has a lock, which takes longer
            self._judged = self._judge()
        return self._judged

    def _judge(self) -> Signal | None:
        effective, loads = self.signal("effective_experts"), self.signal("max_load")
        plain, even, below = self.plain_index, measures.EVEN_ENOUGH, self._routers.plain_below
        if effective is None or plain is None or loads is None:
            return plain
        if plain.known and plain.low >= even and loads.high < below:
            return plain
        found: list[float | None] = [*plain.values]
        pairs = enumerate(zip(plain.values, loads.values, strict=True))
        for index in [i for i, (c, load) in pairs if not (c >= even and load < below)]:
            r = self._routers[index]  # it may excuse its busiest expert
            value, load = effective.values[index], loads.values[index]
            found[index] = measures.balance_of_summary(value, load, r.num_experts, r.top_k)
        return Signal.of(found)

    @property
    def plain_index(self) -> Signal | None:
        """The collapse index of every router with all of its experts."""
        if self._plain is None and (effective := self.signal("effective_experts")) is not None:
            self._plain = Signal.of(self._routers.collapse_index(effective))
        return self._plain

    def value(self, name: str, router_index: int) -> float | None:
        """One number of one router; ``None`` if it is not logged."""
        signal = self.signal(name)
        return signal.values[router_index] if signal is not None else None

    def tokens_of(self, router_index: int) -> float | None:
        """Its own number if logged, else that of the step."""
        own = self.signal("tokens")
        if own is None:
            return self.tokens
        value = own.values[router_index]
        return value if 1 <= value < MOST_COUNTS else None

    @property
    def has_counts(self) -> bool:
        """Whether one of the first three routers has a row."""
        return any(self.counts(index) for index in range(min(3, len(self._routers))))

    def counts(self, router_index: int) -> list[int] | None:
        """Selected pairs per expert, where the line holds them."""
        if router_index not in self._counts:
            row = self._count_source(router_index)
            least, total = self.sums[router_index] = (min(row), sum(row)) if row else (-1, 0)
            self._counts[router_index] = row if least >= 0 and total < MOST_COUNTS else None
        return self._counts[router_index]

    def full_counts(self, router_index: int) -> list[int] | None:
        """The counts, where there is one for every expert of the header."""
        row = self.counts(router_index)
        return row if row and len(row) == self._routers[router_index].num_experts else None

    def leave_out(self, router_index: int) -> None:
        """The counts of a router, and what follows from them, become unknown."""
        self._counts[router_index] = None
        self._plain = None
        for name in _OF_COUNTS:
            if (signal := self.signal(name)) is not None:
                values = list(signal.values)
                values[router_index] = NAN
                self._signals[name] = Signal.of(values)

    def biases(self, router_index: int) -> list[float] | None:
        """The selection bias, where the line holds it."""
        row = self._bias_source(router_index) if self._bias_source is not None else None
        return row if row and all(map(math.isfinite, row)) else None

    def all_biases(self) -> dict[int, list[float]]:
        """Router → its selection bias, where the line holds it."""
        return {i: row for i in range(len(self._routers)) if (row := self.biases(i))}

    def not_finite(self) -> dict[int, str]:
        """Router → name of a reading that is NaN or infinite."""
        found: dict[int, str] = {}
        for name in ("entropy", "mean_entropy", "z_loss", "max_logit"):
            signal = self.signal(name)
            if signal is None or signal.known:
                continue
            for index, value in enumerate(getattr(self.record.router, name)):
                if value is not None and not math.isfinite(value):
                    found.setdefault(index, f"router {name.replace('_', ' ')}")
        return found


def expected(view: StepView, index: int, run: RunRecord) -> float | None:
    """Assignments per expert (λ) in this step; ``None`` if unknown, as for shares."""
    router = run.routers[index]
    counts = view.full_counts(index) if run.counts != "shares" else None
    if counts is not None:
        return sum(counts) / len(counts)
    tokens = view.tokens_of(index)
    if tokens is None or not router.top_k or not router.num_experts:
        return None
    return tokens * router.top_k / router.num_experts


def see(view: StepView, seen: list[str]) -> None:
    """Add the numbers of a step to those that the log has."""
    if len(seen) == len(_NEEDED):
        return
    for name in [name for name in _NEEDED if name not in seen]:
        if name == "counts":
            found = view.has_counts
        else:
            signal = view.signal(name)
            found = signal is not None and signal.high > -math.inf
        if found or (name == "tokens" and view.tokens is not None):
            seen.append(name)


def unknown(run: RunRecord, name: str) -> bool:
    """Whether the header has no such number (``num_experts``, ``top_k``) for any router."""
    return not any(getattr(router, name) for router in run.routers)


def why_blind(needs: Sequence[str], seen: Sequence[str], run: RunRecord) -> str | None:
    """Which of the needed numbers are missing, in words."""
    lacks = [_NEEDED[name] for name in needs if name in _NEEDED and name not in seen]
    if lacks:  # before what the header lacks
        return f"it needs {' and '.join(lacks)}"
    reasons = [_UNKNOWN[name] for name in needs if name in _UNKNOWN and unknown(run, name)]
    return "; ".join(reasons) or None


class SummedCounts(msgspec.Struct):
    """The counts of one router over the last ``window`` steps that have some."""

    window: int
    rows: list[list[int]] = []
    """Of each of these steps, oldest first."""
    totals: list[int] = []
    """The sum of each expert."""

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, row: Sequence[int]) -> None:
        """Add the counts of a step, one per expert. Another number of experts begins anew."""
        if len(row) != len(self.totals):
            self.rows, self.totals = [], [0] * len(row)
        oldest = self.rows.pop(0) if len(self.rows) >= self.window else [0] * len(row)
        self.totals = list(map(add, map(sub, self.totals, oldest), row))
        self.rows.append(list(row))


class Suspect(msgspec.Struct):
    """A router whose counts are summed."""

    summed: SummedCounts | None = None
    """``None`` before the first counts."""
    calm: int = 0
    """Lines since the last bad one."""
    since: int | None = None
    """First step of the evidence."""

    def add(self, counts: Sequence[int], evidence: float, least: int, most: int) -> SummedCounts:
        """Add the counts of a step; the first ones decide about the window: see ``window_steps``.

        ``evidence``: assignments that each expert should expect in it; ``least``, ``most``: steps.
        """
        if self.summed is None:
            fair = sum(counts) / len(counts)
            self.summed = SummedCounts(window_steps(fair, evidence, least, most))
        self.summed.add(counts)
        return self.summed


S = TypeVar("S", bound=Suspect)


def watched(suspects: dict[int, S], index: int, bad: bool, most: int, new: type[S]) -> S | None:
    """The suspect of a router that is bad in this line, or was in one of the ``most`` lines before.

    ``None`` for all others: they are dropped from ``suspects``. ``new`` makes the first one.
    """
    suspect = suspects.get(index) or (new() if bad else None)
    if suspect is None:
        return None
    suspects[index] = suspect
    suspect.calm = 0 if bad else suspect.calm + 1
    if suspect.calm <= most:
        return suspect
    del suspects[index]
    return None


class Sums(msgspec.Struct, frozen=True):
    """Counts of a run that is over: of a whole evaluation, or of the last collapsed steps."""

    last: StepRecord
    """The last step of the run."""
    since: dict[int, int] = {}
    """Router → first step in its sum."""
    counts: dict[int, list[int]] = {}
    """Router → sum per expert."""


class Trail(msgspec.Struct):
    """Every ``every``-th value of all routers, the last ``size`` of them."""

    size: int
    """Most values that are kept."""
    every: int = 1
    steps: list[int] = []
    """Of the kept values."""
    rows: list[list[float]] = []
    """One value per router, for each of these steps."""
    seen: int = 0
    """Lines so far, also those that were not kept."""

    def add(self, step: int, values: Sequence[float]) -> None:
        """Offer the values of a step, one per router; NaN is a gap."""
        self.seen += 1
        if (self.seen - 1) % self.every:
            return
        self.steps.append(step)
        self.rows.append(list(values))
        if len(self.rows) > self.size:
            del self.steps[0], self.rows[0]

    def forget_from(self, step: int) -> None:
        """The run resumes at ``step``."""
        while self.steps and self.steps[-1] >= step:
            del self.steps[-1], self.rows[-1]

    def column(self, router: int, first: int = 0, last: int | None = None) -> Sequence[float]:
        """Finite values of one router, oldest first; ``first`` and ``last`` select rows like a
        slice.
        """
        return _finite([row[router] for row in self.rows[first:last]])

    def before(self, step: int, router: int) -> Sequence[float]:
        """Finite values of one router before ``step``, oldest first."""
        return self.column(router, 0, bisect_left(self.steps, step))


class FirstValues(Trail):
    """Of the first ``size`` lines: the initial state, kept in a resume."""

    medians: list[float] = []
    """The median of every router, once there is no more room."""

    def add(self, step: int, values: Sequence[float]) -> None:
        if len(self.rows) >= self.size:
            return
        Trail.add(self, step, values)
        if len(self.rows) == self.size:
            self.medians = [median(self.column(router)) for router in range(len(values))]

    def usual(self, router: int, lines: int) -> float:
        """The median of the first ``lines``; NaN before the first value."""
        return median(self.column(router, 0, lines))


def _finite_or_nan(value: float | None) -> float:
    if value is None or not math.isfinite(value):
        return NAN
    return value


def _finite(values: Sequence[float]) -> Sequence[float]:
    total = sum(values)
    return values if total == total else [value for value in values if value == value]


def window_steps(expected: float, evidence: float, least: int, most: int) -> int:
    """Steps that give an expert ``evidence`` expected assignments, within two bounds."""
    needed = math.ceil(evidence / expected) if expected > 0 else most
    return min(most, max(least, needed))


def median(values: Sequence[float]) -> float:
    """The median without NaN, the upper one of two; NaN without values."""
    known = _finite(values)
    return sorted(known)[len(known) // 2] if known else NAN
