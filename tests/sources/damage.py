"""Damaged files of every format: any bytes must be read, or refused in one line.

What is damaged is a golden file, or the sound file of the format. Where a checksum would reject
most of the damage, the bytes are also read with their checksums corrected.
"""

import os
import random
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from microscope_tui import sources
from microscope_tui.runlog import RunReader, encode_record
from microscope_tui.sources.reader import RecordReader
from microscope_tui.sources.tensorboard import HEADER_BYTES, masked_crc32c
from microscope_tui.sources.wandb import BLOCK_BYTES
from tests.sources.sound import GOLDEN, RUN, SOUND

MOST_READS = 1000
NAMES = {sound.form: sound.file for sound in SOUND}
_SPECIAL = [*b"\0 \xff \x7f \x80 \x01 \n \x12 NaN 1e999".split(b" "), b"[" * 64]


@cache
def seeds_of(name: str) -> list[bytes]:
    paths = sorted(path for path in GOLDEN.glob(f"{name}*") if path.suffix != ".sql")
    golden = [path.read_bytes() for path in paths]
    return golden or [sound.content(RUN) for sound in SOUND if sound.form == name]


def case(name: str, seed: int) -> bytes:
    """The bytes of one case: one to eight changes; one case in 16 is noise."""
    chance = random.Random(seed)
    if chance.random() < 1 / 16:
        return chance.randbytes(chance.randrange(2000))
    return damaged(seeds_of(name)[seed % len(seeds_of(name))], chance)


def damaged(data: bytes, chance: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        at = chance.randrange(len(out) + 1)
        end = min(len(out), at + chance.choice((1, 2, 4, 8, 100, 4000)))
        match chance.randrange(6):
            case 0:
                out[at:end] = chance.randbytes(end - at)
            case 1:
                del out[at:end]
            case 2:
                out[at:at] = out[at:end]
            case 3:
                out[at:at] = chance.choice(_SPECIAL) * chance.choice((1, 1, 5, 300))
            case 4:
                del out[at:]
            case _:
                for place in range(at, min(end, at + 8)):
                    out[place] ^= 1 << chance.randrange(8)
    return bytes(out)


def read_damaged(name: str, data: bytes) -> list[str]:
    """Read the bytes as a file of the format; why it was refused. Any other error is a failure."""
    corrected = {"wandb": with_chunk_checksums, "tensorboard": with_length_checksums}
    contents = [data, corrected[name](data)] if name in corrected else [data]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / NAMES[name]
        return [why for content in contents for why in _refusals(name, path, content)]


def _refusals(name: str, path: Path, data: bytes) -> Iterator[str]:
    path.write_bytes(data)
    os.utime(path, (1e9, 1e9))  # at rest: its last step is complete
    form, request = sources.FORMATS[name], sources.SourceRequest(top_k=2)
    try:
        form.reader.recognises(path)
        found = list(form.reader.runs(path))
    except sources.Unreadable as why:
        yield _checked(why)
        return
    for run in found:
        use: Callable[[RecordReader], None]
        for use in (to_the_end, lambda reader: to_the_end(reader, 1000), sample):
            try:
                use(form.open(path, run, "damaged", request))
            except sources.Unreadable as why:
                yield _checked(why)


def to_the_end(reader: RecordReader, max_bytes: int = 1 << 20) -> None:
    log = RunReader("damaged")
    for _ in range(MOST_READS):
        for record in reader.read(max_bytes).records:
            assert record["kind"] != "step" or 0 <= record["step"] < 2**62
            list(log.feed(encode_record(record)))
        assert 0 <= reader.offset <= reader.size
        assert not log.defects.count, log.defects.first
        if reader.exhausted:
            return
    raise AssertionError(f"not at the end after {MOST_READS} reads")


def sample(reader: RecordReader) -> None:
    assert sum(record["kind"] == "step" for record in reader.sample(5)) <= 6


def _checked(why: sources.Unreadable) -> str:
    assert str(why).isprintable(), why
    return str(why)


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
