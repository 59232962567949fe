"""Rows of named numbers become records of the run log.

Rows are merged to steps (``step_rows``), and steps get their places (``run_layout``). The header is
written once a few steps have readings of routers. If the rest of a step comes after the step was
returned, the step is written again, behind a run record with ``resumed_at_step``. If a layer or an
expert comes later, or k is known only then, the source is read to its end and all steps are written
again, behind such a record.
"""

import shlex
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from msgspec.structs import replace

from microscope_tui.sources import proposals
from microscope_tui.sources.keys import Keys
from microscope_tui.sources.proposals import Proposal, Survey
from microscope_tui.sources.reader import (
    Batch,
    Record,
    RecordReader,
    Row,
    RowReader,
    SourceRequest,
    Unreadable,
)
from microscope_tui.sources.run_layout import Layout
from microscope_tui.sources.step_rows import Step, StepRows

LOOK_AHEAD = 3
"""Steps with router readings that are collected before the header is written."""
MOST_WAITING = 4096
"""Steps before the first router reading that are kept."""


class RunRecords:
    """Makes the records of a run from rows: a header once the layers are known, then the steps."""

    def __init__(self, source: RowReader, request: SourceRequest, **facts: str) -> None:
        """``facts``: for the header; ``run`` is its name if the source has none."""
        self._source = source
        self._request = request
        self._facts = facts
        self._layout: Layout | None = None
        self.waiting: deque[Row] = deque(maxlen=MOST_WAITING)
        """Steps that wait for the header."""
        self._ahead = 0  # steps with router readings among those that wait
        self.is_outgrown = False
        """No step is written any more, until the source is read again."""
        self._is_again = False  # all steps come for the second time

    @property
    def is_started(self) -> bool:
        """Whether the header was written; until then steps wait for it."""
        return self._layout is not None

    @property
    def remarks(self) -> Sequence[str]:
        """What the user should know about the numbers; empty before the header."""
        return self._layout.remarks if self._layout is not None else ()

    def of(self, steps: Iterable[Step]) -> Iterator[Record]:
        """The records of complete steps: a header first, and again where the run grew or restarts.

        Returns nothing until ``LOOK_AHEAD`` steps with readings of routers are known.
        """
        for row, is_again in steps:
            if self._layout is None:
                yield from self._wait(row, is_again)
                continue
            layout = self._layout
            learns = is_again or layout.is_learning  # the tokens may be in its rest
            self.is_outgrown |= layout.grow(row) or (learns and layout.learn_top_k(row))
            if self.is_outgrown or (self._is_again and not row.step):
                continue  # the log has no restart at step 0
            if is_again:
                yield self._header(layout) | {"resumed_at_step": row.step}
            yield layout.record(row)

    def begin_again(self) -> Record:
        """The header, with all that is known by now: the next step is the first of the source."""
        assert self._layout is not None
        self._layout.begin_again()
        self.is_outgrown = False
        self._is_again = True
        return self._header(self._layout) | {"resumed_at_step": 1}

    def _wait(self, row: Row, is_again: bool) -> Iterator[Record]:
        if is_again and self.waiting.pop().of_router:
            self._ahead -= 1
        self.waiting.append(row)
        if row.of_router:
            self._ahead += 1
        if self._ahead >= LOOK_AHEAD:
            yield from self.start()

    def start(self) -> Iterator[Record]:
        """The header, if any step has a reading of a router, and the steps that waited for it."""
        if not any(row.of_router for row in self.waiting):
            return
        layout = Layout(self._request, self._source)
        for row in self.waiting:
            layout.grow(row)
            layout.learn_top_k(row)
        yield self._header(layout)
        yield from map(layout.record, self.waiting)
        self._layout = layout
        self.waiting.clear()
        self._ahead = 0

    def _header(self, layout: Layout) -> Record:
        name = self._source.name or self._facts["run"]
        return layout.header(**self._facts | {"run": name})


class RowRecords(RecordReader):
    """A source that gives rows, as a source of records.

    If no key is known as a reading of a router, the keys are surveyed for one that may be.
    """

    def __init__(self, rows: RowReader, name: str, writer: str, request: SourceRequest) -> None:
        """``name``: of the run, if the source has none; ``writer``: for the header."""
        super().__init__(rows.path, name, request)
        self._facts = {"run": name, "writer": writer}
        self._begin(rows)

    def _begin(self, source: RowReader) -> None:
        self.proposed = None
        self._surveyed: object = None  # the state of the source when its keys were looked at
        self._survey_from = 0.0
        self._start(source)

    def _start(self, source: RowReader, unconfirmed: str = "") -> None:
        self._source = source
        self._steps = StepRows()
        self._run = RunRecords(source, self._request, **self._facts, unconfirmed=unconfirmed)
        self._ended = False
        self._at_end = 0.0  # when all was read for the first time
        self._damage: Unreadable | None = None  # raised after what comes before it was returned
        self._checked: object = None  # the state at the last look for unused keys
        self.missing = ""

    def wait_s(self) -> float:
        return self._steps.wait_s()

    def read(self, max_bytes: int = 1 << 20) -> Batch:
        if self._damage is not None:
            damage, self._damage = self._damage, None
            raise damage
        try:
            found = self._source.read(max_bytes)
        except Unreadable as damage:
            records = self._rest()
            if self._run.is_outgrown:
                return self._read_again(records)
            if not records:
                raise
            self._damage = damage
            self.exhausted = False
            return Batch(records)
        if found.restarted:
            self._begin(self._source.again(Keys(self._request.rules, self._request.confirmed)))
            self.exhausted = False
            return Batch((), restarted=True)
        steps = self._steps.complete(found.rows, is_started=self._run.is_started)
        records = list(self._run.of(steps))
        self.report(self._source)
        self.defects = self._source.defects
        if self._learn_keys():
            return Batch()
        self._check_rules()
        records += self._last(found.ended)
        if self._run.is_outgrown and self._source.exhausted:  # all of its keys are known now
            return self._read_again(records)
        return Batch(records)

    def _read_again(self, records: Sequence[Record]) -> Batch:
        self._source = self._source.again(self._source.keys)
        self._steps = StepRows()
        self._ended = self.exhausted = False
        return Batch([*records, self._run.begin_again()])

    def sample(self, count: int) -> Sequence[Record]:
        steps = StepRows()
        run = RunRecords(self._source, self._request, **self._facts)
        rows = sorted(self._source.sample(count), key=lambda row: row.step)
        complete = chain(steps.complete(rows, is_started=False), steps.close())
        run.waiting.extend(row for row, _ in complete)
        return [*run.start()]

    def _last(self, ended: str) -> Iterator[Record]:
        """The last step once it is complete, and the end of the run: the reason is ``ended``."""
        if self.exhausted and (self._steps.wait_s() or self._run.waiting):
            if ended or self._steps.is_quiet(self.modified or 0.0):
                yield from self._rest()
            else:
                # More rows may follow for the last step: of a fast logger without an end.
                now = time.monotonic()
                self._at_end = self._at_end or now
                self.exhausted = now - self._at_end > 2 * self._steps.patience_s
        if ended and not self._ended and (self._run.is_started or self.missing):
            self._ended = True
            yield {"kind": "event", "event": "end", "reason": ended}

    def _rest(self) -> list[Record]:
        return [*self._run.of(self._steps.close_early()), *self._run.start()]

    def _check_rules(self) -> None:
        keys = self._source.keys
        state = len(keys), Counter(keys.objects.values()), self._run.remarks
        looks = self.exhausted and (self._run.is_started or keys.has_routers)
        if looks and state != self._checked:
            self._checked = state
            self.missing = "; ".join(filter(None, [proposals.unmatched(keys), *self._run.remarks]))

    def _learn_keys(self) -> bool:
        """Look at keys of which none is known as a router; true to read again with a proposal."""
        source = self._source
        enough = self.exhausted or self.offset >= proposals.SURVEYED_BYTES
        if self._run.is_started or source.keys.has_routers or not enough:
            return False
        state = (self.offset, self.modified)
        begun = time.monotonic()
        if state == self._surveyed or begun < self._survey_from:
            return False
        found = proposals.survey(source)
        self._surveyed = state
        self._survey_from = begun + max(1.0, 10 * (time.monotonic() - begun))
        return self._propose(found)

    def _propose(self, found: Survey) -> bool:
        source, request = self._source, self._request
        asked = request
        proposal = proposals.propose(found)
        self.proposed = None
        if proposal is not None:
            layout = self._tried(proposal, found)
            if layout is None:
                proposal = None
            else:
                asked = replace(request, top_k=layout.top_k or request.confirmed_top_k)
                self.proposed = proposal.applied(asked)
        if found.values or found.keys.objects:
            writer = self._facts["writer"]
            self.missing = proposals.described(found, proposal, source, writer, asked)
        if proposal is None or self.proposed is None or not proposal.certain or request.rules:
            return False
        keys = Keys(request.rules, self.proposed.confirmed)
        self._start(source.again(keys), shlex.join(proposal.options))
        self.exhausted = False
        return True

    def _tried(self, proposal: Proposal, found: Survey) -> Layout | None:
        """The layout of the last number of every key; ``None`` if that gives no loads."""
        request = proposal.applied(self._request)
        keys = Keys((), request.confirmed)
        layout = Layout(request, self._source)
        latest = [(keys[key], [*series.values()][-1]) for key, series in found.values.items()]
        row = Row(1, None, [(target, value) for target, value in latest if target is not None])
        layout.grow(row)
        layout.learn_top_k(row)
        rows = layout.record(row).get("tokens_per_expert") or [None]
        return None if None in rows else layout
