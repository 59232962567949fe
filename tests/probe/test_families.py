"""Counts of the probe in models of transformers, against an independent recomputation.

Families with a reader of each kind; ``python -m benchmarks.families`` does it with all of them.
"""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.families.trial import WAYS, attempt
from tests.problems import problems_in

USUAL = ("qwen3_moe", "gpt_oss", "deepseek_v3", "deepseek_v4", "granitemoe")
TRIALS = [("mixtral", way) for way in WAYS]
TRIALS += [(family, way) for family in USUAL for way in ("reentrant", "eager")]
ODD: dict[str, dict[str, Any]] = {
    "llama4": {"score_function": "sigmoid"},  # its experts see every token
    "doge": {"num_experts": 16},  # pairs of product keys
    "phimoe": {},  # samples its choices
    "longcat_flash": {"num_experts": 8},  # without the identity experts
    "deepseek_v4": {"layers": [0, 1, 2, 3]},  # router_logits has fewer: some route by hash
    "jetmoe": {
        "layers": [0, 0, 1, 1, 2, 2, 3, 3],
        "layer_names": ["L0.attn", "L0", "L1.attn", "L1", "L2.attn", "L2", "L3.attn", "L3"],
    },
    "inkling2_loop": {"layer_names": ["L0", "L1#1", "L1#2", "L2#1", "L2#2", "L3"]},
    "switch_transformers": {"layer_names": ["enc.1", "enc.3", "dec.1", "dec.3"]},
}
"""What the header has of a family that is read in a way of its own."""


@pytest.mark.parametrize(("family", "way"), TRIALS)
def test_counts_equal_an_independent_recomputation(family: str, way: str, tmp_path: Path) -> None:
    outcome = attempt(family, WAYS[way], tmp_path)
    assert outcome.problems() == []
    assert all(sum(row) > 0 for row in outcome.counts.values())
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    assert [problem for problem in problems_in(enumerate(lines, 1))] == []


@pytest.mark.parametrize("family", ODD)
def test_families_with_own_readers_are_counted_and_described(family: str, tmp_path: Path) -> None:
    changes = {"num_experts_per_tok": 2} if family == "llama4" else {}
    outcome = attempt(family, WAYS["left"], tmp_path, **changes)
    assert outcome.problems() == []
    assert {key: outcome.run["model"][key] for key in ODD[family]} == ODD[family]


@pytest.mark.parametrize("family", ["afmoe", "laguna", "ernie4_5_moe", "lfm2_moe", "zaya"])
def test_the_selection_bias_is_found_wherever_it_is(family: str, tmp_path: Path) -> None:
    outcome = attempt(family, WAYS["left"], tmp_path)
    assert outcome.problems() == []
    assert all(len(row) == 8 for row in outcome.line["expert_bias"])
    assert any(any(row) for row in outcome.line["expert_bias"])


def test_a_learned_router_bias_is_not_a_selection_bias(tmp_path: Path) -> None:
    assert attempt("gpt_oss", WAYS["left"], tmp_path).line["expert_bias"] == []
