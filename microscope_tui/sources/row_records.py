"""Rows of named numbers become records of the run log, and records its lines.

Rows of one step are merged: loggers write several. If the rest of a step comes after the step was
returned, the step is written again, behind a run record with ``resumed_at_step``. The routers are
those of the first steps that have readings of routers; if a layer or an expert appears later, a new
run record follows, so that no number ends up in the wrong row.

Everything above reads log lines only: ``TranslatedLog`` writes those of a reader into an unnamed
spool file, so that earlier steps can be read again.
"""

import math
import shlex
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from operator import itemgetter
from typing import Any

from msgspec import UNSET

from microscope_tui import measures
from microscope_tui.runlog import (
    Chunk,
    RunHeader,
    Spool,
    SpooledLog,
    Values,
    encode_record,
    one_or_each,
    safe_text,
)
from microscope_tui.sources import proposals
from microscope_tui.sources.keys import (
    LOAD_ENTROPY,
    NUM_EXPERTS,
    ROUTER_QUANTITIES,
    STEP_QUANTITIES,
    TOP_K,
    Keys,
    Target,
    config_number,
)
from microscope_tui.sources.reader import (
    Batch,
    Record,
    RecordReader,
    Row,
    RowReader,
    SourceRequest,
    Unreadable,
)

LOOK_AHEAD = 2
"""Steps with router readings that are collected before the header is written."""
MOST_WAITING = 4096
"""Steps before the first router reading that are kept."""
COMPLETE_AFTER_S = 0.4
"""The last step counts as complete if nothing was written for this long."""
MAX_NUMBERS = 1 << 20
"""Distinct numbers of a run; further ones are left out: a hostile file must not fill the memory."""
MOST_PATIENCE_S = 60.0
"""Longest wait for the rest of a step, after one came late."""
SHARES_SUM = 1_000_000
"""What the counts of a router add up to if only shares are known."""
_OFF = 1e-3
"""How far the mean load of a whole row may be from 1; rounding leaves far less."""
_MOST_NATS = 700.0  # more overflow
_MOST_PARTS = 64  # rows of one step, before they are merged
Counts = Sequence[int]
_Matrix = Sequence[Sequence[float] | None]


class RowRecords(RecordReader):
    """The records of a source of named numbers."""

    def __init__(self, rows: RowReader, name: str, writer: str, request: SourceRequest) -> None:
        """``name``: of the run, if the source has none; ``writer``: for the header."""
        super().__init__(rows.path, name, request)
        self._source, self._writer = rows, writer
        self._asked = request
        self._forget()

    def _forget(self) -> None:
        """Begin without what was learnt of the keys."""
        self._request, self._unconfirmed = self._asked, ""
        self._surveyed: object = None  # the state of the source when its keys were looked at
        self._survey_from = 0.0
        self.proposed = None
        self._start()

    def _start(self) -> None:
        self._parts: list[Row] = []  # of the step that may still get more rows
        self._grew = time.monotonic()
        self._layout: _Layout | None = None
        self._waiting: deque[Row] = deque(maxlen=MOST_WAITING)
        self._ahead = 0  # steps with router readings among those that wait
        self._early: Row | None = None  # the last step, returned because nothing more came
        self._again = False  # the open step is that one: its rest came late
        self._patience_s = 0.0  # a logger that writes a step in parts will do so again
        self._ended = False
        self._damage: Unreadable | None = None  # raised after what comes before it was returned
        self._checked = 0  # keys at the last look for rules that match none
        self.missing = ""

    def wait_s(self) -> float:
        """See ``RecordReader``."""
        return 0.0 if not self._parts else COMPLETE_AFTER_S / 10

    def read(self, max_bytes: int = 1 << 20) -> Batch:
        """See ``RecordReader``."""
        if self._damage is not None:
            damage, self._damage = self._damage, None
            raise damage
        try:
            found = self._source.read(max_bytes)
        except Unreadable as damage:
            if records := self._rest():
                self._damage, self.exhausted = damage, False
                return Batch(records)
            raise
        if found.restarted:
            self._source = self._source.again(Keys(self._asked.rules, self._asked.confirmed))
            self._forget()
            self.exhausted = False
            return Batch((), restarted=True)
        records = [record for row in found.rows for record in self._take(row)]
        self.report(self._source)
        self.defects = self._source.defects
        if found.rows:
            self._grew = time.monotonic()
        if self._learn_keys():
            return Batch()
        keys = self._source.keys
        if self._layout is not None and self.exhausted and len(keys) != self._checked:
            self._checked, self.missing = len(keys), proposals.unmatched(keys)
        if self.exhausted and (self._parts or self._waiting):
            if found.ended or self._is_quiet():
                records += self._rest()
            else:
                self.exhausted = False  # more rows may follow for the last step
        if found.ended and not self._ended and self._layout is not None:
            records.append({"kind": "event", "event": "end", "reason": found.ended})
            self._ended = True
        return Batch(records)

    def sample(self, count: int) -> Sequence[Record]:
        """See ``RecordReader``."""
        scratch = RowRecords(self._source, self._name, self._writer, self._request)
        rows = sorted(self._source.sample(count), key=lambda row: row.step)
        records = [record for row in rows for record in scratch._take(row)]
        return [*records, *scratch._close(), *scratch._flush()]

    def _learn_keys(self) -> bool:
        """Look at keys of which none is known as a router; true to read again with a proposal."""
        source, request = self._source, self._request
        enough = self.exhausted or self.offset >= proposals.SURVEYED_BYTES
        if self._layout is not None or source.keys.has_routers or not enough:
            return False
        begun, state = time.monotonic(), (self.offset, self.modified)
        if state == self._surveyed or begun < self._survey_from:
            return False
        found = proposals.survey(source)
        self._surveyed = state
        self._survey_from = begun + max(1.0, 10 * (time.monotonic() - begun))
        proposal = proposals.propose(found)
        proposal, top_k = self._tried(proposal, found) if proposal is not None else (None, None)
        self.proposed = proposal.applied(request) if proposal is not None else None
        if found.values:
            asked = self._writer, request, top_k
            self.missing = proposals.described(found, proposal, source, *asked)
        if proposal is None or self.proposed is None or not proposal.certain or request.rules:
            return False
        self._source = source.again(Keys(request.rules, self.proposed.confirmed))
        self._request, self._unconfirmed = self.proposed, shlex.join(proposal.options)
        self._start()
        self.exhausted = False
        return True

    def _tried(
        self, proposal: proposals.Proposal, found: proposals.Survey
    ) -> tuple[proposals.Proposal | None, int | None]:
        """The proposal if it gives loads, tried on the last number of every key, and k."""
        request = proposal.applied(self._request)
        keys, layout = Keys((), request.confirmed), _Layout(request, self._source)
        latest = [(keys[key], [*series.values()][-1]) for key, series in found.values.items()]
        row = Row(1, None, [(target, value) for target, value in latest if target is not None])
        layout.grow(row)
        layout.learn_top_k(row)
        rows = layout.record(row).get("tokens_per_expert") or [None]
        return (None if None in rows else proposal), layout.top_k

    def _rest(self) -> list[Record]:
        """The open step, and those that wait for the header."""
        if self._parts:
            self._early = _merged(self._parts)
        return [*self._close(), *self._flush()]

    def _is_quiet(self) -> bool:
        patience_s = max(COMPLETE_AFTER_S, self._patience_s)
        at_rest = time.time() - (self.modified or 0.0) >= patience_s
        return at_rest or time.monotonic() - self._grew >= patience_s

    def _take(self, row: Row) -> Iterator[Record]:
        if not self._parts or row.step != self._parts[0].step:
            yield from self._close()
            self._open(row)
        elif len(self._parts) == _MOST_PARTS:
            self._parts = [_merged(self._parts)]
        self._parts.append(row)

    def _open(self, row: Row) -> None:
        """Begin a step, or continue the one that was returned too early."""
        early, self._early = self._early, None
        if early is None or early.step != row.step:
            return
        if set(early.targets).isdisjoint(row.targets):  # not a resumed run
            late_s = time.monotonic() - self._grew
            self._patience_s = min(MOST_PATIENCE_S, max(self._patience_s, 2 * late_s))
        if self._layout is not None and not row.step:
            return  # the format has no restart at step 0: keep what was returned
        self._parts = [early]
        if self._layout is not None:
            self._again = True
        elif self._waiting and self._waiting[-1].step == row.step:
            self._waiting.pop()
            self._ahead -= early.of_router

    def _close(self) -> Iterator[Record]:
        """The open step is complete."""
        if not self._parts:
            return
        row, self._parts = _merged(self._parts), []
        again, self._again = self._again, False
        if self._layout is None:
            self._waiting.append(row)
            self._ahead += row.of_router
            if self._ahead >= LOOK_AHEAD:
                yield from self._flush()
        else:
            grew = self._layout.grow(row)
            if again:
                yield self._header() | {"resumed_at_step": row.step}
            elif grew:
                yield self._header()
            yield self._layout.record(row)

    def _flush(self) -> Iterator[Record]:
        """Write the header and the steps that waited for it."""
        if not self._ahead:
            return
        if self._layout is None:
            self._layout = _Layout(self._request, self._source)
            for row in self._waiting:
                self._layout.grow(row)
                self._layout.learn_top_k(row)
            yield self._header()
        while self._waiting:
            yield self._layout.record(self._waiting.popleft())

    def _header(self) -> Record:
        assert self._layout is not None
        name = self._source.name or self._name
        return self._layout.header(name, self._writer, self._unconfirmed)


def _merged(parts: Sequence[Row]) -> Row:
    """The rows of one step as one; of two readings the later one counts."""
    if len(parts) == 1:
        return parts[0]
    cells = {target: number for row in parts for target, number in row.values}
    return Row(parts[0].step, parts[0].time, cells.items())


class _Layout:
    """Which number is in which row of the run log."""

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
        self._rows: dict[str, list[slice]] = {}
        self._planned: list[Target] | None = None

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
                seen = self._experts.get(layer, 0)
                self._experts[layer] = max(seen, 0 if expert is None else expert + 1)
                self._seen[quantity, layer] += expert is not None
        if len(self._experts) > 1:
            self._experts.pop(None, None)  # a number for all layers, where each has its own
        self._arrange()
        return (self._experts, set(self._rows)) != before

    def learn_top_k(self, row: Row) -> None:
        """Where k is unknown, take it from the sums: counts ÷ tokens, or shares of tokens."""
        exact = "tokens_per_expert" in self._rows
        _, matrices, numbers = self._numbers(row)
        rows = matrices.get("tokens_per_expert" if exact else "share", ())
        tokens = numbers.get("tokens", 0.0) if exact else 1.0
        known = [row for row in rows if row is not None]
        if self.top_k is not None or not known or not 0 < tokens < math.inf:
            return
        sums = [sum(row) / tokens for row in known]
        k, experts = sums[0], min(map(len, known))
        # Shares that sum to 1 are shares of all choices.
        whole = 1.0 <= k < experts if exact else 1.5 < k < experts and max(map(max, known)) <= 1.0
        if whole and all(abs(one - round(k)) <= 0.01 for one in sums):
            self.top_k = round(k)

    def _arrange(self) -> None:
        """Which numbers make a record; none for a row with an expert that never appeared."""
        layers, self._wanted, self._planned = self._layers, list[Target](), None

        def part(row: Sequence[Target]) -> slice:
            self._wanted += row
            return slice(len(self._wanted) - len(row), len(self._wanted))

        matrices = {quantity for (quantity, _), experts in self._seen.items() if experts}
        self._rows = {name: [part(self._row_of(name, at)) for at in layers] for name in matrices}
        self._columns = {
            name: part([Target(name, at) for at in layers])
            for name in ROUTER_QUANTITIES
            if name not in STEP_QUANTITIES or layers != [None]
        }
        self._steps = {name: part([Target(name)]).start for name in STEP_QUANTITIES}

    def _row_of(self, quantity: str, layer: int | None) -> list[Target]:
        size = max(self._num_experts, self._experts[layer])
        is_whole = self._seen[quantity, layer] >= size
        return [Target(quantity, layer, expert) for expert in range(size)] if is_whole else []

    @property
    def _layers(self) -> list[int | None]:
        return sorted(self._experts, key=lambda layer: -1 if layer is None else layer)

    def header(self, run: str, writer: str, unconfirmed: str = "") -> Record:
        layers, gates = self._layers, self._source.keys.of_gates
        names = [f"{'gate ' if gates else 'L'}{layer}" for layer in layers]
        exact = "tokens_per_expert" in self._rows
        return run_record(
            run,
            [layer or 0 for layer in layers],
            [max(self._num_experts, self._experts[layer]) for layer in layers],
            self.top_k,
            names=["all layers"] if layers == [None] else names,
            writer=writer,
            counts=self._source.counts
            or ("exact" if exact else "shares" if "share" in self._rows else "none"),
            profile=self._request.profile or "pretrain",
            layer_order="unknown" if gates else "",  # see keys.Rule
            unconfirmed=unconfirmed,
        )

    def record(self, row: Row) -> Record:
        router, matrices, numbers = self._numbers(row)
        counts: Sequence[Sequence[int] | None] | None = None
        if "tokens_per_expert" in matrices:
            counts = list(map(_integers, matrices["tokens_per_expert"]))
        elif "share" in matrices:
            loads = matrices["share"]
            if self._source.keys.of_gates:
                loads = [
                    one if one and abs(sum(one) / len(one) - 1) < _OFF else None for one in loads
                ]
            counts = [None if one is None else counts_of_shares(one) for one in loads]
        bias = matrices.get("expert_bias", ())
        if (tokens := numbers.get("tokens")) is not None and tokens.is_integer():
            numbers["tokens"] = int(tokens)
        return step_record(
            row.step,
            counts,
            expert_bias=bias if any(one is not None for one in bias) else None,
            router=router,
            time=row.time,
            **numbers,
        )

    def _numbers(self, row: Row) -> tuple[dict[str, Values], dict[str, _Matrix], dict[str, float]]:
        """Summaries of routers, matrices (no row where an expert is missing), numbers of the step.

        Most steps have the same targets in the same order: it is planned once what goes where.
        """
        if self._planned != row.targets:
            self._plan(row.targets)
        values: list[Any] = [*row.numbers, None]
        for at, target in self._changed:
            values[at] = _final(target, values[at])
        found = list(self._ordered(values))
        return (
            {name: found[part] for name, part in self._parts.items()},
            {name: [at and found[at] for at in rows] for name, rows in self._matrices.items()},
            {name: found[at] for name, at in self._singles.items()},
        )

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
    """A reading as the quantity ``target.final``."""
    if target.quantity == LOAD_ENTROPY:
        return math.exp(min(value, _MOST_NATS))
    return value + target.plus


def _integers(row: Sequence[float] | None) -> list[int] | None:
    if row is None or not (min(row) >= 0 and max(row) <= 2**53) or math.isnan(sum(row)):
        return None
    return list(map(round, row))


def run_record(
    run: str,
    depths: Sequence[int],
    experts: Sequence[int],
    top_k: int | None,
    *,
    writer: str,
    counts: str,
    names: Sequence[str] | None = None,
    profile: str = "pretrain",
    time: float | None = None,
    planned_steps: int | None = None,
    note: str = "",
    layer_order: str = "",
    unconfirmed: str = "",
    ranks: int = 1,
    hidden_layers: int = 0,
) -> Record:
    """The ``run`` record of a source.

    Args:
        depths: of every router, in forward order.
        experts: number of experts of every router; 0 where unknown.
        top_k: choices per token; ``None`` if unknown.
        writer: what wrote the source, for example ``wandb``.
        counts: ``exact``, ``top1``, ``shares``, ``local_rank`` or ``none``.
        names: shown names of the routers, by default ``L{depth}``.
        profile: ``pretrain``, ``finetune`` or ``eval``.
        note: what limits these counts, in a few words.
        layer_order: ``unknown`` if the routers may be listed in another order than in the model.
        unconfirmed: the keys that were taken for loads of experts without asking.
        ranks: that share the experts of a layer.
        hidden_layers: of the model, dense ones included; 0 where unknown.
    """
    source: Record = {"writer": writer, "counts": counts, "note": note, "layer_order": layer_order}
    source["unconfirmed"] = safe_text(unconfirmed, 300)
    return RunHeader(
        run=safe_text(run, 120),
        time=UNSET if time is None else time,
        planned_steps=UNSET if planned_steps is None else planned_steps,
        profile=profile,
        model={
            "layers": list(depths),
            "layer_names": list(names) if names is not None else [f"L{depth}" for depth in depths],
            "num_experts": one_or_each(experts),
            "top_k": top_k,  # null: unknown
            **({"num_hidden_layers": hidden_layers} if hidden_layers else {}),
        },
        source={key: value for key, value in source.items() if value},
        expert_parallel_size=ranks if ranks > 1 else UNSET,
    ).to_json()


def step_record(
    step: int,
    tokens_per_expert: Sequence[Counts | None] | None = None,
    *,
    expert_bias: Sequence[Sequence[float] | None] | None = None,
    router: Mapping[str, Values] | None = None,
    **numbers: float | None,
) -> Record:
    """The record of one step.

    Args:
        step: number of the optimizer step, or of the forward pass.
        tokens_per_expert: a row of counts per router, ``None`` where one is unknown.
        expert_bias: the selection bias, in the same order.
        router: summaries that the source has; those that follow from the counts are derived.
        numbers: ``time``, ``loss``, ``tokens`` … as in the run log.
    """
    summaries = dict(router or {})
    rows = tokens_per_expert
    if rows is not None and any(row is not None for row in rows):
        derived = measures.summarise([row or [] for row in rows])
        for name, values in derived.items():
            given = summaries.get(name) or [None] * len(rows)
            both = zip(values, given, rows, strict=True)
            mixed = (value if row else other for value, other, row in both)
            summaries[name] = values if all(rows) else list(mixed)
    else:
        rows = None
    record: Record = {"kind": "step", "step": step, **numbers}
    record["router"] = summaries or None
    record["expert_bias"] = expert_bias and [row or [] for row in expert_bias]
    record["tokens_per_expert"] = rows
    return {key: value for key, value in record.items() if value is not None}


def counts_of_shares(shares: Sequence[float]) -> list[int] | None:
    """Shares (or loads: any multiple of them) as counts that sum to ``SHARES_SUM``.

    The remainders go to the largest fractions, so that no count is off by more than one. ``None``
    if they are not a distribution: negative, not finite, or all zero.
    """
    total = sum(shares)
    if not 0 < total < float("inf") or min(shares) < 0:
        return None
    exact = [share / total * SHARES_SUM for share in shares]
    counts = [int(value) for value in exact]
    left = SHARES_SUM - sum(counts)
    by_fraction = sorted(range(len(exact)), key=lambda e: counts[e] - exact[e])
    for expert in by_fraction[:left]:
        counts[expert] += 1
    return counts


class TranslatedLog(SpooledLog):
    """The lines of a reader; ``offset`` and ``size`` in bytes of its source."""

    def __init__(self, reader: RecordReader) -> None:
        try:
            spool = Spool()
        except OSError:  # no folder for temporary files: earlier steps cannot be shown again
            spool = None
        super().__init__(reader.path, spool)
        self.translates = True
        self._reader = reader

    @property
    def proposed(self) -> SourceRequest | None:
        """How its unknown keys can be read."""
        return self._reader.proposed

    def wait_s(self) -> float:
        """See ``Source``."""
        return self._reader.wait_s()

    def sampled(self, count: int) -> bytes:
        """See ``Source``."""
        return b"".join(map(encode_record, self._reader.sample(count)))

    def read(self, max_bytes: int = 1 << 20) -> Chunk:
        """The lines of the next records; see ``RecordReader.read``."""
        reader = self._reader
        batch = reader.read(max_bytes)
        if batch.restarted and self.spool is not None:
            self.spool.clear()
        if reader.modified != self.modified and self.modified is not None:
            self.changed_at = time.monotonic()
        lines = b"".join(map(encode_record, batch.records))
        if self.spool is not None:
            self.spool.keep(lines)
        self.report(reader)
        self.defects, self.missing = reader.defects, reader.missing
        return Chunk(lines, batch.restarted)
