"""The layout of a run: which named number is in which row of the run log.

The routers are those of the steps that were seen so far. If a layer or an expert appears later the
layout grows, and all steps are recorded again: in the earlier ones such an expert has no tokens.
Most steps have the same targets in the same order: it is planned once what goes where.

verl logs MaxVio of all hidden layers. A dense one has E − 1 in every step, as if all tokens chose
one expert: it is left out.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, repeat
from operator import itemgetter
from typing import Any

from microscope_tui.runlog import Values, safe_text
from microscope_tui.sources.keys import (
    BARE_TOKENS,
    LOAD_ENTROPY,
    LOSSES,
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
"""Distinct numbers of a run; those of a hostile file beyond are left out."""
_OFF = 1e-3
"""How far the mean load of a whole row may be from 1; rounding leaves far less."""
_MOST_NATS = 700.0  # more overflow
_CLOSE = 1.5
"""Bounds of the effective experts with a larger ratio give no value."""
_PROVING = 3
"""Lines in which counts ÷ tokens must be the same whole number."""
_Matrix = Sequence[Sequence[float] | None]


class Layout:
    """Which layers and experts a run of another tool has, learned from its rows.

    It only grows; a header is due whenever it does.
    """

    def __init__(self, request: SourceRequest, source: RowReader) -> None:
        self._request = request
        self._source = source
        config = source.config
        self._num_experts = request.num_experts or config_number(config, NUM_EXPERTS) or 0
        chosen = request.top_k or config_number(config, TOP_K)
        self.top_k = 1 if source.counts == "top1" else chosen
        self._experts_in_all = self._num_experts  # also known from dense layers
        self._experts: dict[int | None, int] = {}  # by layer: the number of experts seen
        self._known: set[Target] = set()
        self._unseen: set[Target] = set()  # counts that only later steps have
        self._seen: Counter[tuple[str, int | None]] = Counter()  # experts of a row of a matrix
        self._shifted: dict[Target, Target] = {}
        self._role = (source.keys.roles() or [""])[0]
        self._has_vio = any(one and one.quantity == "min_vio" for one in source.keys.values())
        self._highest: dict[int | None, float] = {}  # load of an expert
        self._whole: dict[int | None, float] = {}  # where one has all tokens in every step; else 0
        self._dense: set[int | None] = set()
        self.remarks: list[str] = []
        """What of the log is left out, and what to do."""
        self._cut: set[tuple[str, int | None]] = set()
        """Rows of lists of counts: they may end where an expert has tokens."""
        self._ratios: dict[int, list[float]] = {}  # counts ÷ bare tokens, by step
        self._divisor = ""  # the tokens that gave k
        self._arrange()

    @property
    def is_learning(self) -> bool:
        """Whether k may follow from the next lines."""
        return self.top_k is None and 0 < len(self._ratios) < _PROVING

    def grow(self, row: Row) -> bool:
        """Add the layers and experts of one step; true if there are new ones."""
        dense = self._find_dense(row) if self._has_vio else self._dense
        is_known = self._planned == row.targets or self._known.issuperset(row.targets)
        if is_known and dense == self._dense:
            return False
        before = dict(self._experts), set(self._rows), self._dense
        self._dense = dense
        inferred = int(max(self._whole.values())) if dense and (self.top_k or 1) > 1 else 0
        self._experts_in_all = self._num_experts or inferred
        for target in set(row.targets) - self._known:
            if len(self._known) >= MAX_NUMBERS:
                break
            self._known.add(target)
            quantity, layer, expert, *_ = target
            if not self._is_read(target):
                continue
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
        return (self._experts, set(self._rows), self._dense) != before

    def _is_read(self, target: Target) -> bool:
        return target.role == self._role or not target.has_role

    def _find_dense(self, row: Row) -> set[int | None]:
        """Layers with MaxVio E − 1 in all steps, if the others agree: with k choices of a token no
        expert has a load above E ÷ k."""
        cells = dict(row.values)
        for target, least in row.values:
            if target.quantity != "min_vio" or not self._is_read(target):
                continue
            load = 1.0 + cells.get(target._replace(quantity="max_vio"), math.inf)
            whole = load if least == -1.0 and load.is_integer() else 0.0
            if self._whole.setdefault(target.layer, whole) != whole:
                self._whole[target.layer] = 0.0
            self._highest[target.layer] = max(load, self._highest.get(target.layer, 0.0))
        experts = self._num_experts or max(self._whole.values(), default=0.0)
        dense = {layer for layer, whole in self._whole.items() if 1 < whole == experts}
        others = [load for layer, load in self._highest.items() if layer not in dense]
        agree = bool(others) and max(others) <= experts / (self.top_k or 1)
        return dense if agree else set()

    def _remark(self) -> list[str]:
        found = []
        if self._dense:
            unsure = {None: ": give --top-k", 1: ": with k = 1 both look the same"}.get(self.top_k)
            kind = "dense or wholly collapsed" if unsure else "dense"
            names = ", ".join(sorted(f"L{layer}" for layer in self._dense))
            vio = max(self._whole.values()) - 1
            found.append(f"{kind}, left out: {names} (MaxVio {vio:g} in every step){unsure or ''}")
        elif self._has_vio and not self._experts_in_all:
            found.append("no balance c: give --num-experts")
        roles = self._source.keys.roles()
        others = ", ".join(role or "no role" for role in roles if role != self._role)
        if others:
            read = self._role or "no role"
            found.append(f"routers of {read} are shown, not of {others}: --map chooses")
        return found + self._source_of_k()

    def _source_of_k(self) -> list[str]:
        divisor = Target(self._divisor if self.top_k else "")
        keys = [key for key, one in self._source.keys.items() if one == divisor][:1]
        end = "if that is of one rank, give --top-k"
        return [f"k = {self.top_k} is counts ÷ {safe_text(key, 60)}; {end}" for key in keys]

    def learn_top_k(self, row: Row) -> bool:
        """Where k is unknown, take it from the sums: counts ÷ tokens, or shares of tokens.

        True if it is known from here on. A bare column ``tokens`` counts if the first lines agree.
        """
        _, matrices, numbers = self._numbers(row)
        exact = "tokens_per_expert" in self._rows
        rows = matrices.get("tokens_per_expert" if exact else "share", ())
        known = [row for row in rows if row is not None]
        name = "tokens" if "tokens" in numbers else BARE_TOKENS
        tokens = numbers.get(name, 0.0) if exact else 1.0
        if self.top_k is not None or not known or not 0 < tokens < math.inf:
            return False
        sums = [sum(row) / tokens for row in known]
        if exact:
            self._divisor = name
        if self._divisor == BARE_TOKENS:
            self._ratios[row.step] = sums
            sums = [*chain(*self._ratios.values())]
            if len(self._ratios) < _PROVING:
                return False
        self.top_k = _k_of(sums, known, exact)
        return self.top_k is not None

    def _arrange(self) -> None:
        """Which numbers make a record; none for a row with an expert that never appeared."""
        keys = self._source.keys
        lists = (f"{name}/0" for name, kind in keys.objects.items() if kind == "list")
        found = {target[:2] for target in map(keys.get, lists) if target} & self._seen.keys()
        self._cut = {row for row in found if row[0] == "tokens_per_expert"}
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
        names = (*STEP_QUANTITIES, BARE_TOKENS, *LOSSES)
        self._steps = {name: self._part([Target(name)]).start for name in names}

    def _part(self, targets: Iterable[Target]) -> slice:
        start = len(self._wanted)
        self._wanted += targets
        return slice(start, len(self._wanted))

    def _row_of(self, quantity: str, layer: int | None) -> list[Target]:
        size = max(self._experts_in_all, self._experts[layer])
        is_whole = self._seen[quantity, layer] >= size or (quantity, layer) in self._cut
        return [Target(quantity, layer, expert) for expert in range(size)] if is_whole else []

    @property
    def _layers(self) -> list[int | None]:
        layers = self._experts.keys() - self._dense
        return sorted(layers, key=lambda layer: -1 if layer is None else layer)

    def begin_again(self) -> None:
        """The next step is the first one of the run, for the second time."""
        counts = ("share", "tokens_per_expert")
        self._unseen = {one for one in self._known if one.quantity in counts}
        self._planned = []

    def header(self, **facts: Any) -> Record:
        """The run record; ``facts``: what is not in the rows, as in ``run_record``."""
        self.remarks = self._remark()
        layers = self._layers
        names = [f"L{layer}" for layer in layers]
        order = ""
        if self._source.keys.of_gates:
            names = [f"gate {layer}" for layer in layers]
            order = "unknown"  # see keys.Rule
        if layers == [None]:
            names = ["all layers"]
        counts = self._source.counts
        for quantity, kind in (("tokens_per_expert", "exact"), ("share", "shares")):
            if quantity in self._rows:
                counts = counts or kind
        return run_record(
            depths=[layer or 0 for layer in layers],
            experts=[max(self._experts_in_all, self._experts[layer]) for layer in layers],
            top_k=self.top_k or self._request.confirmed_top_k,
            names=names,
            counts=counts or "none",
            profile=self._request.profile or "pretrain",
            layer_order=order,
            **facts,
        )

    def record(self, row: Row) -> Record:
        """The ``step`` record of a row; the layout must have grown by it before (``grow``)."""
        self._unseen = self._unseen and self._unseen.difference(row.targets)
        router, matrices, numbers = self._numbers(row)
        numbers.pop(BARE_TOKENS, None)
        bias = matrices.get("expert_bias", ())
        tokens = numbers.get("tokens")
        if tokens is not None and tokens.is_integer():
            numbers["tokens"] = int(tokens)
        counts = self._counts(matrices)
        if tokens is None and "tokens_per_expert" in matrices:
            numbers |= self._tokens_of(counts or ())
        losses = {name: numbers.pop(name) for name in LOSSES if name in numbers}
        return step_record(
            row.step,
            counts,
            expert_bias=bias if any(one is not None for one in bias) else None,
            router=router,
            time=row.time,
            losses=losses or None,
            **numbers,
        )

    def _tokens_of(self, counts: Sequence[Sequence[int] | None]) -> dict[str, int]:
        """How many tokens chose k different experts each, if that gives all of these counts."""
        top_k = self.top_k or self._request.confirmed_top_k
        rows = [row for row in counts if row]
        sums = set(map(sum, rows))
        if not top_k or len(sums) != 1:
            return {}
        tokens, rest = divmod(sums.pop(), top_k)
        fits = not rest and max(map(max, rows)) <= tokens
        return {"tokens": tokens} if fits else {}

    def _counts(self, matrices: dict[str, _Matrix]) -> list[list[int] | None] | None:
        if "tokens_per_expert" in matrices:
            return list(map(_integers, matrices["tokens_per_expert"]))
        if "share" not in matrices:
            return None
        return list(map(self._counts_of, matrices["share"]))

    def _counts_of(self, loads: Sequence[float] | None) -> list[int] | None:
        if not loads:
            return None
        if self._source.keys.of_gates and not abs(sum(loads) / len(loads) - 1) < _OFF:
            return None  # without an expert
        return counts_of_shares(loads)

    def _numbers(self, row: Row) -> tuple[dict[str, Values], dict[str, _Matrix], dict[str, float]]:
        """Summaries, matrices (without a row where an expert is missing), numbers of the step."""
        if self._planned != row.targets:
            if self._cut or self._unseen:
                row = self._filled_up(row)
            self._plan(row.targets)
        values: list[Any] = [*row.numbers, None]
        for at, target, beside in self._changed:
            load = math.nan
            if beside >= 0:
                load = 1.0 + row.numbers[beside]
            values[at] = _final(target, row.numbers[at], load, self._experts_in_all)
        found = list(self._ordered(values))
        return (
            {name: found[part] for name, part in self._parts.items()},
            {name: [found[part] for part in rows] for name, rows in self._matrices.items()},
            {name: found[at] for name, at in self._singles.items()},
        )

    def _filled_up(self, row: Row) -> Row:
        """Experts that the list of a step lacks have no tokens, nor have those that only later
        steps have."""
        rows = {target[:2] for target in row.targets}
        late = (target for target in self._unseen if target[:2] in rows)
        found = dict.fromkeys(late, 0.0) | dict(row.values)
        for quantity, layer in self._cut & rows:
            for expert in range(max(self._experts_in_all, self._experts[layer])):
                found.setdefault(Target(quantity, layer, expert), 0.0)
        return Row(row.step, row.time, found.items())

    def _plan(self, targets: list[Target]) -> None:
        """Of two readings of the same quantity the later one counts."""
        self._planned = targets
        place = {target: at for at, target in enumerate(targets) if self._is_read(target)}
        self._changed = [
            (place[one], one, place.get(one._replace(quantity="max_vio"), -1))
            for one in self._shifted
            if one in place
        ]
        if self._changed:
            place = {self._shifted.get(target, target): at for target, at in place.items()}
        order = list(map(place.get, self._wanted, repeat(-1)))
        self._parts = {n: at for n, at in self._columns.items() if max(order[at], default=-1) >= 0}
        self._matrices = {
            name: [_found_at(order, part) for part in rows] for name, rows in self._rows.items()
        }
        self._singles = {name: at for name, at in self._steps.items() if order[at] >= 0}
        self._ordered = itemgetter(*order, -1, -1)


def _found_at(order: Sequence[int], part: slice) -> slice | int:
    """The place of a row; -1, where there is no value, if it lacks an expert."""
    if min(order[part], default=-1) < 0:
        return -1
    return part


def _k_of(sums: Sequence[float], rows: Sequence[Sequence[float]], exact: bool) -> int | None:
    k = sums[0]
    is_possible = (1.0 if exact else 1.5) <= k < min(map(len, rows))
    # Shares that sum to 1 are shares of all choices.
    is_possible &= exact or max(map(max, rows)) <= 1.0
    is_k = is_possible and all(abs(one - round(k)) <= 0.01 for one in sums)
    return round(k) if is_k else None


def _final(target: Target, value: float, load: float, experts: int) -> float | None:
    """``load``: the highest of the layer; ``experts``: 0 if unknown."""
    if target.quantity == LOAD_ENTROPY:
        return math.exp(min(value, _MOST_NATS))
    if target.quantity == "min_vio":
        return int(value <= -1.0)  # at least one
    if target.quantity == "cold_frac":
        return round(value * experts) if experts and 0 <= value <= 1 else None
    if target.quantity == "avg_vio":
        return _effective(value / 2, load, experts)
    return value + 1.0 if target.quantity == "max_vio" else value


def _effective(moved: float, load: float, experts: int) -> float | None:
    """The upper bound for a total variation of ``moved``, unless the lower one is far below: all
    that moved went to experts with the highest load."""
    if not (0 <= moved < 1 and 1 < load <= experts):
        return None
    least = math.exp(-moved * load * math.log(load) / (load - 1))
    vajda = (1 - moved) / (1 + moved) * math.exp(2 * moved / (1 + moved))
    most = min(math.exp(-2 * moved**2), vajda)
    return experts * most if most <= _CLOSE * least else None


def _integers(row: Sequence[float] | None) -> list[int] | None:
    if row is None or not (min(row) >= 0 and max(row) <= 2**53) or math.isnan(sum(row)):
        return None
    return list(map(round, row))
