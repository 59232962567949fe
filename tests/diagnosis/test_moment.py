"""A single dump is judged by its assignments, or not at all if they are too few."""

import json
import math
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from microscope_tui.diagnosis import Criteria, restore, save
from microscope_tui.report import CheckRequest, Judgement, judge
from microscope_tui.runlog import RunFile
from microscope_tui.watch import RunWatch
from tests.conftest import header, step
from tests.diagnosis.conftest import COLLAPSED

HEALTHY, WARNING, CRITICAL, NO_VERDICT = 0, 1, 2, 3
Rows = list[list[int]]


def dump(rows: Rows, top_k: int | None = 2, tokens: int | None = None, **changes: Any) -> Any:
    """The records of a dump with these counts."""
    depths = list(range(len(rows)))
    names = [f"L{depth}" for depth in depths]
    model = {"layers": depths, "layer_names": names, "num_experts": len(rows[0]), "top_k": top_k}
    run = header(model=model, profile="eval", planned_steps=1, **changes)
    only = {k: v for k, v in step(1, rows, 0).items() if k != "tokens"}
    return [run, only if tokens is None else {**only, "tokens": tokens}]


def judged(records: Sequence[Any], **demand: Any) -> Judgement:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
        return judge(RunFile("run", path, 0.0), CheckRequest(**demand))


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


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(st.just(0), st.integers(0, 12), st.integers(20, 90), st.integers(100, 3000)),
        min_size=2,
        max_size=24,
    ).filter(any)
)
def test_one_router_is_judged_as_by_the_definitions(row: list[int]) -> None:
    expected = oracle(row)
    judgement = judged(dump([row], 1))
    assert judgement.exit_code == expected, (row, judgement)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([(4, 1), (6, 3), (8, 1), (8, 2), (64, 8), (128, 4)]),
    st.integers(0, 10**6),
    st.integers(56, 300),
)
def test_an_even_sample_is_healthy_a_collapsed_one_critical_and_a_small_one_not_judged(
    shape: tuple[int, int], seed: int, per_expert: int
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


def test_a_verdict_says_how_many_assignments_there_are_and_how_many_it_needs() -> None:
    judgement = judged(dump([[80, 70, 90, 60], [10, 12, 9, 11]], 2))
    assert judgement.exit_code == NO_VERDICT
    assert judgement.problem == (
        "not judged: L1 has 10.5 assignments per expert in this dump, needs 56"
    )
    assert judgement.findings == []


def test_a_finding_of_a_full_layer_counts_beside_a_layer_with_few_assignments() -> None:
    assert judged(dump([COLLAPSED, [3, 2, 4, 1, 2, 3, 2, 1]])).exit_code == CRITICAL


def test_the_texts_are_those_of_a_moment() -> None:
    dead = [700, 730, 690, 720, 710, 705, 715, 0]
    for rows in ([COLLAPSED], [dead]):
        ((_, advice),) = judged(dump(rows)).findings
        text = " ".join([advice.verdict, advice.why, advice.next, advice.short])
        assert "in this dump" in advice.verdict
        assert not [word for word in ("step", "loss", "shock", "checkpoint") if word in text], text
    assert "7) received no tokens in this dump, where each could expect 621" in advice.why


def test_a_hot_expert_is_information() -> None:
    tokens = 400
    judgement = judged(dump([[tokens, 60, 55, 57, 58, 56, 57, 57]], 2, tokens))
    assert (judgement.exit_code, rules(judgement)) == (HEALTHY, {"HOT_EXPERT"})


@pytest.mark.parametrize(
    ("tokens", "code"), [(None, NO_VERDICT), (100, NO_VERDICT), (400, HEALTHY)]
)
def test_shares_are_judged_only_where_tokens_say_how_many_they_stand_for(
    tokens: int | None, code: int
) -> None:
    shares = {"source": {"writer": "test", "counts": "shares"}}
    judgement = judged(dump([[125_000] * 8], 2, tokens, **shares))
    assert (judgement.exit_code, rules(judgement)) == (code, set())


def test_one_look_at_wrong_counts_is_a_fault_of_the_meter() -> None:
    doubled = [1024, 1000, 1040, 1032, 1020, 1028, 1024, 1024]
    judgement = judged(dump([doubled], 2, 2048))
    assert (judgement.exit_code, rules(judgement)) == (NO_VERDICT, {"METER"})
    forced = judged(dump([[5000] * 8], 2, 20_000))
    assert (forced.exit_code, rules(forced)) == (NO_VERDICT, {"METER"})


def test_more_planned_steps_or_another_profile_are_no_moment() -> None:
    records = dump([COLLAPSED])
    assert judged([records[0] | {"planned_steps": 2}, records[1]]).exit_code == HEALTHY
    assert judged(records, criteria=Criteria(profile="pretrain")).waits_until == 100


def test_a_restored_judgement_still_knows_that_the_assignments_are_too_few(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f"{json.dumps(record)}\n" for record in dump([[10, 12, 9, 11]])))
    watch = RunWatch(RunFile("run", path, 0.0))
    watch.read_all()
    assert watch.diagnosis is not None
    again = restore(save(watch.diagnosis), watch.diagnosis.run)
    assert again.too_few == watch.diagnosis.too_few != ""
    assert again.seen == watch.diagnosis.seen >= {"counts", "effective_experts"}
