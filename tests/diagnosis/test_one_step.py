"""A single dump is judged by its assignments, or not at all if they are too few."""

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings, strategies as st

from microscope_tui.commands.check.report import Judgement
from microscope_tui.diagnosis import Criteria, restore, save
from tests.conftest import header, step
from tests.diagnosis.conftest import COLLAPSED, judge

HEALTHY, WARNING, CRITICAL, NO_VERDICT = 0, 1, 2, 3
Rows = list[list[int]]


def dump(rows: Rows, top_k: int | None = 2, tokens: int | None = None, **changes: Any) -> Any:
    depths = list(range(len(rows)))
    names = [f"L{depth}" for depth in depths]
    model = {"layers": depths, "layer_names": names, "num_experts": len(rows[0]), "top_k": top_k}
    run = header(model=model, profile="eval", planned_steps=1, **changes)
    only = {k: v for k, v in step(1, rows, 0).items() if k != "tokens"}
    return [run, only if tokens is None else {**only, "tokens": tokens}]


def rules(judgement: Judgement) -> set[str]:
    return {finding.rule for finding, _ in judgement.findings}


def oracle(row: Sequence[int]) -> int:
    """The exit code for one router with top-1 choices, from the definitions alone."""
    experts, total = len(row), sum(row)
    mean = total / experts
    entropy = -sum(n / total * math.log(n / total) for n in row if n)
    c = (math.exp(entropy) - 1) / (experts - 1)
    assume(all(abs(c - limit) > 1e-6 for limit in (0.15, 0.35)))
    assume(max(row) - min(row) > 1)  # all equal is a fault of the meter
    if mean >= 50 and c < 0.35:
        return CRITICAL if c < 0.15 else WARNING
    if mean >= 56 and 0 in row:
        return WARNING
    if mean >= 50 and sum(n < 0.05 * mean for n in row) > 0.2 * experts:
        return WARNING
    return HEALTHY if mean >= 56 else NO_VERDICT


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(
    row=st.lists(
        st.one_of(st.just(0), st.integers(0, 12), st.integers(20, 90), st.integers(100, 3000)),
        min_size=2,
        max_size=24,
    ).filter(any)
)
def test_one_router_is_judged_as_by_the_definitions(judged: Any, row: list[int]) -> None:
    judgement = judged(dump([row], 1))
    assert judgement.exit_code == oracle(row), (row, judgement)


@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(
    shape=st.sampled_from([(4, 1), (6, 3), (8, 1), (8, 2), (64, 8), (128, 4)]),
    seed=st.integers(0, 10**6),
    per_expert=st.integers(56, 300),
)
def test_an_even_sample_is_healthy_a_collapsed_one_critical_and_a_small_one_not_judged(
    judged: Any, shape: tuple[int, int], seed: int, per_expert: int
) -> None:
    (experts, top_k), rng = shape, random.Random(seed)
    tokens = -(-per_expert * experts // top_k)
    rows = [[0] * experts for _ in range(2)]
    for row in rows:
        for _ in range(tokens):
            for expert in rng.sample(range(experts), top_k):
                row[expert] += 1
    assert judged(dump(rows, top_k, tokens)).exit_code == HEALTHY
    collapsed = [tokens] * top_k + [0] * (experts - top_k)
    rng.shuffle(collapsed)
    sick = judged(dump([rows[0], collapsed], top_k, tokens))
    assert (sick.exit_code, rules(sick)) == (CRITICAL, {"COLLAPSE"})
    assert sick.findings[0][0].layers == ("L1",)
    few = 49 * experts // top_k
    small = [few] * top_k + [0] * (experts - top_k)
    assert judged(dump([small], top_k, few)).exit_code == NO_VERDICT


def test_a_verdict_names_how_many_assignments_there_are_and_how_many_it_needs(judged: Any) -> None:
    judgement = judged(dump([[80, 70, 90, 60], [10, 12, 9, 11]], 2))
    words = "not judged: L1 has 10.5 assignments per expert in this dump, needs 56"
    assert (judgement.exit_code, judgement.problem) == (NO_VERDICT, words)
    assert judgement.findings == []


@pytest.mark.parametrize(
    ("rows", "top_k", "tokens", "code", "found"),
    [
        ([COLLAPSED, [3, 2, 4, 1, 2, 3, 2, 1]], 2, None, CRITICAL, {"COLLAPSE"}),  # one is enough
        ([[400, 60, 55, 57, 58, 56, 57, 57]], 2, 400, HEALTHY, {"HOT_EXPERT"}),
        ([[1024, 1000, 1040, 1032, 1020, 1028, 1024, 1024]], 2, 2048, NO_VERDICT, {"METER"}),
        ([[5000] * 8], 2, 20_000, NO_VERDICT, {"METER"}),  # one check is enough
    ],
)
def test_one_step_is_enough_for_a_finding(
    judged: Any, rows: Rows, top_k: int, tokens: int | None, code: int, found: set[str]
) -> None:
    judgement = judged(dump(rows, top_k, tokens))
    assert (judgement.exit_code, rules(judgement)) == (code, found)


def test_the_texts_do_not_mention_time(judged: Any) -> None:
    for row in (COLLAPSED, [700, 730, 690, 720, 710, 705, 715, 0]):
        ((_, advice),) = judged(dump([row])).findings
        text = " ".join([advice.verdict, advice.why, advice.next, advice.short])
        assert "in this dump" in advice.verdict
        assert not [word for word in ("step", "loss", "shock", "checkpoint") if word in text], text
    assert "7) received no tokens in this dump, where each could expect 621" in advice.why


@pytest.mark.parametrize(
    ("tokens", "code"), [(None, NO_VERDICT), (100, NO_VERDICT), (400, HEALTHY)]
)
def test_shares_are_judged_where_tokens_count_them(judged: Any, tokens: Any, code: int) -> None:
    shares = {"source": {"writer": "test", "counts": "shares"}}
    judgement = judged(dump([[125_000] * 8], 2, tokens, **shares))
    assert (judgement.exit_code, rules(judgement)) == (code, set())


def test_more_planned_steps_or_another_profile_are_not_a_single_step(judged: Any) -> None:
    records = dump([COLLAPSED])
    assert judged([records[0] | {"planned_steps": 2}, records[1]]).exit_code == HEALTHY
    assert judged(records, criteria=Criteria(profile="pretrain")).waits_until == 100


def test_a_restored_judgement_keeps_the_reason_why_it_is_not_judged() -> None:
    diagnosis = judge(dump([[10, 12, 9, 11]]))
    again = restore(save(diagnosis), diagnosis.run)
    assert again.too_few == diagnosis.too_few != ""
    assert again.seen == diagnosis.seen
    assert set(again.seen) >= {"counts", "effective_experts"}
