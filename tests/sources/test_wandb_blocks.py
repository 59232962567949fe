"""The block format of W&B: any lengths, any cuts, from any block."""

from hypothesis import given, settings
from hypothesis import strategies as st

from microscope_tui.sources import BLOCK_BYTES
from microscope_tui.sources.wandb import RecordSplitter
from tests.sources import wandb_bytes as wb


@given(
    st.lists(st.integers(0, 3 * BLOCK_BYTES), max_size=8),
    st.integers(-20, 20),
    st.integers(2000, 50_000),
)
@settings(max_examples=60, deadline=None)
def test_records_of_any_length_come_back_whatever_the_cuts(
    lengths: list[int], edge: int, cut: int
) -> None:
    lengths.append(max(0, BLOCK_BYTES - 7 - 7 + edge - sum(lengths) % BLOCK_BYTES))
    records = [bytes([i]) * length for i, length in enumerate([*lengths, 100])]
    data = wb.log(records)
    splitter = RecordSplitter(lambda _: True)
    found = []
    for at in range(0, len(data), cut):
        found += splitter.feed(data[at : at + cut])
    assert found == records
    assert splitter.damage is None


@given(st.lists(st.integers(0, 2 * BLOCK_BYTES), min_size=1, max_size=8), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_reading_from_a_block_gives_the_records_that_begin_after_it(
    lengths: list[int], block: int
) -> None:
    records = [bytes([i]) * length for i, length in enumerate(lengths)]
    data = wb.log(records)
    splitter = RecordSplitter(lambda _: True, block * BLOCK_BYTES)
    found = splitter.feed(data[block * BLOCK_BYTES :])
    assert splitter.damage is None
    assert found == records[len(records) - len(found) :]
    begun = [len(wb.log(records[:i])) for i in range(len(records))]
    assert len(found) == sum(at >= block * BLOCK_BYTES - 6 for at in begun)
