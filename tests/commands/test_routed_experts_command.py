"""``placement``, ``coverage`` and ``check`` of the choices that engines and RL trainers write."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Call
from tests.sources.sound import saved
from tests.sources.test_routed_experts import FORMS, sample, slime

TOKENS, LAYERS, EXPERTS = 400, 2, 8
IDS = list(range(TOKENS + 1))


@pytest.fixture
def arrays() -> list[Any]:
    """Of eight responses: experts 0 and 1 are chosen most."""
    rng = np.random.default_rng(0)
    shares = np.array([4, 4, 1, 1, 1, 1, 1, 1])
    keys = rng.exponential(1 / shares, (8, TOKENS, LAYERS, EXPERTS))
    return list(keys.argsort(axis=-1)[..., :2])


def counts_of(arrays: list[Any], first: int = 0) -> list[list[int]]:
    rows = np.concatenate([array[first:] for array in arrays])
    return [np.bincount(rows[:, n].ravel(), minlength=EXPERTS).tolist() for n in range(LAYERS)]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_serves_all_three(
    call: Call, tmp_path: Path, arrays: list[Any], form: Any
) -> None:
    path = tmp_path / "rollout_1.pt"
    if form is slime:
        samples = [sample(IDS, array.astype("i4")) for array in arrays]
        path.write_bytes(saved({"rollout_id": 1, "samples": [*samples, sample([], None)]}))
    else:
        path = tmp_path / "engine.jsonl"
        path.write_bytes(b"\n".join(form(IDS, array) for array in arrays))
    found = json.loads(call("coverage", path, "--min-tokens", "1", "--json")[1])
    expected = counts_of(arrays, 2 if form.__name__ == "prime_rl" else 0)
    for layer, counts in zip(found["layers"], expected, strict=True):
        assert {one["expert"]: one["tokens"] for one in layer["experts"]} == dict(enumerate(counts))
        assert (layer["top_k"], layer["tokens"]) == (2, sum(counts) // 2)
    assert found["steps"] == len(arrays)
    code, out, err = call("placement", path, "--ranks", "4", "--json")
    placed = json.loads(out)
    assert (code, err) == (int(bool(placed["reason"])), "")
    assert placed["score"] == [5, 8, 4]
    assert call("check", path)[0] == 0


def test_base64_of_sglang_needs_k_and_dense_layers_keep_their_place(
    call: Call, tmp_path: Path, arrays: list[Any]
) -> None:
    path = tmp_path / "engine.jsonl"
    lines = []
    for array in arrays:
        dense = np.full((TOKENS, 1, 2), -1)
        flat = np.concatenate([dense, array], axis=1).astype("<i4").tobytes()
        meta = {"routed_experts": base64.b64encode(flat).decode()}
        lines.append(json.dumps({"input_ids": IDS, "meta_info": meta}))
    path.write_text("\n".join(lines))
    assert "base64 holds no shape" in call("coverage", path)[2]
    found = json.loads(call("coverage", path, "--top-k", "2", "--json")[1])
    assert [layer["depth"] for layer in found["layers"]] == [1, 2]
    assert found["layers"][0]["tokens"] == 8 * TOKENS
    given = "--top-k", "2", "--num-experts", "4"
    assert "expected 0 to 3" in call("coverage", path, *given)[2]
