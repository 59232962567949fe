"""Scenarios: what their lines hold that the diagnosis does not report.

``tests/diagnosis/test_known_truth.py`` finds every trouble of their truth in the lines.
"""

import json
import math
from functools import lru_cache
from statistics import fmean
from typing import Any

import pytest

from benchmarks.scenarios import SCENARIOS
from benchmarks.scenarios.variants import APART
from microscope_tui import measures
from microscope_tui.diagnosis import RULES
from microscope_tui.scenarios import Expected, Shape, Truth, lines

SMALL = Shape(routers=9, num_experts=16, top_k=2, tokens=2048, steps=500)
NEGATIVE = Shape(routers=4, num_experts=16, top_k=2, tokens=2048, steps=300)
SHORT = Shape(routers=8, num_experts=8, top_k=2, tokens=1024, steps=80)
SHAPES = [
    Shape(routers=3, num_experts=4, top_k=1, tokens=512, steps=30),
    Shape(routers=2, num_experts=64, top_k=8, tokens=1024, steps=30),
]
# Where the meter is at fault, or the format has another sum for it.
SUM_DIFFERS = {"double-counting", "padding", "from-shares", "impossible-counts"}
HARD_NEGATIVES = ["specialised", "soft", "warm-up", "small-batch", "domain-bursts", "shock"]
HARD_NEGATIVES += ["narrow-finetune", "hot-expert", "upcycled", "resume-bias-reset"]
HARD_NEGATIVES += ["even-but-one", "narrow-steady", "parting"]
HARD_NEGATIVES += ["data-in-blocks", "slow-swing", "alternating-tokens", "fine-grained"]
HARD_NEGATIVES += ["hovering-finetune"]
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


def one(truth: Truth, rule: str) -> Expected:
    (found,) = [expected for expected in truth.expected if expected.rule == rule]
    return found


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


def test_entropy_tells_a_confident_collapse_and_hides_an_unconfident_one() -> None:
    for name, low, high in [("slow-collapse", 0.0, 0.15), ("collapse-unconfident", 0.3, 0.8)]:
        truth, header, steps = drawn(name)
        for router in one(truth, "COLLAPSE").routers:
            entropy = steps[-1]["router"]["entropy"][router]
            assert low <= entropy / math.log(header["model"]["num_experts"]) <= high


@pytest.mark.parametrize("name", [name for name in HARD_NEGATIVES if name != "narrow-steady"])
def test_a_hard_negative_never_stays_collapsed(name: str) -> None:
    _, header, steps = drawn(name, NEGATIVE, seed=4)
    over = [r for r in steps if r["step"] > 100 and min(balance(r, header)) < 0.35]
    assert len(over) <= (24 if name == "shock" else 0)


def test_hard_negatives_are_those_that_look_sick() -> None:
    found = {name for name in SCENARIOS if lines(SCENARIOS[name], SMALL, 0)[0].hard_negative}
    assert found == {*HARD_NEGATIVES, "ragged"}


def test_the_loss_says_nothing_of_a_slow_collapse_and_all_of_a_divergence() -> None:
    for name, rises in [("slow-collapse", False), ("divergence", True)]:
        losses = [record["loss"] for record in drawn(name)[2]]
        assert (losses[-1] > min(losses) + 1) == rises


def test_one_rank_carries_too_much_while_no_expert_stands_out() -> None:
    truth, header, steps = drawn("rank-skew")
    ranks, sick = header["expert_parallel_size"], one(truth, "OVERLOAD").routers
    each = SMALL.num_experts // ranks
    for record in steps[100:]:
        for router, row in enumerate(record["tokens_per_expert"]):
            loads = [sum(row[r * each : (r + 1) * each]) for r in range(ranks)]
            assert (max(loads) * ranks / sum(loads) > 1.5) == (router in sick)
            assert record["router"]["max_load"][router] < 2.2


def test_no_block_of_data_leaves_the_same_experts_out_for_long() -> None:
    _, _, steps = drawn("data-in-blocks")
    for router in range(SMALL.routers):
        rows = [record["tokens_per_expert"][router] for record in steps]
        assert all(row.count(0) >= SMALL.num_experts // 4 for row in rows)
        for column in zip(*rows, strict=True):
            runs = "".join("0" if n == 0 else "1" for n in column).split("1")
            assert max(map(len, runs)) <= 40


def test_alternating_tokens_change_no_share() -> None:
    _, _, steps = drawn("alternating-tokens")
    tokens = {record["tokens"] for record in steps}
    assert max(tokens) >= 2 * min(tokens)
    for router in range(SMALL.routers):
        most = [
            fmean(r["router"]["max_load"][router] for r in steps if r["tokens"] == number)
            for number in tokens
        ]
        assert max(most) < 1.05 * min(most)


def test_an_eighth_of_the_experts_hovers_at_a_tenth_or_falls_to_next_to_nothing() -> None:
    wide = Shape(routers=3, num_experts=64, top_k=8, tokens=4096, steps=600)
    for name, low, high in [("hovering-finetune", 0.05, 0.16), ("starving-finetune", 0.005, 0.035)]:
        _, _, steps = drawn(name, wide)
        shares = []
        for router in range(wide.routers):
            rows = [record["tokens_per_expert"][router] for record in steps[-50:]]
            summed = [sum(column) for column in zip(*rows, strict=True)]
            shares += [n * wide.num_experts / sum(summed) for n in summed]
        few = sorted(shares)[: wide.num_experts // 8]
        assert low < few[0] <= few[-1] < high


def test_each_lint_has_a_header_of_its_own() -> None:
    headers = {name: json.loads(next(lines(SCENARIOS[name], SHORT, 0)[1])) for name in SCENARIOS}
    plain = headers["healthy"]
    assert plain["balance"] == {"method": "bias", "bias_update_rate": 0.001}
    assert plain["model"]["norm_top_k"]
    model = headers["lint-top1-normalised"]["model"]
    assert (model["top_k"], model["norm_top_k"]) == (1, True)
    assert headers["lint-no-balance"]["balance"].get("aux_weight", 0.0) == 0.0
    assert headers["lint-aux-not-applied"]["balance"]["output_router_logits"] is False
    assert headers["lint-gpt-oss-aux"]["balance"]["aux_weight"] == 0.9
    assert headers["narrow-finetune"]["profile"] == "finetune"
    assert headers["from-shares"]["source"]["counts"] == "shares"
    assert headers["from-top1"]["source"]["counts"] == "top1"


def test_narrow_data_are_as_uneven_at_the_end_as_at_the_start() -> None:
    _, header, steps = drawn("narrow-steady")
    assert header["profile"] == "finetune"
    first, last = balance(steps[0], header), balance(steps[-1], header)
    assert min(first) < 0.35
    assert all(abs(a - b) < 0.08 for a, b in zip(first, last, strict=True))
