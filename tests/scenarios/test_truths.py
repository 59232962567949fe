"""Scenarios: what their lines hold that the diagnosis does not report.

``tests/diagnosis/test_known_truth.py`` finds every trouble of their truth in the lines.
"""

import json
from functools import lru_cache
from typing import Any

import pytest

from benchmarks.scenarios import SCENARIOS
from benchmarks.scenarios.variants import APART
from microscope_tui import measures
from microscope_tui.diagnosis import RULES
from microscope_tui.scenarios import Shape, Truth, lines

SMALL = Shape(routers=9, num_experts=16, top_k=2, tokens=2048, steps=500)
NEGATIVE = Shape(routers=4, num_experts=16, top_k=2, tokens=2048, steps=300)
SHAPES = [
    Shape(routers=3, num_experts=4, top_k=1, tokens=512, steps=30),
    Shape(routers=2, num_experts=64, top_k=8, tokens=1024, steps=30),
]
# Where the meter is at fault, or the format has another sum for it.
SUM_DIFFERS = {"double-counting", "padding", "from-shares", "impossible-counts", "cause-wrong-sums"}
SUM_DIFFERS |= {"expert-choice", "expert-choice-uneven", "partial-sums", "zero-block"}
HARD_NEGATIVES = [
    name
    for name, scenario in SCENARIOS.items()
    if lines(scenario, SMALL, 0)[0].hard_negative
    and name not in ("narrow-steady", "frozen-steady", "ragged", "lora", "settles-late")
]
SEVERITIES = {"info", "warn", "crit", "error"}

each_scenario = pytest.mark.parametrize("name", SCENARIOS)
Drawn = tuple[Truth, dict[str, Any], list[dict[str, Any]]]


@lru_cache(maxsize=4)
def drawn(name: str, shape: Shape = SMALL, seed: int = 0) -> Drawn:
    """Truth, header and step records of a scenario; a torn last line is left out."""
    truth, encoded = lines(SCENARIOS[name], shape, seed)
    records = [json.loads(line) for line in encoded if line.endswith(b"\n")]
    return truth, records[0], [record for record in records if record["kind"] == "step"]


def balance(record: dict[str, Any], header: dict[str, Any]) -> list[float]:
    model = header["model"]
    return [
        measures.collapse_index(effective, model["num_experts"], model["top_k"]) or 0.0
        for effective in record["router"]["effective_experts"]
    ]


@each_scenario
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.num_experts}/{s.top_k}")
def test_rows_sum_to_tokens_times_k_and_entropies_are_possible(name: str, shape: Shape) -> None:
    if not SCENARIOS[name].fits(shape):
        with pytest.raises(ValueError, match="does not fit"):
            lines(SCENARIOS[name], shape, 0)
        return
    _, header, steps = drawn(name, shape)
    for record in steps:
        pairs = zip(record["router"]["entropy"], record["router"]["mean_entropy"], strict=True)
        assert all(a <= b + 1e-9 for a, b in pairs if isinstance(a, float))
        for row in record.get("tokens_per_expert", []):
            if row is None or name in SUM_DIFFERS:
                continue
            assert sum(row) == record["tokens"] * header["model"]["top_k"]
            assert 0 <= min(row) <= max(row) <= record["tokens"]


@each_scenario
def test_the_truth_names_what_exists(name: str) -> None:
    truth, _ = lines(SCENARIOS[name], SMALL, 1)
    assert set(truth.allowed) <= set(RULES)
    assert set(truth.allowed.values()) <= SEVERITIES
    for expected in truth.expected:
        assert expected.rule in RULES
        assert expected.severity in SEVERITIES
        assert set(expected.routers) <= set(range(SMALL.routers))
        assert set(expected.experts) <= set(range(SMALL.num_experts))
        last = SMALL.steps * (APART if name == "sparse-log" else 1)
        assert 1 <= expected.onset < (expected.until or last)
        if truth.hard_negative:
            assert expected.severity == "info"


@pytest.mark.parametrize("name", HARD_NEGATIVES)
def test_a_hard_negative_never_stays_collapsed(name: str) -> None:
    _, header, steps = drawn(name, NEGATIVE, seed=4)
    over = [r for r in steps if r["step"] > 100 and min(balance(r, header)) < 0.35]
    assert len(over) <= (24 if name == "shock" else 0)


def test_narrow_data_are_as_uneven_at_the_end_as_at_the_start() -> None:
    _, header, steps = drawn("narrow-steady")
    assert header["profile"] == "finetune"
    first, last = balance(steps[0], header), balance(steps[-1], header)
    assert min(first) < 0.35
    assert all(abs(a - b) < 0.08 for a, b in zip(first, last, strict=True))
