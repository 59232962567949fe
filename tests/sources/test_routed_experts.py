"""What engines and RL trainers write as routed_experts is read as they mean it."""

import base64
import io
import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from microscope_tui.extensions.anatomy.layout import Shape
from microscope_tui.extensions.anatomy.routed_experts import convert_choices
from microscope_tui.extensions.anatomy.routing_file import Routing
from microscope_tui.sources import FORMATS, SourceRequest, Unreadable, dumps, plain_pickle
from tests.sources.damage import damaged
from tests.sources.reading import drained, settle
from tests.sources.sound import saved

BESIDE = Shape((1, 3), ("L1", "L3"), 8, 2, 1)
Rows = list[list[tuple[int, ...]]]
"""Token → layer → experts."""
EMPTY: list[tuple[int, ...]] = [(), ()]


def rows(tokens: int, layers: int = 2, k: int = 2, experts: int = 8) -> Rows:
    rng = random.Random(0)
    return [[tuple(rng.sample(range(experts), k)) for _ in range(layers)] for _ in range(tokens)]


def read(path: Path, beside: Shape = BESIDE) -> tuple[Rows, Any]:
    target = path.with_name("routing.bin")
    has_token_ids = convert_choices(path, target, beside)
    with Routing(target) as routing:
        assert routing.shape.layers == beside.layers
        chosen = [routing.chosen(layer, 0, routing.tokens) for layer in range(len(beside.layers))]
        ids = list(routing.token_ids(0, routing.tokens))
        return list(map(list, zip(*chosen, strict=True))), ids if has_token_ids else None


def lines(tmp_path: Path, *responses: object) -> Path:
    path = tmp_path / "out.jsonl"
    path.write_text("\n".join(json.dumps(one) for one in responses) + "\n")
    return path


def as_base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def prime_rl(ids: list[int], array: Any) -> bytes:
    """Its engine drops the tokens before ``start``: two of the prompt."""
    found = {"data": as_base64(array[2:].astype("u2").tobytes()), "shape": array[2:].shape}
    choice = {"token_ids": ids[4:], "routed_experts": found | {"start": 2, "dtype": "uint16"}}
    return json.dumps({"prompt_token_ids": ids[:4], "choices": [choice]}).encode()


def nemo_rl(ids: list[int], array: Any) -> bytes:
    size = "x".join(map(str, array.shape))
    routes = f"nrlre1:int16:{size}:{as_base64(array.astype('i2').tobytes())}"
    message = {"prompt_token_ids": ids[:4], "generation_token_ids": ids[4:]}
    return json.dumps({"choices": [{"message": message | {"routed_experts": routes}}]}).encode()


def vllm(ids: list[int], array: Any) -> bytes:
    """The last sampled token has zeros, which are not expert 0."""
    rows = [*array.tolist(), [[0, 0]] * array.shape[1]]
    choice = {"token_ids": ids[4:], "routed_experts": rows[4:]}
    prompt = {"prompt_token_ids": ids[:4], "prompt_routed_experts": rows[:4]}
    return json.dumps(prompt | {"choices": [choice]}).encode()


def sglang(ids: list[int], array: Any) -> bytes:
    meta = {"routed_experts": as_base64(array.astype("i4").tobytes()), "id": "x"}
    return json.dumps({"input_ids": ids[:4], "output_ids": ids[4:], "meta_info": meta}).encode()


def sample(ids: list[int], array: Any) -> dict[str, Any]:
    """Of slime or miles, as ``to_dict`` makes it."""
    found = {"group_index": 0, "prompt": "x" * 9000, "tokens": ids, "response": "é" * 5000}
    found |= {"reward": np.float32(1), "rollout_log_probs": [-0.5] * len(ids), "metadata": {}}
    return found | {"rollout_routed_experts": array, "loss_mask": [1] * len(ids)}


def slime(ids: list[int], array: Any) -> bytes:
    aborted = sample([], None)
    return saved({"rollout_id": 3, "samples": [aborted, sample(ids, array.astype("i4"))]})


def npy(ids: list[int], array: Any) -> bytes:
    np.save(raw := io.BytesIO(), array.astype("i2"))
    return raw.getvalue()


def slime_of_torch(ids: list[int], array: Any) -> bytes:
    """A view that does not begin at the start of its storage."""
    tensor = torch.from_numpy(np.append([array[0]], array, axis=0).astype("i4"))[1:]
    return saved({"rollout_id": 3, "samples": [sample(ids, tensor)]})


FORMS = [prime_rl, nemo_rl, vllm, sglang, slime]


@pytest.mark.parametrize("form", [*FORMS, slime_of_torch])
def test_every_form_holds_the_choices_and_ids_that_were_written(
    form: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dumps, "_PIECE", 255)
    monkeypatch.setattr(plain_pickle, "_WINDOW", 20_000)
    choices: Any = rows(2500)
    choices[7] = [(0, 0), (0, 0)]  # a hole
    array, ids = np.array(choices), [(n * 7919) % 150_000 for n in range(2501)]
    (tmp_path / "a").write_bytes(form(ids, array))
    expected = [*choices[:7], EMPTY, *choices[8:], EMPTY]
    if form is prime_rl:
        expected[:2] = [EMPTY] * 2
    assert read(tmp_path / "a") == (expected, ids)


@pytest.mark.parametrize("form", [*FORMS, slime_of_torch, npy])
def test_damage_of_any_form_is_refused_in_one_line_or_read(form: Any, tmp_path: Path) -> None:
    whole = form(list(range(30)), np.array(rows(29)))
    refused = []
    for seed in range(60):
        (tmp_path / "a").write_bytes(damaged(whole, random.Random(seed)))
        found: Rows = []
        try:
            found, _ = read(tmp_path / "a")
        except Unreadable as error:
            refused.append(str(error))
        assert all(expert < 8 for token in found for layer in token for expert in layer)
        assert not [*tmp_path.glob("*.part")]
    assert refused
    assert all(map(str.isprintable, refused))


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"samples": [{"tokens": [], "rollout_routed_experts": 5}]}, r"1: rollout\w+ is not"),
        ({"samples": [{"rollout_routed_experts": np.zeros((1, 1, 1), "i4")}]}, "1: its tokens are"),
        ({"samples": [sample([1], np.zeros((9, 2, 2), "f4"))]}, "is not integers"),
        ({"samples": [sample([1] * 9, np.zeros((5, 2, 2), "i4"))]}, r"1: choices \[5, 2, 2\]"),
        ({"samples": [sample([1], None)]}, "no choices in it"),
        ({"rollout_id": 1}, "has no samples"),
    ],
)
def test_a_dump_of_something_else_is_named(tmp_path: Path, value: object, why: str) -> None:
    (tmp_path / "a.pt").write_bytes(saved(value))
    with pytest.raises(Unreadable, match=why):
        read(tmp_path / "a.pt")


@pytest.mark.parametrize(("kind", "experts"), [("<i2", 300), ("|u1", 8), ("<i8", 200)])
def test_an_array_of_numpy_is_read(tmp_path: Path, kind: str, experts: int) -> None:
    choices = rows(200, 2, 3, experts)
    np.save(tmp_path / "a.npy", np.array(choices, dtype=kind))
    assert read(tmp_path / "a.npy", Shape((0, 1), ("L0", "L1"), experts, 3, 1)) == (choices, None)


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (np.zeros((2, 2), "i4"), r"expected integers of shape"),
        (np.zeros((2, 2, 2), "f4"), r"expected integers of shape"),
        (np.zeros((2, 2, 2), "i4", order="F"), r"in C order"),
        (np.zeros((2, 2, 2), ">i4"), r"little-endian"),
        (np.array([[[3, 8]] * 2] * 2), r"expert 8 in layer 0: expected -1 to 7"),
        (np.array([[[3, -2]] * 2] * 2), r"expert -2"),
    ],
)
def test_an_array_of_something_else_is_refused(tmp_path: Path, array: Any, why: str) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(Unreadable, match=why):
        read(tmp_path / "a.npy")
    assert [one.name for one in tmp_path.iterdir()] == ["a.npy"]


def test_base64_of_sglang_is_read_without_its_dense_layers(tmp_path: Path) -> None:
    array = np.insert(np.array(rows(3)), [0, 1], -1, axis=1)
    for choices in (array, np.append(array, [[[0, 0]] * 4], axis=0)):
        (tmp_path / "a").write_bytes(sglang([1, 2, 3, 4], choices))
        assert read(tmp_path / "a") == ([*rows(3), EMPTY], [1, 2, 3, 4])


def test_the_last_token_of_a_top_1_model_does_not_credit_expert_0(tmp_path: Path) -> None:
    response = {"token_ids": [1, 2, 3], "routed_experts": [[[0]], [[5]], [[0]]]}
    found, _ = read(lines(tmp_path, response), Shape((0,), ("L0",), 8, 1, 1))
    assert found == [[(0,)], [(5,)], [()]]


def test_without_a_probe_the_layers_are_those_that_chose(tmp_path: Path) -> None:
    choices = [[(-1, -1), *token] for token in rows(3)]
    lost = [[(-1, -1), token[1], (-1, -1)] for token in choices]  # one layer in one response
    file = lines(tmp_path, *({"routed_experts": one} for one in (lost, choices)))
    convert_choices(file, tmp_path / "routing.bin")
    with Routing(tmp_path / "routing.bin") as routing:
        assert routing.shape.layers == (1, 2)
        assert routing.choice(0, 1).experts == choices[1][1]


def test_choices_are_a_run_that_has_ended(tmp_path: Path) -> None:
    path = lines(tmp_path, *[{"routed_experts": rows(3)}] * 2)
    reader = FORMATS["routed-experts"].open(settle(path), "", "a", SourceRequest())
    assert drained(reader)[-1]["reason"] == "finished"


@pytest.mark.parametrize(
    ("response", "why"),
    [
        ({"text": "hello"}, "line 1: no routed_experts"),
        ([1, 2], "line 1: Expected `object`"),
        ({"routed_experts": [[[1, 2]], [[1]]]}, "line 1: rows differ in size"),
        ({"token_ids": [1], "routed_experts": "!!" * 11 + "=="}, "is not base64"),
        ({"routed_experts": "AAAA"}, "need token ids"),
        ({"routed_experts": [[[1 << 64]]]}, "line 1: .*too "),
        ({"token_ids": [1], "routed_experts": "AAAA"}, "0 choices need token ids"),
        ({"token_ids": [1] * 9, "routed_experts": rows(5)}, r"choices \[5, 2, 2\] .* for 9 tokens"),
        ({"token_ids": [-1], "routed_experts": rows(1)}, "a token id is negative"),
        ({"choices": [{}, {}]}, "2 choices"),
        ({"routed_experts": {"valid_shape": [1, 2, 2]}}, "missing required field `data`"),
        ({"routed_experts": {"data": "AAAA", "shape": [9, 2, 2]}}, "3 bytes: expected 36 for"),
        ({"routed_experts": {"data": "AAA=", "shape": [1, 1, 2], "start": 9}}, "from token 9 on"),
        ({"routed_experts": {"data": "AA==", "shape": [1, 1, 1], "dtype": "f4"}}, "not base64 of"),
        ({"routed_experts": rows(2, experts=9, k=9)}, "k"),
    ],
)
def test_a_line_that_is_something_else_is_named(tmp_path: Path, response: object, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        read(lines(tmp_path, response))


def test_a_message_needs_no_choice_around_it(tmp_path: Path) -> None:
    message = {"prompt_token_ids": [1], "routed_experts": rows(1)}
    assert read(lines(tmp_path, {"message": message})) == (rows(1), [1])


def test_a_line_that_is_cut_off_is_named(tmp_path: Path) -> None:
    path = lines(tmp_path, *[{"routed_experts": rows(3)}] * 2)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(Unreadable, match=r"line 2 \(cut off, or still written\): .* truncated"):
        read(path)


def test_more_numbers_than_the_shape_has_are_refused(tmp_path: Path) -> None:
    whole = slime(list(range(9)), np.array(rows(9)))
    (tmp_path / "a").write_bytes(whole.replace(b"K\x09K\x02K\x02\x87", b"K\x08K\x02K\x02\x87"))
    with pytest.raises(Unreadable, match="the choices of 8 tokens have another number of bytes"):
        read(tmp_path / "a")


def test_a_dump_is_read_in_pieces(tmp_path: Path) -> None:
    array = np.arange(4000 * 24 * 8, dtype="i4").reshape(4000, 24, 8) % 160
    samples = [sample(list(range(4001)), array.copy()) for _ in range(8)]
    (tmp_path / "a.pt").write_bytes(saved({"rollout_id": 3, "samples": samples}))  # 35 MB
    tracemalloc.start()
    convert_choices(tmp_path / "a.pt", tmp_path / "routing.bin")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 << 20
    with Routing(tmp_path / "routing.bin") as routing:
        assert routing.tokens == 8 * 4001
        assert routing.choice(23, 3 * 4001 + 5).experts == tuple(array[5, 23])
