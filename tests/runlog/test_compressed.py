"""An archive is read like the log that was packed, whatever was cut, packed twice or damaged."""

import gzip
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backports import zstd
from hypothesis import given, settings, strategies as st

from microscope_tui.runlog import CompressedLog, LineSplitter, Source
from tests.runlog.followed import Reader

LINES = [b'{"kind":"step","step":%d,"count":[%d,%d]}' % (n, n * 7919 % 1009, n) for n in range(400)]
LOG = b"\n".join(LINES) + b"\n"
Pack = Callable[[bytes], bytes]


def pack_gz(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def pack_zst(data: bytes) -> bytes:
    return zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1})


@pytest.fixture(params=[pack_gz, pack_zst], ids=["gz", "zst"])
def pack(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def path(tmp_path: Path, pack: Pack) -> Path:
    return tmp_path / ("m.jsonl.gz" if pack is pack_gz else "m.jsonl.zst")


def read_all(log: Source, max_bytes: int = 1 << 20) -> list[bytes]:
    reader = Reader(log, max_bytes)
    while (data := reader.look()) or not log.exhausted:
        assert len(data) <= max_bytes + 1
    return reader.lines


@pytest.mark.parametrize("max_bytes", [10, 1000, 1 << 20])
def test_an_archive_gives_the_lines_of_its_log(path: Path, pack: Pack, max_bytes: int) -> None:
    path.write_bytes(pack(LOG))
    log = CompressedLog(path)
    assert read_all(log, max_bytes) == LINES
    assert (log.offset, log.size) == (path.stat().st_size,) * 2
    assert log.modified == path.stat().st_mtime
    assert not log.seekable


def test_several_members_are_one_log(path: Path, pack: Pack) -> None:
    path.write_bytes(pack(LOG[:1000]) + pack(b"") + pack(LOG[1000:]))
    assert read_all(CompressedLog(path)) == LINES


def test_skippable_frames_of_parallel_packers_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl.zst"
    skippable = bytes.fromhex("502a4d18 04000000 01020304")
    path.write_bytes(skippable + pack_zst(LOG[:500]) + skippable + pack_zst(LOG[500:]))
    assert read_all(CompressedLog(path)) == LINES


def test_a_truncated_archive_is_read_and_again_when_it_changes(path: Path, pack: Pack) -> None:
    packed = pack(LOG)
    log = CompressedLog(path)
    for cut in (0, 1, 5, 700, len(packed) - 3, len(packed)):
        path.write_bytes(packed[:cut])
        log.exhausted = False
        lines = read_all(log, 500)
        assert lines == LINES[: len(lines)]
    assert lines == LINES


def test_damage_is_said_after_what_was_unpacked_before_it(path: Path, pack: Pack) -> None:
    packed = bytearray(pack(LOG))
    packed[-2] ^= 0xFF  # the checksum
    path.write_bytes(packed)
    log, lines = CompressedLog(path), list[bytes]()

    def read_on() -> None:
        while True:
            lines.extend(log.read().data.splitlines())

    with pytest.raises(OSError, match=r"damaged archive before byte [\d,]+ of [\d,]+: "):
        read_on()
    assert lines == LINES[: len(lines)]
    assert sum(map(len, lines)) > len(LOG) - 5000
    assert log.exhausted
    path.write_bytes(pack(LOG))  # a sound copy arrives
    log.exhausted = False
    assert read_all(log) == LINES


@settings(max_examples=60)
@given(
    st.sampled_from(["gz", "zst"]),
    st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 255)), max_size=3),
    st.integers(0, 6000),
    st.sampled_from([64, 5000]),
)
def test_no_damage_hangs_the_reader_or_kills_it(
    tmp_path_factory: Any, kind: str, flips: list[tuple[int, int]], cut: int, max_bytes: int
) -> None:
    packed = bytearray((pack_gz if kind == "gz" else pack_zst)(LOG))
    for at, change in flips:
        packed[at % len(packed)] ^= change
    path = tmp_path_factory.mktemp("damage") / f"m.jsonl.{kind}"
    path.write_bytes(packed[:cut])
    log = CompressedLog(path)
    for _ in range(2000):
        try:
            log.read(max_bytes)
        except OSError:
            return
        if log.exhausted:
            return
    raise AssertionError("no end")


def test_a_bomb_costs_time_but_no_memory(path: Path, pack: Pack) -> None:
    path.write_bytes(pack(b"\0" * (20 << 20)) + pack(b"\none\n"))
    log, splitter = CompressedLog(path), LineSplitter()
    lines: list[bytes] = []
    tracemalloc.start()
    while not log.exhausted:
        lines += [line for _, line in splitter.feed(log.read(1 << 18).data)]
    assert tracemalloc.get_traced_memory()[1] < 2 << 20
    tracemalloc.stop()
    assert lines == [b"", b"one"]


def test_a_window_larger_than_the_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl.zst"
    wide: dict[int, int] = {zstd.CompressionParameter.window_log: 30}
    packer = zstd.ZstdCompressor(options=wide)
    path.write_bytes(packer.compress(LOG) + packer.flush())
    with pytest.raises(OSError, match=r"too much memory|damaged"):
        read_all(CompressedLog(path))


def test_the_last_record_shows_without_a_newline_unless_it_is_torn(path: Path, pack: Pack) -> None:
    path.write_bytes(pack(LOG[:-1]))
    log = CompressedLog(path)
    assert read_all(log) == LINES
    with path.open("ab") as file:
        file.write(pack(b'\n{"more":1}\n'))
    assert log.read().restarted
    assert read_all(CompressedLog(path)) == [*LINES, b'{"more":1}']
    path.write_bytes(pack(LOG[:-3]))
    assert read_all(CompressedLog(path)) == LINES[:-1]


def test_a_deleted_archive_is_noticed(path: Path, pack: Pack) -> None:
    assert CompressedLog(path).read().data == b""
    path.write_bytes(pack(LOG))
    log = CompressedLog(path)
    read_all(log)
    path.unlink()
    log.read()
    assert log.deleted
    os.mkfifo(path)
    with pytest.raises(OSError, match="not a regular file"):
        log.read()


def test_no_zstd_library_is_loaded_or_missed_before_a_zst_is_opened(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl.gz").write_bytes(pack_gz(b"{}\n"))
    (tmp_path / "m.jsonl.zst").write_bytes(pack_zst(b"{}\n"))
    code = """
import sys; sys.modules["backports.zstd"] = sys.modules["compression.zstd"] = None
from pathlib import Path
from microscope_tui.runlog.compressed import CompressedLog
print(CompressedLog(Path("m.jsonl.gz")).read().data)
try:
    CompressedLog(Path("m.jsonl.zst")).read()
except OSError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[0] == r"b'{}\n'", done.stderr
    assert "pip install backports.zstd" in done.stdout
