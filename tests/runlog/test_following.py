"""A follower reads what is new, waits for what is torn, and notices what is not the same file."""

import os
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from microscope_tui.runlog import LineSplitter, Tail
from tests.runlog.followed import Reader, append

RECORD = b'{"kind":"step","step":1}'


def age(path: Path, seconds: float = 60.0) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_a_line_above_the_limit_is_skipped_in_pieces_and_counted(path: Path) -> None:
    path.write_bytes(b"one\n" + b"x" * 50_000 + b"\nthree\n" + b"y" * 50_000)
    reader = Reader(Tail(path, max_line_bytes=10_000), max_bytes=1000)
    reader.splitter = LineSplitter(max_line_bytes=10_000)
    largest = 0
    while not reader.source.exhausted:
        largest = max(largest, len(reader.look()))
    assert reader.lines == [b"one", b"three"]
    assert reader.splitter.overlong == [2]
    assert largest <= 1000


def test_lines_are_numbered_and_those_above_the_limit_are_defects(path: Path) -> None:
    path.write_bytes(b"one\n" + b"x" * (3 << 20) + b"\nthree\ntorn")
    tail = Tail(path, max_line_bytes=2 << 20)
    assert tail.read_lines().lines == [(1, b"one")]
    while not (got := tail.read_lines()).lines:
        pass
    assert got.lines == [(3, b"three")]
    assert tail.defects.first == ["line 2: longer than 2 MB, skipped"]
    path.write_bytes(b"new\n")
    got = tail.read_lines()
    assert (got.lines, got.restarted, tail.defects.count) == ([(1, b"new")], True, 0)


def test_another_file_with_the_same_beginning_is_a_new_one(path: Path) -> None:
    path.write_bytes(b"one\n")
    reader = Reader(Tail(path))
    reader.look()
    other = path.with_name("other")
    other.write_bytes(b"one\ntwo\n")
    other.replace(path)
    assert reader.look_until_exhausted() == [b"one", b"two"]
    assert reader.restarts == 1


def test_a_finished_log_without_its_last_newline_shows_its_last_record(path: Path) -> None:
    path.write_bytes(b"one\n" + RECORD)
    reader = Reader(Tail(path))
    assert reader.look_until_exhausted() == [b"one"]  # its writer may be in the middle of it
    age(path)
    assert reader.look_until_exhausted() == [b"one", RECORD]
    append(path, b"\ntwo\n")
    assert reader.look_until_exhausted() == [b"one", RECORD, b"two"]
    assert reader.restarts == 0


TORN = [b'{"kind":"step","st', b'{"a":{"b":1}', b"}", b"\0" * 9]
WHOLE = b'{"kind":"step","step":1,"loss":NaN}'


@pytest.mark.parametrize("last", [*TORN, WHOLE])
def test_a_last_record_at_rest_is_shown_if_it_is_whole(path: Path, last: bytes) -> None:
    path.write_bytes(b"one\n" + last)
    age(path)
    shown = [b"one", WHOLE] if last == WHOLE else [b"one"]
    assert Reader(Tail(path)).look_until_exhausted() == shown


def test_a_clock_ahead_hides_no_last_record(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(RECORD)
    age(path, -3600)
    reader = Reader(Tail(path))
    assert reader.look_until_exhausted() == []
    later = time.monotonic() + 3
    monkeypatch.setattr("microscope_tui.runlog.tail.time.monotonic", lambda: later)
    assert reader.look_until_exhausted() == [RECORD]


@pytest.mark.parametrize(
    "change",
    [
        lambda path: append(path, b'{"more":1}\n'),  # the line grew into another one
        lambda path: path.write_bytes(b"one\n{}\n"),  # its writer cut it off and went on
        lambda path: os.truncate(path, 4),
    ],
)
def test_a_last_record_shown_early_and_changed_is_read_again(path: Path, change: Any) -> None:
    path.write_bytes(b"one\n" + RECORD)
    age(path)
    reader = Reader(Tail(path))
    reader.look_until_exhausted()
    change(path)
    assert reader.look_until_exhausted() == path.read_bytes().split(b"\n")[:-1]
    assert reader.restarts == 1


def test_a_byte_order_mark_does_not_cost_the_header() -> None:
    for cut in range(5):
        data = b"\xef\xbb\xbfone\n\xef\xbb\xbftwo\n"
        splitter = LineSplitter()
        got = [line for part in (data[:cut], data[cut:]) for _, line in splitter.feed(part)]
        assert got == [b"one", b"\xef\xbb\xbftwo"]


def test_a_large_hole_costs_no_memory_and_no_record(path: Path) -> None:
    """A crash can leave NUL bytes where data was to be: 100 MB of them, sparse."""
    path.write_bytes(b"one\n")
    os.truncate(path, 100 << 20)
    append(path, b"two\nthree\n")
    reader = Reader(Tail(path))
    tracemalloc.start()
    assert reader.look_until_exhausted() == [b"one", b"two", b"three"]
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    assert reader.splitter.overlong == []


def test_a_long_torn_line_is_read_once_not_at_every_look(path: Path, reads: list[int]) -> None:
    path.write_bytes(b"one\n" + b"x" * (3 << 20))
    reader = Reader(Tail(path))
    reader.look_until_exhausted()
    reads.clear()
    reader.look()
    assert sum(reads) < 1000
    append(path, b"y\n")
    assert [len(line) for line in reader.look_until_exhausted()] == [3, (3 << 20) + 1]


@pytest.fixture
def locked(path: Path) -> Iterator[Path]:
    path.write_bytes(b"one\n")
    yield path
    path.chmod(0o600)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_lost_permission_is_an_error_and_its_return_loses_nothing(locked: Path) -> None:
    reader = Reader(Tail(locked))
    reader.look()
    append(locked, b"two\n")
    locked.chmod(0)
    with pytest.raises(PermissionError):
        reader.look()
    locked.chmod(0o600)
    assert reader.look_until_exhausted() == [b"one", b"two"]
    assert reader.restarts == 0


def test_read_errors_are_said_and_lose_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"one\n")
    reader = Reader(Tail(path))
    reader.look()
    append(path, b"two\n")
    with monkeypatch.context() as broken:
        broken.setattr(os, "open", mock.Mock(side_effect=OSError(116, "Stale file handle")))
        with pytest.raises(OSError, match="Stale"):
            reader.look()
    assert reader.look_until_exhausted() == [b"one", b"two"]
