"""What every format must survive: any bytes. A case that fails raises.

``FORMATS`` names a function per format. What is damaged is a golden file or a file of
``fuzz_seeds``. Where a checksum would reject most of the damage, a function also reads the bytes
with their checksums corrected.
"""

import math
import os
import struct
import tempfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from microscope_tui.runlog import RunReader, encode_record
from microscope_tui.sources import (
    BLOCK_BYTES,
    HEADER_BYTES,
    Keys,
    RecordReader,
    RowReader,
    RowRecords,
    SourceRequest,
    Target,
    Unreadable,
    catalogue,
    masked_crc32c,
    tensorboard,
    wandb,
)
from tests.sources import fuzz_seeds
from tests.sources.mutate import mutated
from tests.sources.truth import GOLDEN

MOST_READS = 1000


def case(name: str, seed: int) -> bytes:
    """The bytes of one case."""
    if name in fuzz_seeds.NAMES:
        return mutated(fuzz_seeds.seed_of(name), seed)
    golden = sorted(GOLDEN.glob(f"{name}*"))
    return mutated(golden[seed % len(golden)].read_bytes(), seed)


def read_wandb(data: bytes) -> None:
    """As they are, and with the checksums of the chunks corrected."""
    for content in (data, with_chunk_checksums(data)):
        with tempfile.NamedTemporaryFile(suffix=".wandb") as file:
            path = _written(file.name, content)
            wandb.WandbReader.recognises(path)
            journey(wandb.WandbReader(path, Keys()))
            journey(wandb.WandbReader(path, Keys()), max_bytes=1000)
            _sample(wandb.WandbReader(path, Keys()))


def read_tensorboard(data: bytes) -> None:
    """As they are, and with the checksums of the lengths corrected."""
    for content in (data, with_length_checksums(data)):
        with tempfile.NamedTemporaryFile(prefix="events.out.tfevents.") as file:
            path = _written(file.name, content)
            tensorboard.TensorBoardReader.recognises(path)
            journey(tensorboard.TensorBoardReader(path, Keys()))
            journey(tensorboard.TensorBoardReader(path, Keys()), max_bytes=1000)
            _sample(tensorboard.TensorBoardReader(path, Keys()))


def read_as(name: str, data: bytes) -> None:
    """A file as its writer would call it, opened as the catalogue does."""
    form = catalogue.FORMATS[name]
    asked = SourceRequest(top_k=2)
    with tempfile.TemporaryDirectory() as folder:
        path = _written(os.path.join(folder, fuzz_seeds.file_name(name)), data)
        try:
            form.reader.recognises(path, asked.rules)
            runs = form.reader.runs(path, asked.rules)
            readers = [form.open(path, run, "fuzz", asked) for run in runs]
            for reader in readers:
                _to_the_end(reader)
        except Unreadable as why:
            _check_message(why)


FORMATS: dict[str, Callable[[bytes], None]] = {
    **{name: partial(read_as, name) for name in fuzz_seeds.NAMES},
    "tensorboard": read_tensorboard,
    "wandb": read_wandb,
}


def journey(reader: RowReader, max_bytes: int = 1 << 20) -> None:
    """Read all there is, and make records of the run log of it."""
    try:
        _to_the_end(RowRecords(_Checked(reader), "fuzz", "fuzz", SourceRequest()), max_bytes)
    except Unreadable as why:
        _check_message(why)


def _to_the_end(records: RecordReader, max_bytes: int = 1 << 20) -> None:
    log = RunReader("fuzz")
    for _ in range(MOST_READS):
        batch = records.read(max_bytes)
        for record in batch.records:
            assert record["kind"] != "step" or 0 <= record["step"] < 2**62
            list(log.feed(encode_record(record)))
        if records.exhausted:
            return
    raise AssertionError(f"not at the end after {MOST_READS} reads")


class _Checked(RowReader):
    """Passes rows on if they are what a reader may yield."""

    def __init__(self, reader: RowReader) -> None:
        super().__init__(reader.path, reader.keys)
        self._reader = reader

    def read(self, max_bytes: int = 1 << 20):  # type: ignore[no-untyped-def]
        found = self._reader.read(max_bytes)
        for row in found.rows:
            assert 0 <= row.step < 2**53
            assert row.time is None or math.isfinite(row.time)
            assert all(type(t) is Target and type(v) is float for t, v in row.values)
        for name in ("offset", "size", "modified", "deleted", "exhausted", "name", "config"):
            setattr(self, name, getattr(self._reader, name))
        assert 0 <= self.offset <= self.size
        return found


def _sample(reader: wandb.WandbReader | tensorboard.TensorBoardReader) -> None:
    try:
        assert len(reader.sample(5)) <= 5
    except Unreadable as why:
        _check_message(why)


def _check_message(why: Unreadable) -> None:
    assert str(why).isprintable()


def _written(name: str, data: bytes) -> Path:
    path = Path(name)
    path.write_bytes(data)
    os.utime(path, (1e9, 1e9))  # at rest: its last step is complete
    return path


def with_chunk_checksums(data: bytes) -> bytes:
    """A ``.wandb`` file whose chunks have the checksums of what is in them."""
    out = bytearray(data)
    at = 7
    while at + 7 <= len(out):
        left = BLOCK_BYTES - at % BLOCK_BYTES
        _, length, kind = struct.unpack_from("<IHB", out, at)
        if left < 7 or length > left - 7:
            at += left
            continue
        body = bytes(out[at + 7 : at + 7 + length])
        struct.pack_into("<I", out, at, zlib.crc32(body, zlib.crc32(bytes([kind]))))
        at += 7 + length
    return bytes(out)


def with_length_checksums(data: bytes) -> bytes:
    """An event file whose lengths have their checksums; absurd lengths become what is left."""
    out = bytearray(data)
    at = 0
    while at + HEADER_BYTES <= len(out):
        (length,) = struct.unpack_from("<Q", out, at)
        if length > 2 * len(out):
            length = max(0, len(out) - at - HEADER_BYTES - 4)
            struct.pack_into("<Q", out, at, length)
        struct.pack_into("<I", out, at + 8, masked_crc32c(bytes(out[at : at + 8])))
        at += HEADER_BYTES + length + 4
    return bytes(out)
