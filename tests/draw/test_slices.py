"""The slices of a probe: ratios against an own computation, noise, and lines that fit."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given, strategies as st

from microscope_tui.draw.glyphs import Glyphs
from microscope_tui.draw.spans import plain
from microscope_tui.extensions.anatomy import slices_text as slices
from microscope_tui.extensions.anatomy.layout import Tables
from microscope_tui.extensions.anatomy.routing_file import Routing
from microscope_tui.extensions.anatomy.slices_text import (
    NoTables,
    Ordering,
    SliceTable,
    slice_table,
)
from microscope_tui.measures import FEWEST_EXPECTED
from tests.probed import SLICES, class_of, texts


def table(counts: Sequence[Sequence[int]], noise: Sequence[float] = (0.1, 0.1)) -> SliceTable:
    tables = Tables(counts=[[row] for row in counts], noise=noise)
    return slice_table(tables, 0, len(counts), len(counts[0]))


def named(token_id: int) -> str:
    return f"t{token_id}"


@given(st.lists(st.lists(st.integers(0, 1000), min_size=3, max_size=3), min_size=2, max_size=4))
def test_the_ratio_is_share_in_the_slice_over_share_overall(counts: list[list[int]]) -> None:
    found = table(counts, [0.25] * len(counts))
    total = sum(map(sum, counts))
    for row in found.rows:
        whole = sum(part[row.expert] for part in counts)
        for cell, part in zip(row.cells, counts, strict=True):
            assert cell.count == part[row.expert]
            if part[row.expert]:
                expected = part[row.expert] / sum(part) / (whole / total)
                assert 2**cell.ratio == pytest.approx(expected)
                few = sum(part) * whole / total < FEWEST_EXPECTED
                assert cell.few == few
                assert cell.beyond == (abs(math.log2(expected)) > 0.25 and not few)


def test_an_expert_that_a_slice_never_chose_is_beyond_chance_only_where_it_was_expected() -> None:
    many = table([[0, 1000], [500, 500]]).rows[0].cells[0]
    assert many.beyond
    assert many.ratio < -8
    few = table([[0, 1000], [1, 1999]], [1.0, 1.0]).rows[0].cells[0]
    assert not few.beyond


def test_where_fewer_than_ten_pairs_are_expected_every_ratio_is_chance() -> None:
    """4 pairs of 100 are expected, or 40 of 1,000; both have three times as many."""
    small = table([[12, 88], [28, 872]])
    cell = small.rows[0].cells[0]
    assert (cell.few, cell.beyond, small.rows[0].slice_read) == (True, False, None)
    large = table([[120, 880], [280, 8720]])
    assert large.rows[0].cells[0].ratio == cell.ratio
    assert large.rows[0].cells[0].beyond
    assert small.by_chance < large.by_chance


def test_a_cell_with_few_pairs_is_a_grey_dot_and_the_detail_says_why() -> None:
    found = table([[12, 88], [28, 872]])
    layout = slices.fit_slices(["a", "b"], 80, 0)
    line = slices.expert_line(found.rows[0], layout, named, chosen=False, colour=True)
    assert "·" in plain(line)
    assert "+1.6" not in plain(line)
    text = plain(slices.detail(found.rows[0], found, ["a", "b"], named, 120, 4)[1])
    assert "a +1.6 (12 of 100) few" in text
    tiny = table([[1, 8], [2800, 87200]])
    below = plain(slices.heads(layout, ["a", "b"], Ordering.NUMBER, tiny)[1])
    assert "few" in below
    assert below.count("±") == 1, "a slice with few pairs of every expert has no noise to show"


def test_an_expert_is_described_in_a_sentence_as_long_as_the_screen_is_wide() -> None:
    found, names = table([[800, 200], [50, 950], [0, 400]], [0.1] * 3), ["a", "b", "c"]
    for width, more in ((120, ", b 1/7 as often, c never."), (68, ", b 1/7 as often …")):
        first = plain(slices.detail(found.rows[0], found, names, named, width, 4)[0])
        assert first == f"  Expert 0 reads a 2.3 times as often as overall{more}"
    alike = table([[500, 500]] * 2)
    assert "about as often as chance" in slices.in_words(alike.rows[0], alike, names, 4)


@pytest.mark.parametrize(
    ("counts", "noise", "why"),
    [
        ([[900, 100], [100, 900]], (), "no shuffled baseline"),
        ([[1495, 1740, 1500, 1230], [0] * 4], (0.0, 0.0), "0 of 4 experts"),
        ([[1495, 1740, 1500, 1230]], (0.0,), "one slice: nothing to compare it with"),
    ],
)
def test_without_a_baseline_or_another_slice_nothing_is_beyond_chance(
    counts: list[list[int]], noise: tuple[float, ...], why: str
) -> None:
    """An interrupted probe may hold tokens of one slice: no rounding may look like a preference."""
    found = table(counts, noise)
    assert not [cell for row in found.rows for cell in row.cells if cell.beyond]
    assert why in plain(slices.summary(found, ["docs", "code"][: len(counts)], "L1", "1 of 1", 120))
    assert found.by_chance == 0.0
    assert "Nothing to compare" in slices.in_words(found.rows[0], found, ["docs"], 4)


def test_the_most_telling_experts_are_first_and_slices_stay_together() -> None:
    counts = [[500, 100, 300, 100, 0], [500, 300, 100, 400, 0]]
    found = table(counts)
    telling = [row.expert for row in found.ordered(Ordering.TELLING)]
    assert telling[-1] == 4
    assert telling[0] in (2, 3)
    by_slice = [row.slice_read for row in found.ordered(Ordering.SLICE)]
    assert by_slice == sorted(by_slice, key=lambda one: 9 if one is None else one)
    assert [row.expert for row in found.ordered(Ordering.NUMBER)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("tables", "why"),
    [
        (Tables(), "interrupted"),
        (Tables(counts=[[[1, 2]]]), "do not fit"),
        (Tables(counts=[[[1, 2, 3]], [[1, 2, 3]]]), "do not fit"),
        (Tables(counts=[[], [[1, 2]]]), "do not fit"),
        (Tables(counts=[[[1, -2]], [[1, 2]]]), "below zero"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tables: Tables, why: str) -> None:
    with pytest.raises(NoTables, match=why):
        slice_table(tables, 0, 2, 2)


def test_the_planted_greek_experts_are_recovered_with_their_tokens(routing: Routing) -> None:
    found = slice_table(routing.tables, 0, len(SLICES), 16)
    tokens = dict.fromkeys(token for _, part in texts() for token in part)
    classes = [class_of(token, "prose") for token in tokens]
    greek = [row for row in found.rows if row.slice_read == SLICES.index("greek")]
    assert len(greek) == 2  # of 16 experts, two for each of eight classes
    for row in greek:
        assert row.cells[2].ratio > 1.2
        assert row.lifts
        assert {classes[token_id] for token_id, _, _ in row.lifts} == {"greek"}


def test_a_layer_whose_identity_was_not_measured_is_not_the_one_it_explains_most() -> None:
    some = Tables(identity=[None, 0.5], identity_noise=[None, None])
    for layer, text in enumerate(("not measured", "most in L2")):
        line = slices.identity(some, layer, ["L1", "L2"], Glyphs.BRAILLE, 90)
        assert text in plain(line)
