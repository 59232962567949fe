"""Two files about the same tokens: every planted flip is found, and nothing else."""

import random
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from microscope_tui.draw.glyphs import Glyphs
from microscope_tui.draw.spans import plain
from microscope_tui.extensions.anatomy.compare import Mismatch, NotComparable, compare
from microscope_tui.extensions.anatomy.layout import Shape
from microscope_tui.extensions.anatomy.mismatch_text import mismatch_text
from microscope_tui.extensions.anatomy.routing_file import Routing, RoutingWriter

Ids = list[list[list[int]]]


def write(
    path: Path, ids: Ids, experts: int, *, margins: Any = None, tokens: int = 0, **about: str
) -> Path:
    """A file with these choices: layer → token → experts; ``tokens``: first token id."""
    count, k = len(ids[0]), len(ids[0][0])
    depths = tuple(range(1, len(ids) + 1))
    shape = Shape(depths, tuple(f"L{n}" for n in depths), experts, k, count)
    writer = RoutingWriter(path, shape, **about)
    writer.put_tokens(range(tokens, tokens + count), [b"a"] * count, [0] * count, [0] * count)
    for layer, rows in enumerate(ids):
        flat = [expert for row in rows for expert in row]
        writer.put(
            "ids", layer, 0, struct.pack(f"<{len(flat)}{'B' if experts < 255 else 'H'}", *flat)
        )
        writer.put("margins", layer, 0, struct.pack(f"<{count}e", *(margins or [0.5] * count)))
    writer.finish()
    return path


def compared(a: Path, b: Path, **how: Any) -> Mismatch:
    with Routing(a) as first, Routing(b) as second:
        return compare(first, second, **how)


@settings(max_examples=40)
@given(st.data())
def test_planted_flips_are_recovered_exactly(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    experts = data.draw(st.sampled_from([8, 64, 300]))
    layers, tokens = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 63, 64, 65, 5000]))
    k = data.draw(st.integers(1, 4))
    flips = data.draw(st.integers(0, 30))
    a = [[rng.sample(range(experts), k) for _ in range(tokens)] for _ in range(layers)]
    b = [[rng.sample(row, k) if rng.random() < 0.1 else row[:] for row in rows] for rows in a]
    planted: dict[tuple[int, int], tuple[int, int]] = {}
    for _ in range(flips):
        layer, token = rng.randrange(layers), rng.randrange(tokens)
        if (layer, token) in planted:
            continue
        row = b[layer][token]
        slot = rng.randrange(k)
        new = rng.choice([one for one in range(experts) if one not in row])
        planted[layer, token] = row[slot], new
        row[slot] = new
    folder = tmp_path_factory.mktemp("r")
    margins = [float(rng.randrange(20)) for _ in range(tokens)]
    found = compared(
        write(folder / "a", a, experts, margins=margins), write(folder / "b", b, experts)
    )
    assert (found.tokens, found.compared) == (tokens, layers * tokens)
    assert found.tokens_differing == len({token for _, token in planted})
    for index, layer in enumerate(found.layers):
        here = [pair for (at, _), pair in planted.items() if at == index]
        assert (layer.differing, layer.swaps) == (len(here), Counter(here))
    assert sum(one.compared for one in found.margins) == layers * tokens
    for one in found.margins:
        inside = {n for n, margin in enumerate(margins) if one.low <= margin <= one.high}
        assert one.compared == layers * len(inside)
        assert one.differing == sum(token in inside for _, token in planted)


def test_tokens_that_one_side_did_not_route_are_left_out(tmp_path: Path) -> None:
    a = [[[1, 2], [3, 4], [5, 6]]]
    b = [[[2, 1], [0xFF, 0xFF], [5, 7]]]
    found = compared(write(tmp_path / "a", a, 8), write(tmp_path / "b", b, 8))
    assert (found.tokens, found.compared, found.differing) == (2, 2, 1)
    assert [one.compared for one in found.margins] == [2]
    assert found.top_swaps(5)[0][1:] == (6, 7, 1)


def planted(layers: int = 4, tokens: int = 500) -> Ids:
    rng = random.Random(3)
    return [[rng.sample(range(16), 2) for _ in range(tokens)] for _ in range(layers)]


@pytest.mark.parametrize("shift", [-2, -1, 1, 2])
def test_choices_of_a_token_nearby_are_found_with_their_shift(tmp_path: Path, shift: int) -> None:
    a = planted()
    late = [rows[-shift:] + rows[:-shift] for rows in a]
    b = [a[0], late[1], late[2], a[3]]
    found = compared(write(tmp_path / "a", a, 16), write(tmp_path / "b", b, 16))
    assert [layer.shift for layer in found.layers] == [0, shift, shift, 0]
    layer = found.layers[1]
    assert 0 <= layer.differing - layer.shifts[shift] <= abs(shift)


def test_a_layer_that_repeats_another_is_found_and_a_collapsed_one_is_not(tmp_path: Path) -> None:
    a = [*planted(), [[1, 2]] * 500, [[1, 2]] * 500]
    b = [*a[:3], a[1][:400] + [[0xFF, 0xFF]] * 100, *a[4:]]
    found = compared(write(tmp_path / "a", a, 16), write(tmp_path / "b", b, 16))
    assert found.copies == [("B", "L4", "L2")]
    assert not any(layer.shift for layer in found.layers)


def test_layers_with_the_choices_of_another_layer_are_named_beside_other_differences(
    tmp_path: Path,
) -> None:
    a = planted(6)
    b = [[row[::-1] for row in a[layer]] for layer in (1, 2, 3, 3, 5, 4)]
    for rows in b[:2]:  # as from another precision
        rows[::3] = [[(one + 1) % 16 for one in row] for row in rows[::3]]
    found = compared(write(tmp_path / "a", a, 16), write(tmp_path / "b", b, 16))
    assert found.moved == {"L1": "L2", "L2": "L3", "L3": "L4", "L5": "L6", "L6": "L5"}
    assert found.copies == [("B", "L4", "L3")]
    text = [plain(line) for line in mismatch_text(found, 80, Glyphs.ASCII)]
    assert "B has the choices that A has for L2 in L1, L3 in L2, L4 in L3 and 2 more" in text


def test_a_layer_that_differs_less_or_has_collapsed_is_not_another_one(tmp_path: Path) -> None:
    a = [*planted(3), [[1, 2]] * 500]
    repeated = [a[2][token] if token % 9 == 0 else [3, token % 7 + 4] for token in range(500)]
    b = [[[1, 2]] * 500, repeated, a[0], [[1, 2]] * 500]
    found = compared(write(tmp_path / "a", a, 16), write(tmp_path / "b", b, 16))
    assert found.moved == {"L3": "L1"}, "L1 has collapsed, and a ninth of L2 is from L3"


def test_a_layer_without_choices_is_named_and_has_no_share(tmp_path: Path) -> None:
    none = [[0xFF, 0xFF]] * 500
    a = planted(5)
    b = [a[0], none, a[2], none, a[4][:400] + none[400:]]
    a[2:4] = none, none
    found = compared(write(tmp_path / "a", a, 16), write(tmp_path / "b", b, 16))
    assert [layer.share for layer in found.layers] == [0, None, None, None, 0]
    assert [found.layers_without(files) for files in ("A", "B", "AB")] == [["L3"], ["L2"], ["L4"]]
    text = [plain(line) for line in mismatch_text(found, 80, Glyphs.ASCII)]
    assert text[0].startswith("0.00% of the choices of 500 tokens in 2 layers differ")
    assert "L3 has choices in B and none in A" in text
    assert "L2 has choices in A and none in B" in text
    assert "L4 has no choices in A and B" in text


def test_each_token_counts_for_the_first_layer_in_which_it_differs(tmp_path: Path) -> None:
    a = planted()
    b = [[row[:] for row in rows] for rows in a]
    for layer, tokens in ((1, range(0, 20)), (2, range(10, 40)), (3, range(500))):
        for token in tokens:
            b[layer][token] = [row for row in range(16) if row not in a[layer][token]][:2]
    found = compared(write(tmp_path / "a", a, 16), write(tmp_path / "b", b, 16))
    assert [layer.first for layer in found.layers] == [0, 20, 20, 460]
    assert found.tokens_differing == 500
    assert found.origin.name == "L4"


def test_tenths_of_the_margins_hold_a_tenth_each(tmp_path: Path) -> None:
    rows = [[[n % 8] for n in range(1000)]]
    flipped = [[[(n + (n < 100)) % 8] for n in range(1000)]]
    margins = [n / 1000 for n in range(1000)]
    a = write(tmp_path / "a", rows, 8, margins=margins)
    found = compared(a, write(tmp_path / "b", flipped, 8))
    assert len(found.margins) == 10
    assert all(95 <= one.compared <= 105 for one in found.margins)
    assert found.margins[0].differing == 100
    assert compared(a, write(tmp_path / "b", flipped, 8), margins_of="").margins == []


def test_margins_that_are_not_known_are_in_no_tenth(tmp_path: Path) -> None:
    a = write(tmp_path / "a", [[[1], [2]]], 8, margins=[float("nan"), 0.25])
    found = compared(a, write(tmp_path / "b", [[[1], [3]]], 8))
    assert [(one.low, one.compared, one.differing) for one in found.margins] == [(0.25, 1, 1)]


@pytest.mark.parametrize(
    ("ids", "experts", "first", "why"),
    [
        ([[[1], [2], [3]]], 8, 0, "tokens: 2 in A, 3 in B"),
        ([[[1], [2]]] * 2, 8, 0, "layers: 1 in A, 2 in B$"),
        ([[[1, 2], [2, 3]]], 8, 0, "top_k: 1 in A, 2 in B"),
        ([[[1], [2]]], 9, 0, "num_experts: 8 in A, 9 in B"),
        ([[[1], [2]]], 8, 7, "token 0: id 0 in A, 7 in B"),
        ([[[255], [255]]], 8, 0, "no token was routed"),
    ],
)
def test_the_first_difference_is_named(
    tmp_path: Path, ids: Ids, experts: int, first: int, why: str
) -> None:
    a = write(tmp_path / "a", [[[1], [2]]], 8)
    b = write(tmp_path / "b", ids, experts, tokens=first)
    with pytest.raises(NotComparable, match=why):
        compared(a, b)
