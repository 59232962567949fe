"""``mismatch``: two probes, and an engine beside a probe."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microscope_tui.commands import console
from tests.conftest import Call, header
from tests.extensions.anatomy import test_compare as compare
from tests.sources.test_routed_experts import sglang

LAYERS, TOKENS, EXPERTS, K = 4, 500, 16, 2
Ids = list[list[list[int]]]


def write(folder: Path, ids: Ids, *, dtype: str = "fp32", first: int = 0) -> Path:
    """A probe with these choices: layer → token → experts; only its ``routing.bin``."""
    folder.mkdir()
    about: Any = {"margins": [0.001 + (token % 100) / 100 for token in range(TOKENS)]}
    about |= {"tokens": first, "model": "planted", "dtype": dtype}
    return compare.write(folder / "routing.bin", ids, EXPERTS, **about).parent


@pytest.fixture
def ids() -> Ids:
    rng = random.Random(0)
    return [[rng.sample(range(1, 15), K) for _ in range(TOKENS)] for _ in range(LAYERS)]


def rows_of(ids: Ids) -> list[list[list[int]]]:
    return [[ids[layer][token] for layer in range(LAYERS)] for token in range(TOKENS)]


@pytest.fixture
def flipped(ids: Ids) -> Ids:
    """Expert 15 instead of the second choice, for every 100th token of L2: the small margins."""
    other = [[row[:] for row in rows] for rows in ids]
    for token in range(0, TOKENS, 100):
        other[1][token][1] = 15
    return other


def test_flips_are_in_text_and_json(call: Call, tmp_path: Path, ids: Ids, flipped: Ids) -> None:
    a, b = write(tmp_path / "a", ids), write(tmp_path / "b", flipped, dtype="bf16")
    code, out, err = call("mismatch", a, b / "routing.bin")
    assert (code, err) == (0, "")
    assert "planted, bf16" in out
    assert "0.25% of the choices of 500 tokens in 4 layers differ" in out  # 5 of 2,000
    assert "1.00% of the tokens" in out
    assert "that A has for" not in out, "no layer is another one"
    assert max(map(len, out.splitlines()[2:])) <= 80
    found = json.loads(call("mismatch", a, b, "--json")[1])
    assert (found["choices"], found["choices_differing"]) == (LAYERS * TOKENS, 5)
    assert [layer["differing"] for layer in found["layers"]] == [0, 5, 0, 0]
    swaps = {(one["from"], one["to"]): one["times"] for one in found["layers"][1]["swaps"]}
    assert sum(swaps.values()) == 5
    assert set(swaps) == {(ids[1][token][1], 15) for token in range(0, TOKENS, 100)}
    assert found["margins"][0]["differing"] == 5


def test_the_largest_allowed_share_decides_the_exit_code(
    call: Call, tmp_path: Path, ids: Ids, flipped: Ids
) -> None:
    a, b = write(tmp_path / "a", ids), write(tmp_path / "b", flipped)
    assert call("mismatch", a, b, "--max-share", "0.0024")[0] == 1
    assert call("mismatch", a, b, "--max-share", "0.0025")[0] == 0
    assert call("mismatch", a, a, "--max-share", "0")[0] == 0


def test_an_engine_is_compared_with_a_probe_in_either_order(
    call: Call, tmp_path: Path, ids: Ids, flipped: Ids
) -> None:
    probe, rows = write(tmp_path / "a", ids), rows_of(flipped)
    rows[-1] = [[0] * K] * LAYERS  # the last sampled token
    response = {"prompt_token_ids": list(range(9)), "token_ids": list(range(9, TOKENS))}
    (tmp_path / "engine.jsonl").write_text(json.dumps(response | {"routed_experts": rows}) + "\n")
    np.save(tmp_path / "engine.npy", np.array(rows, dtype=np.int32))
    for engine in (tmp_path / "engine.jsonl", tmp_path / "engine.npy"):
        there = json.loads(call("mismatch", probe, engine, "--json")[1])
        back = json.loads(call("mismatch", engine, probe, "--json")[1])
        assert there["tokens"] == TOKENS - 1
        assert there["choices_differing"] == back["choices_differing"] == 5
        turned = {(one["to"], one["from"]) for one in back["layers"][1]["swaps"]}
        assert {(one["from"], one["to"]) for one in there["layers"][1]["swaps"]} == turned
        assert (there["margins_of"], back["margins_of"]) == ("A", "B")
        assert there["margins"][0]["differing"] == 5


def test_what_explains_the_differences_is_in_text_and_json(
    call: Call, tmp_path: Path, ids: Ids, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = [ids[0], ids[0], ids[2][-1:] + ids[2][:-1], ids[3]]
    a, b = write(tmp_path / "a", ids), write(tmp_path / "b", other)
    out = call("mismatch", a, b)[1]
    assert "B is 1 token late in L3" in out
    assert "B: L2 is a copy of L1" in out
    found = json.loads(call("mismatch", a, b, "--json")[1])
    assert found["copies"] == [{"file": "B", "layer": "L2", "of": "L1"}]
    assert [layer["b_is_late_by"] for layer in found["layers"]] == [0, 0, 1, 0]
    first = [layer["differing_first"] for layer in found["layers"]]
    assert f"L2 is the first layer that differs in {first[1]} of the {sum(first)} tokens" in out
    array = np.array(rows_of(ids), np.int32)
    array[7:9] = -1
    np.save(tmp_path / "b.npy", array)
    monkeypatch.setattr(console, "_PROGRESS_FROM_BYTES", 1)
    _, out, err = call("mismatch", a, tmp_path / "b.npy")
    assert "498 of 500 tokens are compared: A has choices of 500, B of 498" in out
    assert "b.npy: 0.0 GB to read" in err


def test_swaps_of_two_engines_go_from_the_first_to_the_second(
    call: Call, tmp_path: Path, ids: Ids, flipped: Ids
) -> None:
    for name, choices in (("a.npy", ids), ("b.npy", flipped)):
        np.save(tmp_path / name, np.array(rows_of(choices), dtype=np.int32))
    _, out, _ = call("mismatch", tmp_path / "a.npy", tmp_path / "b.npy", "--json")
    assert {swap["to"] for swap in json.loads(out)["layers"][1]["swaps"]} == {15}
    np.save(tmp_path / "all.npy", np.insert(np.array(rows_of(ids)), 0, -1, axis=1))
    _, _, err = call("mismatch", tmp_path / "a.npy", tmp_path / "all.npy")
    assert "depth 0 in A, 1 in B; if one lacks the dense layers, compare each with a probe" in err


def base64_of(tmp_path: Path, ids: Ids) -> Path:
    """SGLang's form, without a shape."""
    response = sglang(list(range(TOKENS)), np.array(rows_of(ids)))
    (tmp_path / "sglang.jsonl").write_bytes(response)
    return tmp_path / "sglang.jsonl"


def test_choices_without_a_shape_have_the_k_of_the_other_side_in_either_order(
    call: Call, tmp_path: Path, ids: Ids, flipped: Ids
) -> None:
    bare = base64_of(tmp_path, flipped)
    np.save(tmp_path / "engine.npy", np.array(rows_of(ids), dtype=np.int32))
    for other in (write(tmp_path / "a", ids), tmp_path / "engine.npy"):
        for sides in ((bare, other), (other, bare)):
            code, out, err = call("mismatch", *sides, "--json")
            assert (code, err) == (0, "")
            assert json.loads(out)["choices_differing"] == 5


def test_k_is_given_where_neither_side_has_it_and_refused_where_one_has_another(
    call: Call, tmp_path: Path, ids: Ids
) -> None:
    bare, probe = base64_of(tmp_path, ids), write(tmp_path / "a", ids)
    code, _, err = call("mismatch", bare, bare)
    assert (code, err.count("and --top-k")) == (3, 1)
    assert call("mismatch", bare, bare, "--top-k", "2")[0] == 0
    assert call("mismatch", probe, bare, "--top-k", "2")[0] == 0
    for sides in ((bare, probe), (probe, bare)):
        code, out, err = call("mismatch", *sides, "--top-k", "4")
        assert (code, out) == (3, "")
        assert f"--top-k 4: the tokens of {probe / 'routing.bin'} choose 2 experts" in err
    assert call("mismatch", bare, bare, "--top-k", "0")[0] == 64
    np.save(tmp_path / "one.npy", np.array(rows_of(ids))[..., :1])
    assert "top_k: 2 in A, 1 in B" in call("mismatch", probe, tmp_path / "one.npy")[2]


def test_an_engine_without_choices_in_a_layer_is_compared_in_the_others(
    call: Call, tmp_path: Path, ids: Ids
) -> None:
    array = np.insert(np.array(rows_of(ids)), 0, -1, axis=1)  # the dense layer
    np.save(tmp_path / "whole.npy", array)
    array[:, 2] = -1
    np.save(tmp_path / "lost.npy", array)
    probe = write(tmp_path / "a", ids)
    _, out, _ = call("mismatch", probe, tmp_path / "lost.npy")
    assert "0.00% of the choices of 500 tokens in 3 layers differ" in out
    assert "L2 has choices in A and none in B" in out
    found = json.loads(call("mismatch", probe, tmp_path / "lost.npy", "--json")[1])
    assert [layer["share"] for layer in found["layers"]] == [0, None, 0, 0]
    assert found["layers"][1]["tokens_routed"] == {"a": TOKENS, "b": 0}
    code, _, err = call("mismatch", tmp_path / "whole.npy", tmp_path / "lost.npy")
    assert (code, "layers: 4 in A, 3 in B" in err) == (3, True)


def test_swapped_layers_are_in_text_and_json(call: Call, tmp_path: Path, ids: Ids) -> None:
    a = write(tmp_path / "a", ids)
    b = write(tmp_path / "b", [ids[1], ids[0], ids[2], ids[3]])
    assert "B has the choices that A has for L2 in L1, L1 in L2\n" in call("mismatch", a, b)[1]
    layers = json.loads(call("mismatch", a, b, "--json")[1])["layers"]
    assert [layer["b_has_choices_of"] for layer in layers] == ["L2", "L1", None, None]


def test_a_refusal_says_the_first_difference(call: Call, tmp_path: Path, ids: Ids) -> None:
    a, b = write(tmp_path / "a", ids), write(tmp_path / "b", ids, first=3)
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\n')
    for path, why in (
        (b, "token 0: id 0 in A, 3 in B"),
        (tmp_path / "bad.jsonl", "no routed_experts"),
        (tmp_path, "no such file"),
        (tmp_path / "none.npy", "no such file"),
        (__file__, "MOEROUTE"),
    ):
        code, out, err = call("mismatch", a, path)
        assert (code, out) == (3, "")
        assert why in err


def test_the_screen_compares_two_runs(call: Call, tmp_path: Path, ids: Ids, flipped: Ids) -> None:
    model = {"layers": [1, 2, 3, 4], "layer_names": ["L1", "L2", "L3", "L4"]}
    a, b = write(tmp_path / "a", ids), write(tmp_path / "b", flipped)
    for folder in (a, b):
        counts = [[TOKENS * K // EXPERTS] * EXPERTS for _ in range(LAYERS)]
        step = {"kind": "step", "step": 1, "loss": 2.0, "tokens_per_expert": counts}
        head = header(model=model | {"num_experts": EXPERTS}, profile="eval", run=folder.name)
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, (head, step))) + "\n")
    place = ("snapshot", b, "--screen", "mismatch", "--against", a)
    code, out, err = call(*place, "--size", "80x24")
    assert (code, err) == (0, "")
    assert "0.25% of the choices" in out
    assert max(map(len, out.splitlines())) <= 80
    assert call(*place, "--format", "svg")[1].startswith("<svg")
    assert "Pin the run" in call(*place[:4])[1]
