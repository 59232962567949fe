"""The layout of a run: which named number is in which row of the run log.

The routers are those of the steps that were seen so far. If a layer or an expert appears later the
layout grows, and a new run record follows, so that no number ends up in the wrong row. Most steps
have the same targets in the same order: it is planned once what goes where.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import repeat
from operator import itemgetter
from typing import Any

from microscope_tui.runlog import Values
from microscope_tui.sources.keys import (
    LOAD_ENTROPY,
    NUM_EXPERTS,
    ROUTER_QUANTITIES,
    STEP_QUANTITIES,
    TOP_K,
    Target,
    config_number,
)
from microscope_tui.sources.reader import Record, Row, RowReader, SourceRequest
from microscope_tui.sources.records import counts_of_shares, run_record, step_record

MAX_NUMBERS = 1 << 20
"""Distinct numbers of a run; further ones are left out: a hostile file must not fill the memory."""
_OFF = 1e-3
"""How far the mean load of a whole row may be from 1; rounding leaves far less."""
_MOST_NATS = 700.0  # more overflow
_Matrix = Sequence[Sequence[float] | None]


class Layout:
    """The rows of one run."""

    def __init__(self, request: SourceRequest, source: RowReader) -> None:
        self._request = request
        self._source = source
        config = source.config
        self._num_experts = request.num_experts or config_number(config, NUM_EXPERTS) or 0
        chosen = request.top_k or config_number(config, TOP_K)
        self.top_k = 1 if source.counts == "top1" else chosen
        self._experts: dict[int | None, int] = {}  # by layer: the number of experts seen
        self._known: set[Target] = set()
        self._seen: Counter[tuple[str, int | None]] = Counter()  # experts of a row of a matrix
        self._shifted: dict[Target, Target] = {}
        self._cut: set[tuple[str, int | None]] = set()
        """Rows of histograms: they end where an expert has tokens."""
        self._arrange()

    def grow(self, row: Row) -> bool:
        """Add the layers and experts of one step; true if there are new ones."""
        if self._planned == row.targets or self._known.issuperset(row.targets):
            return False
        before = dict(self._experts), set(self._rows)
        for target in set(row.targets) - self._known:
            if len(self._known) >= MAX_NUMBERS:
                break
            self._known.add(target)
            quantity, layer, expert, _ = target
            if target != target.final:
                self._shifted[target] = target.final
            if target.of_router:
                self._experts.setdefault(layer, 0)
                if expert is not None:
                    self._experts[layer] = max(self._experts[layer], expert + 1)
                    self._seen[quantity, layer] += 1
        if len(self._experts) > 1:
            self._experts.pop(None, None)  # a number for all layers, where each has its own
        self._arrange()
        return (self._experts, set(self._rows)) != before

    def learn_top_k(self, row: Row) -> None:
        """Where k is unknown, take it from the sums: counts ÷ tokens, or shares of tokens."""
        _, matrices, numbers = self._numbers(row)
        exact = "tokens_per_expert" in self._rows
        rows = matrices.get("tokens_per_expert" if exact else "share", ())
        known = [row for row in rows if row is not None]
        tokens = numbers.get("tokens", 0.0) if exact else 1.0
        if self.top_k is not None or not known or not 0 < tokens < math.inf:
            return
        sums = [sum(row) / tokens for row in known]
        k, experts = sums[0], min(map(len, known))
        if exact:
            is_possible = 1.0 <= k < experts
        else:  # shares that sum to 1 are shares of all choices
            is_possible = 1.5 < k < experts and max(map(max, known)) <= 1.0
        if is_possible and all(abs(one - round(k)) <= 0.01 for one in sums):
            self.top_k = round(k)

    def _arrange(self) -> None:
        """Which numbers make a record; none for a row with an expert that never appeared."""
        counted = map(self._source.keys.get, (f"{name}/0" for name in self._source.keys.counted))
        self._cut = {target[:2] for target in counted if target} & self._seen.keys()
        most = max(self._num_experts, *self._experts.values(), 0)
        if most * len(self._cut) > MAX_NUMBERS:
            self._cut = set()
        self._experts |= {layer: most for _, layer in self._cut}
        layers = self._layers
        self._wanted: list[Target] = []
        self._planned: list[Target] | None = None
        matrices = {quantity for quantity, _ in self._seen}
        self._rows = {
            name: [self._part(self._row_of(name, layer)) for layer in layers] for name in matrices
        }
        self._columns = {
            name: self._part(Target(name, layer) for layer in layers)
            for name in ROUTER_QUANTITIES
            if name not in STEP_QUANTITIES or layers != [None]
        }
        self._steps = {name: self._part([Target(name)]).start for name in STEP_QUANTITIES}

    def _part(self, targets: Iterable[Target]) -> slice:
        """The place of these numbers among all that make a record."""
        start = len(self._wanted)
        self._wanted += targets
        return slice(start, len(self._wanted))

    def _row_of(self, quantity: str, layer: int | None) -> list[Target]:
        size = max(self._num_experts, self._experts[layer])
        is_whole = self._seen[quantity, layer] >= size or (quantity, layer) in self._cut
        return [Target(quantity, layer, expert) for expert in range(size)] if is_whole else []

    @property
    def _layers(self) -> list[int | None]:
        return sorted(self._experts, key=lambda layer: -1 if layer is None else layer)

    def header(self, **facts: Any) -> Record:
        """The run record; ``facts``: what is not in the rows, as in ``run_record``."""
        layers, gates = self._layers, self._source.keys.of_gates
        names = [f"{'gate ' if gates else 'L'}{layer}" for layer in layers]
        counts = self._source.counts
        for quantity, kind in (("tokens_per_expert", "exact"), ("share", "shares")):
            if quantity in self._rows:
                counts = counts or kind
        return run_record(
            depths=[layer or 0 for layer in layers],
            experts=[max(self._num_experts, self._experts[layer]) for layer in layers],
            top_k=self.top_k,
            names=["all layers"] if layers == [None] else names,
            counts=counts or "none",
            profile=self._request.profile or "pretrain",
            layer_order="unknown" if gates else "",  # see keys.Rule
            **facts,
        )

    def record(self, row: Row) -> Record:
        router, matrices, numbers = self._numbers(row)
        bias = matrices.get("expert_bias", ())
        tokens = numbers.get("tokens")
        if tokens is not None and tokens.is_integer():
            numbers["tokens"] = int(tokens)
        return step_record(
            row.step,
            self._counts(matrices),
            expert_bias=bias if any(one is not None for one in bias) else None,
            router=router,
            time=row.time,
            **numbers,
        )

    def _counts(self, matrices: dict[str, _Matrix]) -> list[list[int] | None] | None:
        """The tokens of every expert: as they were logged, or of the shares."""
        if "tokens_per_expert" in matrices:
            return list(map(_integers, matrices["tokens_per_expert"]))
        if "share" not in matrices:
            return None
        loads = matrices["share"]
        if self._source.keys.of_gates:
            loads = [one if one and abs(sum(one) / len(one) - 1) < _OFF else None for one in loads]
        return [None if one is None else counts_of_shares(one) for one in loads]

    def _numbers(self, row: Row) -> tuple[dict[str, Values], dict[str, _Matrix], dict[str, float]]:
        """Summaries, matrices (without a row where an expert is missing), numbers of the step."""
        if self._planned != row.targets:
            row = self._filled_up(row) if self._cut else row
            self._plan(row.targets)
        values: list[Any] = [*row.numbers, None]
        for at, target in self._changed:
            values[at] = _final(target, values[at])
        found = list(self._ordered(values))
        return (
            {name: found[part] for name, part in self._parts.items()},
            {
                name: [None if part is None else found[part] for part in rows]
                for name, rows in self._matrices.items()
            },
            {name: found[at] for name, at in self._singles.items()},
        )

    def _filled_up(self, row: Row) -> Row:
        """Experts that the histogram of a step lacks have no tokens."""
        found = dict(row.values)
        for quantity, layer in self._cut.intersection(target[:2] for target in row.targets):
            for expert in range(self._experts[layer]):
                found.setdefault(Target(quantity, layer, expert), 0.0)
        return Row(row.step, row.time, found.items())

    def _plan(self, targets: list[Target]) -> None:
        """Of two readings of the same quantity the later one counts."""
        self._planned = targets
        place = {target: at for at, target in enumerate(targets)}
        self._changed = [(place[one], one) for one in self._shifted if one in place]
        if self._changed:
            place = {self._shifted.get(target, target): at for target, at in place.items()}
        order = list(map(place.get, self._wanted, repeat(-1)))
        self._parts = {n: at for n, at in self._columns.items() if max(order[at], default=-1) >= 0}
        self._matrices = {
            name: [at if min(order[at], default=-1) >= 0 else None for at in rows]
            for name, rows in self._rows.items()
        }
        self._singles = {name: at for name, at in self._steps.items() if order[at] >= 0}
        self._ordered = itemgetter(*order, -1, -1)


def _final(target: Target, value: float) -> float:
    if target.quantity == LOAD_ENTROPY:
        return math.exp(min(value, _MOST_NATS))
    return value + target.plus


def _integers(row: Sequence[float] | None) -> list[int] | None:
    if row is None or not (min(row) >= 0 and max(row) <= 2**53) or math.isnan(sum(row)):
        return None
    return list(map(round, row))
