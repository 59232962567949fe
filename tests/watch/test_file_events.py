"""Events of a log wake its reader; where there are none, nothing else changes."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

from microscope_tui.runlog import Tail
from microscope_tui.watch import FileEvents, file_events

ARRIVES_S = 5.0
QUIET_S = 0.05


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "metrics.jsonl"
    path.parent.mkdir()
    path.write_text("one\n")
    return path


@pytest.fixture
def events() -> Iterator[FileEvents]:
    events = FileEvents()
    yield events
    events.stop()


def append(path: Path) -> None:
    with path.open("a") as file:
        file.write("two\n")


def wait_until_quiet(events: FileEvents) -> None:
    while events.wait(QUIET_S):
        pass


def wait_for_threads_to_end(left: int) -> None:
    deadline = time.monotonic() + ARRIVES_S
    while threading.active_count() > left:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("given", ["absolute", "relative"])
def test_what_a_trainer_does_to_its_log_is_announced(
    log: Path, events: FileEvents, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(log.parent)
    events.watch(log if given == "absolute" else Path(log.name))
    rotated, new = log.with_name("metrics.1.jsonl"), log.with_name("new")
    changes: list[Callable[[], object]] = [
        lambda: append(log),
        lambda: log.rename(rotated),
        lambda: log.write_text("one\n"),
        lambda: append(log),
        lambda: (new.write_text("two\n"), new.rename(log)),
    ]
    for change in changes:
        wait_until_quiet(events)
        change()
        assert events.wait(ARRIVES_S)


def test_reading_a_log_and_writing_beside_it_announce_nothing(
    log: Path, events: FileEvents
) -> None:
    events.watch(log)
    wait_until_quiet(events)
    Tail(log).read()
    (log.parent / "checkpoint.bin").write_bytes(b"not a log")
    assert not events.wait(QUIET_S)


def test_one_log_is_watched_and_not_the_one_before(log: Path, events: FileEvents) -> None:
    other = log.parents[1] / "other" / log.name
    other.parent.mkdir()
    other.write_text("one\n")
    events.watch(log)
    events.watch(other)
    wait_until_quiet(events)
    append(log)
    assert not events.wait(QUIET_S)
    append(other)
    assert events.wait(ARRIVES_S)


def test_the_same_log_is_watched_once(log: Path, events: FileEvents) -> None:
    events.watch(log)
    with mock.patch.object(file_events, "_observe") as observe:
        events.watch(log)
    observe.assert_not_called()


def test_where_there_are_no_events_nothing_is_raised_and_the_reason_can_be_logged(
    events: FileEvents, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = threading.active_count()
    with caplog.at_level(logging.DEBUG, "microscope_tui"):
        events.watch(tmp_path / "missing" / "metrics.jsonl")
    assert "FileNotFoundError" in caplog.text
    wait_until_quiet(events)
    assert not events.wait(QUIET_S)
    wait_for_threads_to_end(before)


def test_stopping_wakes_who_waits_and_leaves_no_thread(log: Path, events: FileEvents) -> None:
    before = threading.active_count()
    events.watch(log)
    wait_until_quiet(events)
    threading.Timer(0.02, events.stop).start()
    assert events.wait(ARRIVES_S)
    wait_for_threads_to_end(before)
