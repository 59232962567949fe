"""Rows of named numbers become records of the run log.

Rows of one step are merged: loggers write several. If the rest of a step comes after the step was
returned, the step is written again, behind a run record with ``resumed_at_step``. The routers are
those of the first steps that have readings of routers; if a layer or an expert appears later, a new
run record follows, so that no number ends up in the wrong row.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence

from microscope_tui.runlog import Values
from microscope_tui.sources.header import NUM_EXPERTS, TOP_K, Asked, config_number, run_record
from microscope_tui.sources.keys import ROUTER_QUANTITIES, STEP_QUANTITIES, Target
from microscope_tui.sources.reader import Batch, Record, RecordReader, Row, RowReader
from microscope_tui.sources.steps import counts_of_shares, step_record

LOOK_AHEAD = 2
"""Steps with router readings that are collected before the header is written."""
MOST_WAITING = 4096
"""Steps before the first router reading that are kept."""
COMPLETE_AFTER_S = 0.4
"""The last step counts as complete if nothing was written for this long."""
MAX_NUMBERS = 1 << 20
"""Distinct numbers of a run; further ones are left out: a hostile file must not fill the memory."""
MOST_PATIENCE_S = 60.0
"""The longest that is waited for the rest of a step, where it came late before."""
_OFF = 1e-3
"""How far the mean load of a whole row may be from 1; rounding leaves far less."""
_Cells = dict[Target, float]
_Step = tuple[int, float | None, _Cells]


class RowRecords(RecordReader):
    """The records of a source of named numbers."""

    def __init__(self, rows: RowReader, name: str, writer: str, asked: Asked) -> None:
        """``name``: of the run, where the source has none; ``writer``: for the header."""
        super().__init__()
        self._source, self._name, self._writer, self._asked = rows, name, writer, asked
        self._start()

    def _start(self) -> None:
        self._step: int | None = None  # the step that may still get more rows
        self._time: float | None = None
        self._cells: _Cells = {}
        self._grew = time.monotonic()
        self._layout: _Layout | None = None
        self._waiting: deque[_Step] = deque(maxlen=MOST_WAITING)
        self._ahead = 0  # steps with router readings among those that wait
        self._early: _Step | None = None  # the last step, returned because nothing more came
        self._again = False  # the open step is that one: its rest came late
        self._patience_s = 0.0  # a logger that writes a step in parts will do so again
        self._ended = False

    def wait_s(self) -> float:
        """See ``Progress``."""
        return 0.0 if self._step is None else COMPLETE_AFTER_S / 10

    def read(self, max_bytes: int = 1 << 20) -> Batch:
        """See ``RecordReader``."""
        found = self._source.read(max_bytes)
        if found.restarted:
            self._start()
        records = [record for row in found.rows for record in self._take(row)]
        source = self._source
        self.offset, self.size, self.deleted = source.offset, source.size, source.deleted
        self.modified, self.exhausted = source.modified, source.exhausted
        self.defects = source.defects
        if found.rows:
            self._grew = time.monotonic()
        if self.exhausted and (self._step is not None or self._waiting):
            if found.ended or self._is_quiet():
                if self._step is not None:
                    self._early = self._step, self._time, dict(self._cells)
                records += [*self._close(), *self._flush()]
            else:
                self.exhausted = False  # more rows may follow for the last step
        if found.ended and not self._ended and self._layout is not None:
            records.append({"kind": "event", "event": "end", "reason": found.ended})
            self._ended = True
        return Batch(records, found.restarted)

    def sample(self, count: int) -> Sequence[Record]:
        """See ``RecordReader``."""
        scratch = RowRecords(self._source, self._name, self._writer, self._asked)
        rows = sorted(self._source.sample(count), key=lambda row: row.step)
        records = [record for row in rows for record in scratch._take(row)]
        return [*records, *scratch._close(), *scratch._flush()]

    def _is_quiet(self) -> bool:
        patience_s = max(COMPLETE_AFTER_S, self._patience_s)
        at_rest = time.time() - (self.modified or 0.0) >= patience_s
        return at_rest or time.monotonic() - self._grew >= patience_s

    def _take(self, row: Row) -> Iterator[Record]:
        if row.step != self._step:
            yield from self._close()
            self._open(row)
        self._cells.update(row.values)

    def _open(self, row: Row) -> None:
        """Begin a step, or continue the one that was returned too early."""
        early, self._early = self._early, None
        self._step, self._time, self._cells = row.step, row.time, {}
        if early is None or early[0] != row.step:
            return
        if early[2].keys().isdisjoint(target for target, _ in row.values):  # not a resumed run
            late_s = time.monotonic() - self._grew
            self._patience_s = min(MOST_PATIENCE_S, max(self._patience_s, 2 * late_s))
        if self._layout is not None and not row.step:
            return  # the format has no restart at step 0: what was returned stands
        self._step, self._time, self._cells = early
        if self._layout is not None:
            self._again = True
        elif self._waiting and self._waiting[-1][0] == row.step:
            self._waiting.pop()
            self._ahead -= any(target.of_router for target in self._cells)

    def _close(self) -> Iterator[Record]:
        """The open step is complete."""
        if self._step is None:
            return
        step = self._step, self._time, self._cells
        again, self._again = self._again, False
        self._step, self._cells = None, {}
        if self._layout is None:
            self._waiting.append(step)
            self._ahead += any(target.of_router for target in step[2])
            if self._ahead >= LOOK_AHEAD:
                yield from self._flush()
        else:
            grew = self._layout.grow(step[2])
            if again:
                yield self._header() | {"resumed_at_step": step[0]}
            elif grew:
                yield self._header()
            yield self._layout.record(*step)

    def _flush(self) -> Iterator[Record]:
        """Write the header and the steps that waited for it."""
        if not self._ahead:
            return
        if self._layout is None:
            self._layout = _Layout(self._asked, self._source)
            for _, _, cells in self._waiting:
                self._layout.grow(cells)
            yield self._header()
        while self._waiting:
            yield self._layout.record(*self._waiting.popleft())

    def _header(self) -> Record:
        assert self._layout is not None
        return self._layout.header(self._source.name or self._name, self._writer)


class _Layout:
    """Which number is in which row of the run log."""

    def __init__(self, asked: Asked, source: RowReader) -> None:
        self._asked = asked
        self._source = source
        config = source.config
        self._num_experts = asked.num_experts or config_number(config, NUM_EXPERTS) or 0
        self._top_k = asked.top_k or config_number(config, TOP_K)
        self._experts: dict[int | None, int] = {}  # by layer: the number of experts seen
        self._known: set[Target] = set()
        self._seen: Counter[tuple[str, int | None]] = Counter()  # experts of a row of a matrix
        self._shifted: dict[Target, Target] = {}
        self._columns: dict[str, list[Target]] = {}
        self._rows: dict[str, list[list[Target]]] = {}

    def grow(self, cells: _Cells) -> bool:
        """Add the layers and experts of one step; true if there are new ones."""
        if cells.keys() <= self._known:
            return False
        before = dict(self._experts), set(self._rows)
        for target in cells.keys() - self._known:
            if len(self._known) >= MAX_NUMBERS:
                break
            self._known.add(target)
            quantity, layer, expert, plus = target
            if plus:
                self._shifted[target] = Target(quantity, layer, expert)
            if target.of_router:
                seen = self._experts.get(layer, 0)
                self._experts[layer] = max(seen, 0 if expert is None else expert + 1)
                self._seen[quantity, layer] += expert is not None
        if len(self._experts) > 1:
            self._experts.pop(None, None)  # a number for all layers, where each has its own
        self._arrange()
        return (self._experts, set(self._rows)) != before

    def _arrange(self) -> None:
        """Where the numbers of each row are; none for a row with an expert that never appeared."""
        layers = self._layers
        self._columns = {
            name: [Target(name, layer) for layer in layers]
            for name in ROUTER_QUANTITIES
            if name not in STEP_QUANTITIES or layers != [None]
        }
        matrices = {quantity for (quantity, _), experts in self._seen.items() if experts}
        self._rows = {
            quantity: [self._row_of(quantity, layer) for layer in layers] for quantity in matrices
        }

    def _row_of(self, quantity: str, layer: int | None) -> list[Target]:
        size = max(self._num_experts, self._experts[layer])
        is_whole = self._seen[quantity, layer] >= size
        return [Target(quantity, layer, expert) for expert in range(size)] if is_whole else []

    @property
    def _layers(self) -> list[int | None]:
        return sorted(self._experts, key=lambda layer: -1 if layer is None else layer)

    def header(self, run: str, writer: str) -> Record:
        layers = self._layers
        one = layers == [None]
        exact = "tokens_per_expert" in self._rows
        return run_record(
            run,
            [layer or 0 for layer in layers],
            [max(self._num_experts, self._experts[layer]) for layer in layers],
            self._top_k,
            names=["all layers"] if one else self._names,
            writer=writer,
            counts="exact" if exact else "shares" if "share" in self._rows else "none",
            profile=self._asked.profile or "pretrain",
            layer_order="unknown" if self._of_gates else None,
        )

    @property
    def _of_gates(self) -> bool:
        """Nothing says which layer each gate belongs to: see ``keys.Rule``."""
        return self._source.keys.of_gates

    @property
    def _names(self) -> list[str]:
        name = "gate " if self._of_gates else "L"
        return [f"{name}{layer}" for layer in self._layers]

    def record(self, step: int, at: float | None, cells: _Cells) -> Record:
        cells = self._unshifted(cells)
        counts: Sequence[Sequence[int] | None] | None = None
        if "tokens_per_expert" in self._rows:
            counts = [_integers(row) for row in self._matrix("tokens_per_expert", cells)]
        elif "share" in self._rows:
            rows = self._matrix("share", cells)
            if self._of_gates:
                rows = [
                    row if row and abs(sum(row) / len(row) - 1) < _OFF else None for row in rows
                ]
            counts = [None if row is None else counts_of_shares(row) for row in rows]
        bias = self._matrix("expert_bias", cells)
        router: dict[str, Values] = {}
        for name, targets in self._columns.items():
            values = list(map(cells.get, targets))
            if values.count(None) < len(values):
                router[name] = values
        numbers = {name: cells.get(Target(name)) for name in STEP_QUANTITIES}
        return step_record(
            step,
            counts,
            expert_bias=bias if any(row is not None for row in bias) else None,
            router=router,
            time=at,
            **numbers,
        )

    def _unshifted(self, cells: _Cells) -> _Cells:
        """MaxVio becomes a load; of two readings of the same quantity the later one counts."""
        shifted = self._shifted.keys() & cells.keys()
        if any(self._shifted[target] in cells for target in shifted):
            return {Target(*target[:3]): value + target.plus for target, value in cells.items()}
        for target in shifted:
            cells[self._shifted[target]] = cells.pop(target) + target.plus
        return cells

    def _matrix(self, quantity: str, cells: _Cells) -> list[list[float] | None]:
        """The numbers of every expert of every layer; ``None`` for a row where one is missing."""
        rows = [list(map(cells.get, targets)) for targets in self._rows.get(quantity, ())]
        return [None if not row or None in row else row for row in rows]  # type: ignore[misc]


def _integers(row: Sequence[float] | None) -> list[int] | None:
    if row is None or not (min(row) >= 0 and max(row) <= 2**53) or math.isnan(sum(row)):
        return None
    return list(map(round, row))
