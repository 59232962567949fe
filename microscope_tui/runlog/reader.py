"""From the bytes of one log to its records, in order, with what was wrong counted.

``RunReader`` knows the header, so it drops summaries of the wrong length; a log without a header
gets one from its counts. ``Course`` decides which steps a restart supersedes.
"""

import re
from collections.abc import Iterator, Sequence
from typing import TypeVar, cast

from msgspec.structs import astuple

from microscope_tui import measures
from microscope_tui.runlog.decode import (
    Rows,
    decode_line,
    decode_matrices,
    decode_means,
    decode_row,
    infer_run,
    numbers_of,
    row_starts,
    short_rows,
)
from microscope_tui.runlog.records import (
    BadLine,
    EventRecord,
    Matrices,
    RouterSummary,
    RunRecord,
    StepRecord,
    Values,
)
from microscope_tui.runlog.tail import Defects, LineSplitter

_SUMMARY_NAMES = RouterSummary.__struct_fields__
_MAX_TOKENS = 2.0**53
_COUNTS_KEY = b'"tokens_per_expert"'
_ROWS = re.compile(rb"\s*:\s*\[(?:\s*null\s*,)*\s*\[")
T = TypeVar("T")


class StepEntry:
    """A step with its line; matrices are decoded on demand."""

    __slots__ = (
        "_line",
        "_matrices",
        "_numbers",
        "_rows",
        "_starts",
        "offset",
        "record",
        "routers",
    )

    def __init__(self, record: StepRecord, line: bytes, routers: int, offset: int = 0) -> None:
        self.record = record
        self.offset = offset
        self.routers = routers
        """How many the run had at this step."""
        self._line = line
        self._matrices: Matrices | None = None
        self._numbers: dict[str, float | Values] | None = None
        self._rows: Sequence[list[int]] | None = None
        self._starts: list[int] = []

    def __copy__(self) -> "StepEntry":
        return StepEntry(self.record, self._line, self.routers, self.offset)  # nothing is decoded

    @property
    def has_counts(self) -> bool:
        """Whether the line seems to have counts; nothing is decoded."""
        line, at = self._line, self._line.rfind(_COUNTS_KEY)
        while at >= 0:
            if _ROWS.match(line, at + len(_COUNTS_KEY)):
                return True
            at = line.rfind(_COUNTS_KEY, 0, at)
        return False

    @property
    def length(self) -> int:
        """Bytes of the line, with its newline."""
        return len(self._line) + 1

    def matrices(self) -> Matrices:
        """The matrices of all routers; decoded once and kept.

        Where only single rows of counts can be read, every other entry is ``None``.
        """
        if self._matrices is None:
            try:
                self._matrices = decode_matrices(self._line.strip(b"\0 "), self.routers)
            except BadLine:  # the typed decoder skipped what the full one rejects
                alone = [self._row(router) for router in range(self.routers)]
                self._matrices = Matrices(alone, [None] * self.routers)
        return self._matrices

    def counts(self, router_index: int) -> list[int] | None:
        """The counts of one router, without decoding those of the others; ``None`` if it has
        none.
        """
        if self._matrices is None:
            row = self._row(router_index)
            if row is not None:
                return row
        return self.matrices().tokens_per_expert[router_index] if self.has_counts else None

    def biases(self, router_index: int) -> list[float] | None:
        """The selection bias of one router, ``None`` without any; decodes all matrices of the
        step.
        """
        return self.matrices().expert_bias[router_index]

    def means(self) -> tuple[Rows, Rows]:
        """Mean weight and mean output norm of every expert, by router; decoded at every call."""
        return decode_means(self._line.strip(b"\0 "), self.routers)

    def numbers(self) -> dict[str, float | Values]:
        """All numbers of the line by their name, also those without a meaning for the rules;
        kept.
        """
        if self._numbers is None:
            self._numbers = numbers_of(self._line)
        return self._numbers

    def _row(self, router_index: int) -> list[int] | None:
        if self._rows is None:
            self._rows = short_rows(self._line, self.routers)
            self._starts = [] if self._rows else row_starts(self._line, self.routers)
        if 0 <= router_index < len(self._rows):
            return self._rows[router_index] or None
        known = 0 <= router_index < len(self._starts)
        return decode_row(self._line, self._starts[router_index]) if known else None


Entry = StepEntry | RunRecord | EventRecord


class RunReader:
    """Turns chunks of a log's bytes into entries. Any cut of the bytes gives the same entries."""

    def __init__(self, name: str, run: RunRecord | None = None, start: int = 0) -> None:
        """Read from the beginning, or from a line end at ``start`` under a known header.

        ``name``: the name of the run if the log does not contain one.
        """
        self.name = name
        self.run = run
        self.header = b""
        """The line of the first run record."""
        self.defects = Defects()
        self.lines = LineSplitter(start=start)
        """Knows number and place of the current line of ``feed``."""

    def feed(self, chunk: bytes) -> Iterator[Entry]:
        """Yield the entries that ``chunk``, the bytes after those of the last call, completes.

        Lines that cannot be read count as defects.

        Raises:
            UnknownFormat: the log has another format version; nothing in it can be trusted.
        """
        for number, line in self.lines.feed(chunk):
            try:
                record = decode_line(line)
                if isinstance(record, StepRecord):
                    yield from self._step(number, line, record)
                elif record is not None:
                    if isinstance(record, RunRecord):
                        self.run, self.header = record, self.header or line
                    yield record
            except BadLine as error:
                self.defects.add(number, str(error))
        self.lines.report(self.defects)

    def _step(self, number: int, line: bytes, record: StepRecord) -> Iterator[Entry]:
        if self.run is None:
            self.run = infer_run(line, self.name)
            if self.run is None:
                raise BadLine("a step before any run record, and without counts")
            yield self.run
        routers = len(self.run.routers)
        if record.tokens is not None and not 1 <= record.tokens < _MAX_TOKENS:
            self.defects.add(number, f"tokens is {record.tokens:g}, not a number of tokens")
            record.tokens = None
        if {len(v) for v in astuple(record.router) if v is not None} - {routers}:
            self._drop_wrong_lengths(number, record.router, routers)
        entry = StepEntry(record, line, routers, self.lines.line_start)
        _derive(entry)
        if entry._matrices is not None and entry._matrices.problem:
            self.defects.add(number, entry._matrices.problem)
        yield entry

    def _drop_wrong_lengths(self, number: int, summary: RouterSummary, routers: int) -> None:
        for name in _SUMMARY_NAMES:
            values = cast(Values | None, getattr(summary, name))
            if values is not None and len(values) != routers:
                setattr(summary, name, None)
                what = f"router.{name} has {len(values)} values for {routers} routers"
                self.defects.add(number, what)


def _derive(entry: StepEntry) -> None:
    """Fill what is missing of the summaries that follow from the counts of the same line."""
    summary = entry.record.router
    for name, derive in measures.DERIVED.items():
        given = cast(Values | None, getattr(summary, name))
        if given is not None and None not in given:
            continue
        if not entry.has_counts:
            return
        filled = list(given or [None] * entry.routers)
        for index, row in enumerate(entry.matrices().tokens_per_expert):
            if filled[index] is None and row:
                filled[index] = derive(row)
        setattr(summary, name, filled)


class Course:
    """Which steps of one model hold, record by record.

    A run record with ``resumed_at_step`` supersedes the steps from there on, and so does a step
    that is not after the last one. Of a step that is written twice in a row the first one holds.
    """

    def __init__(self) -> None:
        self.last_step = -1
        """The last step that holds; before the first one, less than any."""
        self.repeats = False
        """Whether the last entry is a step for the second time: it does not hold."""
        self._latest = -1  # of the step record before, whether it holds or not
        self._begun = False

    def take(self, entry: Entry) -> int | None:
        """The step from which on earlier ones no longer hold; ``None`` if nothing restarts."""
        cut = None
        self.repeats = False
        if isinstance(entry, StepEntry):
            step = entry.record.step
            self.repeats = step == self._latest <= self.last_step
            if step <= self.last_step and not self.repeats:
                cut = step
            self._latest = self.last_step = step
        elif isinstance(entry, RunRecord) and self._begun and entry.resumed_at_step is not None:
            cut = max(1, min(entry.resumed_at_step, self.last_step + 1))
            self.last_step = cut - 1
        self._begun = True
        return cut


def drop_from(kept: list[tuple[int, T]], step: int | None) -> None:
    """Remove the steps that no longer hold; ``step`` is what ``Course.take`` returned."""
    while step is not None and kept and kept[-1][0] >= step:
        kept.pop()
