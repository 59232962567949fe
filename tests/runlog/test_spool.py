"""The spool of a pipe keeps what came, has no name, and stays within its limit."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from microscope_tui.runlog import PipedLog, Spool, read_at


def on_disk(spool: Spool) -> int:
    return os.stat(spool.path).st_blocks * 512


@given(st.lists(st.binary(min_size=1, max_size=3000), max_size=40), st.integers(900, 5000))
def test_whatever_comes_the_newest_of_it_can_be_read_again(pieces: list[bytes], limit: int) -> None:
    spool, stream = Spool(limit), b""
    for piece in pieces:
        spool.keep(piece)
        stream += piece
        assert spool.problem is None
        assert (spool.end, spool.end - spool.start <= limit * 2 // 3) == (len(stream), True)
        assert read_at(spool.path, spool.start, limit) == stream[spool.start :]
        if spool.start:  # only what no longer fits is dropped
            assert spool.end - spool.start >= limit // 3


def test_the_limit_holds_on_the_disk_also_while_the_older_half_is_dropped(monkeypatch: Any) -> None:
    limit, most = 3 << 20, 0
    spool, files = Spool(limit), []
    make, write = tempfile.TemporaryFile, os.pwrite

    def made(*arguments: object, **options: object) -> object:
        files.append(make(*arguments, **options))  # type: ignore[call-overload]
        return files[-1]

    def measured(file: int, data: bytes, offset: int) -> int:
        nonlocal most
        written = write(file, data, offset)
        open_ones = [one.fileno() for one in files if not one.closed]
        most = max(most, sum(os.fstat(one).st_blocks * 512 for one in open_ones) + on_disk(spool))
        return written

    monkeypatch.setattr(tempfile, "TemporaryFile", made)
    monkeypatch.setattr(os, "pwrite", measured)
    for number in range(200):
        spool.keep(bytes([number]) * 65536)
    assert len(files) > 5  # it dropped its older half several times
    assert limit // 3 < most <= limit + 2 * 65536


def test_the_file_has_no_name_and_only_its_owner_opens_it(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spool = Spool(9000)
    for _ in range(9):
        spool.keep(b"x" * 1000)
        assert list(tmp_path.iterdir()) == []
    assert os.stat(spool.path).st_mode & 0o777 == 0o600
    assert os.stat(spool.path).st_dev == tmp_path.stat().st_dev
    assert spool.start > 0


def test_a_reader_keeps_its_file_while_the_spool_drops_the_older_half() -> None:
    spool = Spool(9000)
    spool.keep(b"a" * 5000)
    reader = os.open(spool.path, os.O_RDONLY)
    spool.keep(b"b" * 5000)
    assert spool.start > 0
    assert os.pread(reader, 9000, 0) == b"a" * 5000
    os.close(reader)


FULL = """
import resource, sys
from microscope_tui.runlog import read_at
from microscope_tui.runlog import Spool
spool = Spool(1 << 20)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for _ in range(5):
    spool.keep(b"x" * 400)
print(spool.end, spool.problem, len(read_at(spool.path, 0, spool.end)))
"""


def test_what_was_kept_before_the_disk_was_full_stays() -> None:
    done = subprocess.run([sys.executable, "-c", FULL], capture_output=True, text=True, timeout=60)
    assert done.stdout == "800 File too large 800\n", done.stderr


def test_an_unwritable_folder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError):
        Spool()


def test_a_full_spool_holds_nothing_up_and_loses_no_line() -> None:
    ends = os.pipe()
    log = PipedLog(ends[0], "-", spool=Spool(3000))
    lines = [b"%d %s\n" % (number, b"x" * 50) for number in range(500)]
    for line in lines:
        os.write(ends[1], line)
    os.close(ends[1])
    data = b""
    while not log.ended:
        data += log.read().data
    assert data == b"".join(lines)
    start, end = log.kept()
    assert 0 < start < end == len(data)
    assert read_at(log.path, start, end - start) == data[start:]
    os.close(ends[0])


def test_without_a_spool_nothing_is_kept() -> None:
    ends = os.pipe()
    log = PipedLog(ends[0], "-")
    assert (log.seekable, log.kept()) == (False, (0, 0))
    for end in ends:
        os.close(end)
