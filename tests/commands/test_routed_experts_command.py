"""``placement``, ``coverage`` and ``check`` of the choices that engines and RL trainers write."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Call
from tests.sources.sound import saved
from tests.sources.test_routed_experts import FORMS, as_base64, prime_rl, sample, slime

TOKENS, EXPERTS = 400, 8
IDS = list(range(TOKENS + 1))


@pytest.fixture
def arrays() -> list[Any]:
    """Of eight responses: experts 0 and 1 are chosen most."""
    shares = np.array([4, 4, 1, 1, 1, 1, 1, 1])
    keys = np.random.default_rng(0).exponential(1 / shares, (8, TOKENS, 2, EXPERTS))
    return list(keys.argsort(axis=-1)[..., :2])


@pytest.mark.parametrize("form", FORMS)
def test_every_form_serves_all_three(
    call: Call, tmp_path: Path, arrays: list[Any], form: Any
) -> None:
    path = tmp_path / "engine.jsonl"
    path.write_bytes(b"\n".join(form(IDS, array) for array in arrays))
    if form is slime:
        path = tmp_path / "rollout_1.pt"
        samples = [sample(IDS, array.astype("i4")) for array in arrays]
        path.write_bytes(saved({"rollout_id": 1, "samples": [*samples, sample([], None)]}))
    found = json.loads(call("coverage", path, "--min-tokens", "1", "--json")[1])
    rows = np.concatenate([array[2 if form is prime_rl else 0 :] for array in arrays])
    for layer, chosen in zip(found["layers"], np.moveaxis(rows, 1, 0), strict=True):
        tokens = {one["expert"]: one["tokens"] for one in layer["experts"]}
        assert tokens == dict(enumerate(np.bincount(chosen.ravel())))
        assert (layer["top_k"], layer["tokens"]) == (2, len(rows))
    assert found["steps"] == len(arrays)
    assert json.loads(call("placement", path, "--ranks", "4", "--json")[1])["score"] == [5, 8, 4]
    assert call("check", path)[0] == 0


def test_base64_of_sglang_needs_k_and_dense_layers_keep_their_place(
    call: Call, tmp_path: Path, arrays: list[Any]
) -> None:
    path = tmp_path / "engine.jsonl"
    lines = []
    for array in arrays:
        flat = np.insert(array, 0, -1, axis=1).astype("<i4").tobytes()
        meta = {"routed_experts": as_base64(flat)}
        lines.append(json.dumps({"input_ids": IDS, "meta_info": meta}))
    path.write_text("\n".join(lines))
    assert "base64 holds no shape" in call("coverage", path)[2]
    found = json.loads(call("coverage", path, "--top-k", "2", "--json")[1])
    assert [layer["depth"] for layer in found["layers"]] == [1, 2]
    assert found["layers"][0]["tokens"] == 8 * TOKENS
    given = "--top-k", "2", "--num-experts", "4"
    assert "expected 0 to 3" in call("coverage", path, *given)[2]
