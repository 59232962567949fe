"""``routing.bin``: what was written is read back, and a damaged file is refused, not believed."""

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from microscope_tui.extensions.anatomy.layout import PREAMBLE, BadRouting, Shape, Tables
from microscope_tui.extensions.anatomy.routing_file import Routing, RoutingWriter

TEXTS = [b"The ", b"quick ", b"br", b"own ", b"\x1b[2J", b"fox"]


def write(
    path: Path, ids: list[list[list[int]]], num_experts: int = 8, capacity: int | None = None
) -> None:
    layers, tokens, k = len(ids), len(ids[0]), len(ids[0][0])
    names = tuple(f"L{n}" for n in range(layers))
    shape = Shape(tuple(range(layers)), names, num_experts, k, capacity or tokens)
    writer = RoutingWriter(path, shape, slices=["prose", "code"], model="planted", dtype="fp32")
    texts = [TEXTS[n % len(TEXTS)] for n in range(tokens)]
    writer.put_tokens(
        range(tokens), texts, [n % 2 for n in range(tokens)], [n // 4 for n in range(tokens)]
    )
    code = "B" if num_experts < 255 else "H"
    for layer, rows in enumerate(ids):
        flat = [expert for row in rows for expert in row]
        writer.put("ids", layer, 0, struct.pack(f"<{len(flat)}{code}", *flat))
        halves = [1 / (1 + slot) for row in rows for slot, _ in enumerate(row)]
        writer.put("weights", layer, 0, struct.pack(f"<{len(halves)}e", *halves))
        for name in ("margins", "entropies"):
            writer.put(name, layer, 0, struct.pack(f"<{tokens}e", *[layer + 0.5] * tokens))
    writer.finish(Tables(counts=[[[1] * num_experts] * layers] * 2, noise=[0.1, 0.2]))


@settings(max_examples=60)
@given(st.data())
def test_every_choice_is_read_back(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    experts = data.draw(st.sampled_from([4, 254, 255, 1000]))
    layers, tokens, k = (data.draw(st.integers(1, most)) for most in (3, 20, 4))
    empty = 0xFF if experts < 255 else 0xFFFF
    expert = st.integers(0, experts - 1) | st.just(empty)
    ids = [[[data.draw(expert) for _ in range(k)] for _ in range(tokens)] for _ in range(layers)]
    path = tmp_path_factory.mktemp("r") / "routing.bin"
    write(path, ids, experts, capacity=tokens + data.draw(st.integers(0, 9)))
    with Routing(path) as routing:
        assert routing.tokens == tokens
        for layer in range(layers):
            real = [tuple(one for one in row if one != empty) for row in ids[layer]]
            assert [routing.choice(layer, token).experts for token in range(tokens)] == real
            assert routing.chosen(layer, 0, tokens + 5) == real
            assert routing.chosen(layer, tokens, tokens) == []
            wanted, at = data.draw(expert), data.draw(st.integers(0, tokens - 1))
            holds = [n for n, row in enumerate(real) if wanted in row]
            after, before = [n for n in holds if n > at], [n for n in holds if n < at]
            assert routing.next_of(layer, wanted, at) == (after[0] if after else None)
            assert routing.next_of(layer, wanted, at, back=True) == (before[-1] if before else None)


def test_tokens_slices_and_tables_are_read_back_up_to_the_last_token(tmp_path: Path) -> None:
    write(tmp_path / "routing.bin", [[[n % 8, 7] for n in range(12)]], capacity=1000)
    with Routing(tmp_path / "routing.bin") as routing:
        assert b"".join(routing.text(0, 12)) == b"".join(TEXTS) * 2
        assert routing.text(5, 7) == [b"fox", b"The "]
        assert (routing.slices, routing.slices_of(3, 4)) == (("prose", "code"), (1,))
        assert [routing.window_of(n) for n in (3, 4)] == [0, 1]
        assert routing.token_ids(2, 5) == [2, 3, 4]
        assert routing.tables.noise == [0.1, 0.2]
        choice = routing.choice(0, 3)
        assert (choice.weights, choice.margin, choice.entropy) == ((1.0, 0.5), 0.5, 0.5)
        with pytest.raises(IndexError):
            routing.choice(0, 12)


def test_an_abandoned_probe_leaves_nothing(tmp_path: Path) -> None:
    writer = RoutingWriter(tmp_path / "routing.bin", Shape((1,), ("L1",), 4, 1, 10))
    writer.abandon()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    write(tmp_path / "routing.bin", [[[n % 8, 7] for n in range(6)] for _ in range(2)])
    return (tmp_path / "routing.bin").read_bytes()


def changed(data: bytes, **header: object) -> bytes:
    magic, version, zero, at, length, _ = PREAMBLE.unpack_from(data)
    encoded = json.dumps(json.loads(data[at : at + length]) | header).encode()
    body = data[PREAMBLE.size : at] + encoded
    size = PREAMBLE.size + len(body)
    return PREAMBLE.pack(magic, version, zero, at, len(encoded), size) + body


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ({"tokens": 7}, "7 tokens in room for 6"),
        ({"tokens": -1}, "-1 tokens"),
        ({"capacity": 1 << 40}, "capacity is"),
        ({"capacity": 1 << 31}, "do not fit"),
        ({"top_k": 9}, "top_k is 9"),
        ({"num_experts": 0}, "num_experts is 0"),
        ({"layers": []}, "layers is 0"),
        ({"layer_names": ["L1"]}, "1 layer_names for 2 layers"),
        ({"text_bytes": 1 << 50}, "do not fit"),
        ({"tokens": "six"}, "cannot be read"),
        ({"slices": ["s"] * 5000}, "5,000 slices"),
        (b"", "shorter than the preamble"),
        (b"x" * 100, "is not a routing file"),
        (PREAMBLE.pack(b"MOEROUTE", 2, 0, 64, 0, 64) + b"\0" * 24, "version 2"),
        (PREAMBLE.pack(b"MOEROUTE", 1, 0, 1 << 60, 9, 64) + b"\0" * 24, "does not lie"),
        (PREAMBLE.pack(b"MOEROUTE", 1, 0, 64, 0, 99) + b"\0" * 24, "cut off or damaged"),
    ],
)
def test_a_header_that_cannot_be_true_and_what_is_no_routing_file_are_refused(
    tmp_path: Path, whole: bytes, data: dict[str, object] | bytes, why: str
) -> None:
    content = changed(whole, **data) if isinstance(data, dict) else data
    (tmp_path / "routing.bin").write_bytes(content)
    with pytest.raises(BadRouting, match=why):
        Routing(tmp_path / "routing.bin")


@settings(max_examples=120)
@given(st.data())
def test_damaged_bytes_are_refused_or_read_within_the_file(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("r") / "routing.bin"
    write(path, [[[n % 8, 7] for n in range(6)] for _ in range(2)])
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        with Routing(path) as routing:
            for layer in range(len(routing.shape.layers)):
                chosen = [routing.choice(layer, token).experts for token in range(routing.tokens)]
                assert all(e < routing.shape.num_experts for experts in chosen for e in experts)
            routing.text(0, routing.tokens)
            routing.find_text(b"fox", 0) if routing.tokens else None
    except BadRouting:
        pass


@given(st.data())
def test_searches_agree_with_a_walk_over_the_tokens(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    letters = st.binary(max_size=3).map(lambda b: bytes(97 + n % 2 for n in b))
    texts = data.draw(st.lists(letters, min_size=1, max_size=12))
    ids = data.draw(st.lists(st.integers(0, 300), min_size=len(texts), max_size=len(texts)))
    path = tmp_path_factory.mktemp("r") / "routing.bin"
    writer = RoutingWriter(path, Shape((1,), ("L1",), 4, 1, len(texts)))
    writer.put_tokens(ids, texts, [0] * len(texts), [0] * len(texts))
    writer.finish()
    wanted = data.draw(letters.filter(bool))
    token = data.draw(st.integers(0, len(texts) - 1))
    whole = b"".join(texts)
    owners = [n for n, text in enumerate(texts) for _ in text]
    begins = [owners[at] for at in range(len(whole)) if whole.startswith(wanted, at)]
    with Routing(path) as routing:
        after = [n for n in begins if n > token] or begins
        before = [n for n in begins if n < token]
        assert routing.find_text(wanted, token) == (after[0] if after else None)
        last = before[-1] if before else begins[-1] if begins else None
        assert routing.find_text(b"", token) is None
        assert routing.find_text(wanted, token, back=True) == last
        for one in (*ids, 5000):
            expected = texts[ids.index(one)] if one in ids else None
            assert routing.text_of_id(one) == expected
        assert list(routing.slices_of(0, 99)) == [0] * len(texts)
        assert routing.text(0, 99, 1) == [text[:1] for text in texts]
