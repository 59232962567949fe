"""The background log: the training never waits, and what is least missed is dropped first."""

import sys
import threading
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.runlog import BackgroundLog, RunLogWriter, writer
from microscope_tui.runlog.writer import estimated_bytes
from tests.runlog.written import lost, records, steps

END = {"kind": "event", "event": "end", "step": 99}


def step(number: int, experts: int = 4) -> dict[str, Any]:
    return {"kind": "step", "step": number, "loss": 1.0, "tokens_per_expert": [[1] * experts]}


class SlowLog(RunLogWriter):
    """A log on a disk that hangs until ``moves`` is set; only its first record is in time."""

    monkeypatch: pytest.MonkeyPatch

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.moves = threading.Event()
        self.reached = threading.Event()

    def write(self, record: Mapping[str, Any]) -> bool:
        self.reached.set()
        assert self.moves.wait(30)
        return super().write(record)


@pytest.fixture
def slow(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowLog]:
    log = SlowLog(path)
    log.monkeypatch = monkeypatch
    yield log
    log.moves.set()


def hang(slow: SlowLog, more: int = 0, **limits: int) -> BackgroundLog:
    """A background log whose thread hangs in the write of step 0, with more steps to come."""
    for name, limit in limits.items():
        slow.monkeypatch.setattr(writer, name, limit)
    log = BackgroundLog(slow)
    log.write(step(0))
    assert slow.reached.wait(30)
    for n in range(1, 1 + more):
        log.write(step(n))
    return log


def test_what_is_handed_over_is_in_the_file_in_order_after_closing(path: Path) -> None:
    log = BackgroundLog(RunLogWriter(path))
    for n in range(500):
        log.write(step(n))
    log.write(END)
    log.close()
    assert records(path) == [*(step(n) for n in range(500)), END]


def test_a_full_queue_drops_counts_before_steps(slow: SlowLog, path: Path) -> None:
    log = hang(slow, 8, MAX_RECORDS=9)
    slow.moves.set()
    log.close()
    assert steps(path) == list(range(9))
    with_counts = [r["step"] for r in records(path) if "tokens_per_expert" in r]
    assert with_counts == [0, 4, 5, 6, 7, 8], "while more than half of the queue waits: none"
    assert lost(path) == 0


def test_steps_that_find_no_room_are_dropped_and_counted_where_they_are_missing(
    slow: SlowLog, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = hang(slow, 9, MAX_RECORDS=4)
    assert ["steps are dropped" in message for message in caplog.messages] == [True]
    slow.moves.set()
    assert log.sync()
    log.write(step(10))
    log.close()
    told = [(r.get("event", "step"), r["step"]) for r in records(path)]
    assert told == [*(("step", n) for n in range(4)), ("lost_records", 10), ("step", 10)]
    assert lost(path) == 6


def test_a_queue_full_of_steps_takes_run_records_and_events(slow: SlowLog, path: Path) -> None:
    log = hang(slow, 5, MAX_RECORDS=3)
    log.write({"kind": "run"})
    log.write(END)
    slow.moves.set()
    log.close()
    assert [r["kind"] for r in records(path)] == ["step"] * 3 + ["run", "event", "event"]
    assert lost(path) == 3


def test_the_reserve_is_bounded(slow: SlowLog, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microscope_tui.runlog.writer.RESERVE_RECORDS", 2)
    log = hang(slow, MAX_RECORDS=1)
    for _ in range(5):
        log.write(END)
    slow.moves.set()
    log.close()
    assert [r.get("event") for r in records(path)] == [None, "end", "end", "lost_records"]
    assert lost(path) == 3


def test_the_queue_is_bounded_in_bytes_as_well(slow: SlowLog, path: Path) -> None:
    size = estimated_bytes(step(0, 1000))
    log = hang(slow, MAX_BYTES=3 * size)
    for n in range(1, 10):
        log.write(step(n, 1000))
    slow.moves.set()
    log.close()
    assert steps(path) == [0, 1, 2]
    assert lost(path) == 7


def test_one_record_is_taken_however_large(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MAX_BYTES", 10)
    log = BackgroundLog(RunLogWriter(path))
    log.write(step(1, 1000))
    log.close()
    assert records(path) == [step(1, 1000)]


@pytest.mark.parametrize(
    "rows",
    [[[1000000 + n for n in range(256)] for _ in range(58)], [array("q", range(256))] * 58],
    ids=["lists", "arrays"],
)
def test_the_estimate_of_a_record_is_near_what_it_holds(rows: list[Any]) -> None:
    held = sum(sys.getsizeof(row) for row in rows)
    if isinstance(rows[0], list):
        held += sum(sys.getsizeof(number) for row in rows for number in row)
    assert 0.8 < estimated_bytes({"tokens_per_expert": rows}) / held < 1.3


def test_an_unwritable_record_costs_itself_and_one_warning(path: Path, caplog: Any) -> None:
    log = BackgroundLog(RunLogWriter(path))
    log.write(step(1))
    for n in (2, 3):
        log.write({"kind": "step", "step": n, "loss": object()})
    log.write(step(4))
    log.close()
    assert steps(path) == [1, 4]
    assert lost(path) == 2
    assert ["cannot be written and is lost" in message for message in caplog.messages] == [True]


def test_finishing_a_record_is_work_of_the_writing_thread(path: Path) -> None:
    threads = set()

    def finish(record: Mapping[str, Any], matrices: bool) -> Mapping[str, Any]:
        threads.add(threading.current_thread())
        return {**record, "matrices": matrices}

    log = BackgroundLog(RunLogWriter(path), finish=finish)
    log.write({"kind": "step", "step": 1})
    log.close()
    assert records(path) == [{"kind": "step", "step": 1, "matrices": True}]
    assert threads
    assert threading.main_thread() not in threads


def test_sync_waits_for_all_before_it_and_forces_it_to_disk(path: Path, monkeypatch: Any) -> None:
    sizes = []
    monkeypatch.setattr("os.fsync", lambda file: sizes.append(path.stat().st_size))
    log = BackgroundLog(RunLogWriter(path))
    for n in range(50):
        log.write(step(n))
    assert log.sync()
    assert sizes == [path.stat().st_size]
    assert steps(path) == list(range(50))
    log.close()


def test_a_sync_on_a_disk_that_hangs_is_given_up_and_not_repeated_until_it_moves(
    slow: SlowLog, caplog: pytest.LogCaptureFixture
) -> None:
    log = hang(slow)
    assert not log.sync(timeout_s=0.01)
    assert not log.sync(timeout_s=3600), "this one does not wait at all"
    assert ["not on disk after 0.01 s" in message for message in caplog.messages] == [True]
    slow.moves.set()
    while not log.sync():
        pass
    log.close()


def test_closing_gives_up_on_steps_and_says_how_many_but_still_says_how_the_run_ended(
    slow: SlowLog, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = hang(slow, 2)
    log.write(END)
    log.close(timeout_s=0.01)
    assert ["4 records could not be written" in message for message in caplog.messages] == [True]
    slow.moves.set()
    log._thread.join(30)
    assert [r.get("event", "step") for r in records(path)] == ["step", "lost_records", "end"]
    assert lost(path) == 2


def test_a_closed_log_takes_nothing_and_says_so_once(path: Path, caplog: Any) -> None:
    log = BackgroundLog(RunLogWriter(path))
    log.close()
    log.close()
    log.write(step(1))
    log.write(step(2))
    assert not log.sync()
    assert path.read_bytes() == b""
    assert ["after the log was closed" in message for message in caplog.messages] == [True]
