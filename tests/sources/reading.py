"""Reads a source to its end, and checks that what comes out is a sound run log."""

import os
import time
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

from microscope_tui.runlog import RunReader, RunRecord, StepEntry, encode_record
from microscope_tui.sources.reader import Record, RecordReader, Row, RowReader, SourceRequest
from microscope_tui.sources.row_records import RowRecords
from tests.problems import problems_in

UNKNOWN_K = "model.top_k is missing: write an integer of at least 1"
"""The one thing that a source may lack."""
PATIENCE_S = 10.0  # a step without an end is complete after some tenths of a second
Steps = dict[int, dict[str, list[int] | None]]


def settle(path: Path, seconds: float = 10.0) -> Path:
    """Make a file, or the files of a folder, look as if nothing was written for a while."""
    for file in path.iterdir() if path.is_dir() else [path]:
        status = file.stat()
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns - int(seconds * 1e9)))
    return path


def drained(reader: RecordReader, max_bytes: int = 1 << 20) -> list[Record]:
    records: list[Record] = []
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        batch = reader.read(max_bytes)
        records = [*([] if batch.restarted else records), *batch.records]
        if reader.exhausted:
            return records
    raise AssertionError("the reader never came to an end")


def restarted(reader: RecordReader) -> list[Record]:
    """All records after the reader noticed that what it had read is gone."""
    batch = reader.read()
    assert batch.restarted
    return [*batch.records, *drained(reader)]


def translated(reader: RowReader, **request: int) -> list[Record]:
    """The records of a source of named numbers; its last step is complete at once."""
    if reader.path.exists():
        settle(reader.path)
    return drained(RowRecords(reader, "named", "test", SourceRequest(**request)))


def all_rows(reader: RowReader, max_bytes: int = 1 << 20) -> list[Row]:
    rows: list[Row] = []
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        found = reader.read(max_bytes)
        assert not found.restarted
        rows += found.rows
        if reader.exhausted or reader.deleted:
            return rows
    raise AssertionError("the reader never came to an end")


def values(rows: Iterable[Row]) -> list[tuple[int, str, int | None, int | None, float]]:
    return [(row.step, *target[:3], value) for row in rows for target, value in row.values]


def header_of(records: Iterable[Record]) -> Record:
    return [record for record in records if record["kind"] == "run"][-1]


def model_of(records: Iterable[Record]) -> Any:
    return header_of(records)["model"]


def counts_of(records: Iterable[Record]) -> Steps:
    """Step → name of the router → counts, as a reader of the run log sees them."""
    steps: Steps = {}
    for run, entry in entries_of(records):
        names = [router.name for router in run.routers]
        rows = entry.matrices().tokens_per_expert
        steps[entry.record.step] = dict(zip(names, rows, strict=True))
    return steps


def entries_of(records: Iterable[Record]) -> Iterator[tuple[RunRecord, StepEntry]]:
    """The steps of the records as lines of a log, each with its header; without any defect."""
    lines = [encode_record(record) for record in records]
    numbered = zip(count(1), (line.rstrip(b"\n") for line in lines))
    errors = {p.reason for p in problems_in(numbered) if p.severity == "error"}
    assert errors <= {UNKNOWN_K}
    reader = RunReader("x")
    for entry in reader.feed(b"".join(lines)):
        if isinstance(entry, StepEntry):
            assert reader.run is not None
            yield reader.run, entry
    assert not reader.defects.count, reader.defects.first
