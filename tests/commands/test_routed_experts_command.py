"""``placement``, ``coverage`` and ``check`` of the choices that engines and RL trainers write."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Call
from tests.sources.sound import saved
from tests.sources.test_routed_experts import FORMS, prime_rl, sample, slime

TOKENS, EXPERTS = 400, 8
IDS = list(range(TOKENS + 1))


@pytest.fixture
def arrays() -> list[Any]:
    """Of eight responses: a dense layer, then experts 0 and 1 are chosen most."""
    shares = np.array([4, 4, 1, 1, 1, 1, 1, 1])
    keys = np.random.default_rng(0).exponential(1 / shares, (8, TOKENS, 2, EXPERTS))
    return list(np.insert(keys.argsort(axis=-1)[..., :2], 0, -1, axis=2))


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
    found = json.loads(call("coverage", path, "--top-k", "2", "--json")[1])
    assert [layer["depth"] for layer in found["layers"]] == [1, 2]
    rows = np.concatenate([array[2 if form is prime_rl else 0 :] for array in arrays])
    for layer, chosen in zip(found["layers"], np.moveaxis(rows, 1, 0)[1:], strict=True):
        tokens = {one["expert"]: one["tokens"] for one in layer["experts"]}
        assert tokens == dict(enumerate(np.bincount(chosen.ravel())))
        assert (layer["top_k"], layer["tokens"]) == (2, len(rows))
    assert found["steps"] == len(arrays)
    given = path, "--top-k", "2"
    assert json.loads(call("placement", *given, "--ranks", "4", "--json")[1])["score"] == [5, 8, 4]
    assert call("check", *given)[0] == 0
    assert "expected -1 to 3" in call("coverage", *given, "--num-experts", "4")[2]
