"""Counts of the probe in models of transformers, against an independent recomputation.

Six families here; ``python -m benchmarks.families`` does it with all of them.
"""

from pathlib import Path

import pytest

from benchmarks.families.tiny import families
from benchmarks.families.trial import WAYS, attempt
from tests.problems import problems_in

FAMILIES = ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "deepseek_v4", "granitemoe")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_equal_an_independent_recomputation(family: str, way: str, tmp_path: Path) -> None:
    outcome = attempt(family, WAYS[way], tmp_path)
    assert outcome.problems() == []
    assert all(sum(row) > 0 for row in outcome.counts.values())
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    assert [problem for problem in problems_in(enumerate(lines, 1))] == []


def test_every_family_that_records_router_logits_is_known() -> None:
    assert len(families()) >= 75
    assert {"mixtral", "zaya", "nllb_moe", "inkling2_loop"} <= set(families())
