"""The TFRecord container: checksums, any cuts, and finding a record in the middle."""

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from microscope_tui.sources import find_record, masked_crc32c
from microscope_tui.sources.tensorboard import MAX_RECORD_BYTES, RecordSplitter
from tests.sources import event_bytes as eb


def test_the_checksum_is_crc32c() -> None:
    """RFC 3720, appendix B.4: the crc32c of 32 zeros is 0x8A9136AA."""
    crc = 0x8A9136AA
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert masked_crc32c(bytes(32)) == masked


@given(st.lists(st.binary(max_size=300), max_size=20), st.integers(1, 400))
@settings(deadline=None)
def test_records_come_back_whatever_the_cuts(records: list[bytes], cut: int) -> None:
    data = b"".join(map(eb.record, records))
    splitter = RecordSplitter()
    found = [one for at in range(0, len(data), cut) for one in splitter.feed(data[at : at + cut])]
    assert found == records


def test_a_record_that_is_too_long_is_skipped_in_any_cut() -> None:
    length = MAX_RECORD_BYTES + 1
    head = struct.pack("<Q", length)
    long = head + struct.pack("<I", masked_crc32c(head)) + bytes(length + 4)
    data = eb.record(b"before") + long + eb.record(b"after")
    for cut in (len(data), 1 << 20):
        splitter = RecordSplitter()
        found = []
        for at in range(0, len(data), cut):
            found += splitter.feed(data[at : at + cut])
        assert found == [b"before", b"after"]


@given(st.binary(max_size=200), st.integers(0, 2**16))
@settings(deadline=None)
def test_a_record_is_found_from_any_place(before: bytes, length: int) -> None:
    record = eb.record(bytes([7]) * length)
    at = find_record(before + record)
    assert at is not None
    assert at <= len(before)
