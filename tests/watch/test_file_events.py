"""Events are believed while they arrive; where they cannot or do not, the screen says why."""

import errno
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from microscope_tui.runlog import Tail
from microscope_tui.watch import FileEvents, file_events

Watching = Callable[..., FileEvents]
ARRIVES_S = 5.0
QUIET_S = 0.05


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "logs" / "run" / "metrics.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("one\n")
    return path


@pytest.fixture
def watching() -> Iterator[Watching]:
    started: list[FileEvents] = []

    def watch(root: Path) -> FileEvents:
        started.append(FileEvents(root))
        started[-1].start()
        return started[-1]

    yield watch
    for events in started:
        events.stop()


def append(path: Path, text: str = "two\n") -> None:
    with path.open("a") as file:
        file.write(text)


def wait_until_quiet(events: FileEvents) -> None:
    while events.wait(QUIET_S):
        pass


def test_what_a_trainer_does_is_announced(log: Path, watching: Watching) -> None:
    events = watching(log.parents[1])
    assert (events.mode, events.reason) == ("events", "")
    new = log.parents[1] / "new" / "metrics.jsonl"
    changes: list[Callable[[], object]] = [
        lambda: append(log),
        new.parent.mkdir,
        lambda: new.write_text("one\n"),
        lambda: append(new),
        lambda: new.rename(new.with_name("better.jsonl")),
        lambda: new.with_name("better.jsonl").unlink(),
    ]
    for change in changes:
        wait_until_quiet(events)
        change()
        assert events.wait(ARRIVES_S)


def test_looking_at_a_log_announces_nothing(log: Path, watching: Watching) -> None:
    events = watching(log.parents[1])
    wait_until_quiet(events)
    Tail(log).read()
    (log.parent / "checkpoint.bin").write_bytes(b"not a log")
    assert not events.wait(QUIET_S)


def test_a_file_is_watched_alone_also_by_a_link(log: Path, tmp_path: Path, watching: Any) -> None:
    link = tmp_path / "link.jsonl"
    link.symlink_to(log)
    for root in (log, link):
        events = watching(root)
        wait_until_quiet(events)
        (log.parent / "other.jsonl").write_text("one\n")
        assert not events.wait(QUIET_S)
        append(log)
        assert events.wait(ARRIVES_S)
        events.stop()


def test_a_folder_that_is_a_link_is_watched(log: Path, tmp_path: Path, watching: Watching) -> None:
    (tmp_path / "link").symlink_to(log.parents[1])
    events = watching(tmp_path / "link")
    append(log)
    assert events.wait(ARRIVES_S)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "inotify watch limit reached"),
        (OSError(errno.EMFILE, "Too many open files"), "inotify instance limit reached"),
        (ImportError("watchdog"), "watchdog is not installed"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (
            RuntimeError("can't start new thread"),
            "no events: RuntimeError(\"can't start new thread",
        ),
    ],
)
def test_a_failed_start_is_polling_with_the_reason(
    log: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    monkeypatch.setattr(FileEvents, "_observe", mock.Mock(side_effect=error))
    events = FileEvents(log.parent)
    events.start()
    assert events.mode == "polling"
    assert events.reason.startswith(reason)


def test_a_folder_that_is_not_there_is_polled(tmp_path: Path) -> None:
    events = FileEvents(tmp_path / "logs")
    assert (events.mode, events.reason) == ("polling", "not started")
    events.start()
    assert (events.mode, events.reason) == ("polling", "No such file or directory")


def test_too_many_folders_are_polled(log: Path, watching: Watching, monkeypatch: Any) -> None:
    monkeypatch.setattr(file_events, "_MAX_FOLDERS", 3)
    root = log.parents[1]
    (root / "second").mkdir()
    assert watching(root).mode == "events"
    (root / "third").mkdir()
    assert watching(root).reason == "more than 3 folders"


class Mute:
    """An observer that never says anything, like inotify under another machine's writes."""

    def stop(self) -> None:
        pass


@pytest.fixture
def mute(log: Path, monkeypatch: pytest.MonkeyPatch) -> FileEvents:
    monkeypatch.setattr(FileEvents, "_observe", lambda *_, **__: Mute())
    events = FileEvents(log.parent)
    events.start()
    return events


def test_events_that_do_not_arrive_are_given_up_the_second_time(mute: FileEvents) -> None:
    mute.poll_found_change()
    assert mute.mode == "events"
    mute.poll_found_change()
    assert (mute.mode, mute.reason) == ("polling", "events did not arrive")


def test_an_event_that_comes_a_little_late_has_arrived(log: Path, watching: Watching) -> None:
    events = watching(log.parents[1])
    for _ in range(5):
        wait_until_quiet(events)
        events.poll_found_change()  # the look was faster than the event
        append(log)
        assert events.wait(ARRIVES_S)
    assert events.mode == "events"


def test_stopping_wakes_who_waits_and_leaves_no_thread(log: Path, watching: Watching) -> None:
    before = threading.active_count()
    events = watching(log.parents[1])
    wait_until_quiet(events)
    threading.Timer(0.02, events.stop).start()
    assert events.wait(ARRIVES_S)
    events.stop()
    deadline = time.monotonic() + ARRIVES_S
    while threading.active_count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.005)
