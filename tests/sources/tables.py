"""What the tests of the readers of named numbers share: read all, and compare with a run log."""

import time
from typing import Any

from microscope_tui.runlog import Entry, RunReader, RunRecord, StepEntry, encode_record
from microscope_tui.sources import (
    Record,
    RecordReader,
    Row,
    RowReader,
    RowRecords,
    SourceRequest,
    row_records,
)

COUNTS = [[[6, 1, 1, 0], [2, 2, 2, 2]], [[4, 2, 1, 1], [3, 3, 1, 1]], [[8, 0, 0, 0], [2, 3, 2, 1]]]
"""Three steps, two layers, four experts; k = 2 and 4 tokens per step."""
LOSSES = [3.5, 3.25, 3.0]


def counts_row(step: int) -> dict[str, float]:
    """The numbers of one step as ltp-megatron-lm names them."""
    rows = COUNTS[step - 1]
    keys = {
        f"moe-expert/tokens_per_expert_layer{layer}_expert{expert}": float(count)
        for layer, row in enumerate(rows)
        for expert, count in enumerate(row)
    }
    return {"loss": LOSSES[step - 1], **keys}


def all_rows(reader: RowReader, max_bytes: int = 1 << 20) -> list[Row]:
    """Every row that is there now."""
    rows: list[Row] = []
    for _ in range(100_000):
        found = reader.read(max_bytes)
        assert not found.restarted
        rows += found.rows
        if reader.exhausted and not found.rows:
            return rows
    raise AssertionError("the reader never comes to an end")


def plain(rows: list[Row]) -> list[tuple[Any, ...]]:
    """Rows as tuples that can be compared."""
    return [
        (row.step, row.time, [(tuple(target), value) for target, value in row.values])
        for row in rows
    ]


def values(rows: list[Row]) -> list[tuple[int, str, int | None, int | None, float]]:
    """Step, quantity, layer, expert and value of every number."""
    return [(row.step, *target[:3], value) for row in rows for target, value in row.values]


def records(reader: RecordReader) -> list[Record]:
    """Every record of a source that is complete."""
    found: list[Record] = []
    for _ in range(100_000):
        batch = reader.read()
        found += batch.records
        if reader.exhausted and not batch.records:
            return found
        time.sleep(0.001 if reader.wait_s() else 0)
    raise AssertionError("the reader never comes to an end")


def as_run(found: list[Record]) -> tuple[RunRecord, list[StepEntry]]:
    """The records as the rest of the microscope reads them; none may have a defect."""
    reader = RunReader("test")
    entries: list[Entry] = [e for record in found for e in reader.feed(encode_record(record))]
    assert reader.defects.count == 0, reader.defects.first
    run = next(entry for entry in entries if isinstance(entry, RunRecord))
    return run, [entry for entry in entries if isinstance(entry, StepEntry)]


def run_of(rows: RowReader, monkeypatch: Any, **asked: int) -> tuple[RunRecord, list[StepEntry]]:
    """A source of rows as a run; its last step is complete at once."""
    monkeypatch.setattr(row_records, "COMPLETE_AFTER_S", 0.0)
    return as_run(records(RowRecords(rows, "named", "test", SourceRequest(**asked))))


def same_as_the_run_log(steps: list[StepEntry]) -> None:
    """The steps hold what ``COUNTS`` and ``LOSSES`` hold."""
    assert [entry.record.step for entry in steps] == [1, 2, 3]
    assert [entry.record.loss for entry in steps] == LOSSES
    assert [[entry.counts(0), entry.counts(1)] for entry in steps] == COUNTS
