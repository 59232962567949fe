"""Coverage: which experts saw too few tokens, and how many more it takes."""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from microscope_tui.extensions.anatomy import coverage
from microscope_tui.extensions.anatomy.coverage import coverage_json, coverage_of, coverage_text
from microscope_tui.runlog import RunFile
from microscope_tui.runlog.decode import decode_means
from microscope_tui.watch.counted import NoCounts, read_counts
from tests.conftest import header, step

MODEL = {"layers": [1, 2], "layer_names": ["L1", "L2"], "num_experts": 4, "top_k": 1}
ONE_LAYER = MODEL | {"layers": [1], "layer_names": ["L1"]}


def covered(calibrations: int, wanted: int, seed: int) -> float:
    """The share of calibrations whose further tokens lie within the predicted interval.

    Each has one expert with a share between 1 / 5,000 and 1 / 20 and a number of tokens that gives
    it 0.05 to 0.95 of the ``wanted`` hits on average. More independent tokens are drawn until the
    expert has them.
    """
    rng = np.random.default_rng(seed)
    results: list[bool] = []
    while len(results) < calibrations:
        share = math.exp(rng.uniform(math.log(1 / 5_000), math.log(1 / 20)))
        tokens = max(128, round(rng.uniform(0.05, 0.95) * wanted / share))
        seen = int(rng.binomial(tokens, share))
        need = coverage.further(seen, tokens, wanted)
        if need is None:  # the expert has them already
            continue
        more = wanted - seen + int(rng.negative_binomial(wanted - seen, share))
        results.append(need.low <= more <= (math.inf if need.high is None else need.high))
    return sum(results) / len(results)


@pytest.mark.parametrize("wanted", [2, 10, 1000])
def test_further_tokens_lie_within_their_interval_in_95_of_100_calibrations(wanted: int) -> None:
    assert covered(4000, wanted, seed=1) >= 0.945  # 0.95 less 1.5 standard errors


def test_the_score_interval_agrees_with_published_values() -> None:
    # Newcombe 1998, table I, method 4.
    for (hits, of), (low, high) in {
        (81, 263): (0.2535, 0.3682),
        (15, 148): (0.0598, 0.1644),
        (0, 20): (0.0000, 0.2005),
        (1, 29): (0.0018, 0.1963),
    }.items():
        assert coverage.score_interval(hits, of) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 10**6))
def test_an_estimate_lies_in_its_interval_and_a_miss_has_none(
    hits: int, misses: int, wanted: int
) -> None:
    need = coverage.further(hits, hits + misses, wanted)
    assert (need is None) == (hits >= wanted)
    if need is None:
        return
    assert need.low >= wanted - hits
    if hits == 0:
        assert need.tokens is need.high is None
    else:
        assert need.low <= max(need.tokens, need.low) <= need.high


def test_without_a_hit_the_limit_is_the_rule_of_three() -> None:
    need = coverage.further(0, 30_000, 1000)
    assert need.low == pytest.approx(1000 * 30_000 / 3, rel=0.01)


@pytest.fixture
def covering(write_log: Any) -> Callable[..., Any]:
    """``covering(wanted, steps, **changes)``: the coverage of an evaluation with these steps."""

    def cover(wanted: int, steps: Sequence[Any], **changes: Any) -> Any:
        log = write_log([header(**({"model": MODEL, "profile": "eval"} | changes)), *steps])
        return coverage_of(RunFile("probe", log, 0.0), wanted)

    return cover


def test_counts_of_an_evaluation_are_summed_over_all_steps(covering: Any) -> None:
    rng = random.Random(0)
    rows = [
        [[a, 500 - a, 0, 500], [250] * 4]
        for a in (rng.randrange(10, 90) for _ in range(coverage.LAST_STEPS + 50))
    ]
    steps = [step(n, counts, sum(counts[0])) for n, counts in enumerate(rows, 1)]
    found = covering(50_000, steps)
    assert found.steps == coverage.LAST_STEPS + 50
    first, second = found.layers
    assert [expert.tokens for expert in first.experts] == [
        sum(row[0][expert] for row in rows) for expert in range(4)
    ]
    assert first.tokens == 1000 * len(rows)
    assert [(one.layer, expert.expert) for one, expert in found.behind()] == [("L1", 2), ("L1", 0)]
    assert not [one for one in second.experts if one.more_tokens_low]


def test_a_training_run_is_covered_by_its_last_counted_steps_that_survive(write_log: Any) -> None:
    old = [step(n, [[n, 10_000, 0, 0]], 10_000 + n) for n in range(1, 301)]
    new = [step(n, [[0, 0, n, 5]], n + 5) for n in range(251, 253)]
    again = header(model=ONE_LAYER, resumed_at_step=251)
    path = write_log([header(model=ONE_LAYER), *old, again, *new])
    found = coverage_of(RunFile("run", path, 0.0), 1)
    assert (found.first_step, found.last_step, found.steps) == (53, 252, 200)
    counts = [expert.tokens for expert in found.layers[0].experts]
    assert counts == [sum(range(53, 251)), 198 * 10_000, 251 + 252, 10]
    some = coverage_of(RunFile("run", path, 0.0), 1, 10, 12)
    assert [expert.tokens for expert in some.layers[0].experts] == [33, 30_000, 0, 0]


def test_experts_that_appear_later_cost_no_earlier_step(write_log: Any) -> None:
    records = [step(1, [[6, 4]], 10), header(model=ONE_LAYER), step(2, [[1, 2, 3, 4]], 10)]
    path = write_log([header(model=ONE_LAYER | {"num_experts": 2}), *records])
    found = coverage_of(RunFile("run", path, 0.0), 1)
    assert [expert.tokens for expert in found.layers[0].experts] == [7, 6, 3, 4]
    placed = read_counts(RunFile("run", path, 0.0))
    assert placed.layers[0].counts.tolist() == [6, 4, 0, 0, 1, 2, 3, 4]


@pytest.mark.parametrize("counts", ["exact", "shares"])
def test_without_top_k_the_tokens_of_an_expert_are_known_only_beside_those_of_the_step(
    covering: Any, counts: str
) -> None:
    changes = {"model": ONE_LAYER | {"top_k": None}, "source": {"writer": "test", "counts": counts}}
    one = step(1, [[10, 20, 30, 40]], 50)
    if counts == "exact":
        assert covering(1, [one], **changes).layers[0].experts[3].share == pytest.approx(0.8)
        one["tokens"] = None
    with pytest.raises(NoCounts, match=r"top_k \(use --top-k\)"):
        covering(1, [one], **changes)


def test_saliency_is_the_mean_over_the_pairs_of_all_steps(covering: Any) -> None:
    steps = []
    for number, (counts, weights) in enumerate((([10, 30], [0.5, None]), ([30, 10], [0.1, 0.4]))):
        row = [*counts, 0, 60]
        means = {"mean_weight": [[*weights, None, 1.0], []], "mean_output_norm": [[2.0] * 4, []]}
        counted = step(number + 1, [row, row], 100)
        matrix = counted.pop("tokens_per_expert")
        steps.append(counted | means | {"tokens_per_expert": matrix})
    found = covering(1000, steps)
    experts = found.layers[0].experts
    assert experts[0].mean_weight == pytest.approx((10 * 0.5 + 30 * 0.1) / 40)
    assert experts[0].saliency == pytest.approx(2 * 0.2)
    assert experts[1].mean_weight == pytest.approx(0.4)
    assert experts[2].saliency is None
    assert found.layers[1].experts[0].mean_weight is None
    assert "product" in coverage_text(found)


@pytest.mark.parametrize(
    ("line", "weights"),
    [
        (b'{"mean_weight": [[0.5, null, "NaN"], []]}', [[0.5, None, None], None]),
        (b'{"mean_weight": [[0.5]]}', [None, None]),
        (b'{"mean_weight": 3}', [None, None]),
        (b'{"mean_weight": [[[', [None, None]),
        (b"{}", [None, None]),
    ],
)
def test_means_that_cannot_be_used_are_no_value(line: bytes, weights: Any) -> None:
    assert decode_means(line, 2) == (weights, [None, None])


def test_shares_become_tokens_where_their_number_is_known(covering: Any) -> None:
    row = [500_000, 250_000, 250_000, 0]
    found = covering(1500, [step(1, [row, row], 4000)], source={"counts": "shares"})
    assert [expert.tokens for expert in found.layers[0].experts] == [2000, 1000, 1000, 0]
    assert any("shares" in note for note in found.notes)


def test_an_expert_without_a_hit_never_gets_a_finite_estimate(covering: Any) -> None:
    found = covering(500, [step(1, [[40, 60, 0, 900], [250] * 4], 1000)])
    text = coverage_text(found)
    assert "more than" in text
    assert "1 expert was never chosen" in text
    assert "Rarely used does not mean useless" in text
    assert max(map(len, text.splitlines())) <= 80
    of_layer = coverage_json(found)["layers"][0]["experts"]
    assert [one["more_tokens"] for one in of_layer][2:] == [None, 0]
    assert of_layer[2]["more_tokens_high"] is None
    assert of_layer[2]["more_tokens_low"] > 100_000
