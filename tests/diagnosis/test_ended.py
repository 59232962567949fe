"""A run that is over is judged by what it has: an evaluation by its sum, a training by its end."""

import json
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings, strategies as st

from microscope_tui import measures
from microscope_tui.commands.check.report import Judgement, judge as check
from microscope_tui.diagnosis import Criteria, RouterBaseline, Severity, restore, save
from microscope_tui.runlog import RunReader
from microscope_tui.screens.runs.text import card_text
from microscope_tui.watch import Fleet, RunWatch, view_of
from microscope_tui.watch.judge import Judge
from tests.conftest import header, step
from tests.diagnosis.conftest import alternating, collapse_at, judge, steps
from tests.watch.test_finished_runs import judge_all

HEALTHY, WARNING, CRITICAL, NO_VERDICT = 0, 1, 2, 3
END = {"kind": "event", "event": "end", "reason": "finished"}
Row = list[int]


def fair(n: int, each: int, experts: int) -> Row:
    return [each + (each // 8 + 1) * ((e + n) % 3 - 1) for e in range(experts)]


def evaluation(rows: Sequence[Row], *more: Any, top_k: int = 4, **changes: Any) -> list[Any]:
    """Two routers: L1 is even, L2 has one of these rows in each step."""
    experts = len(rows[0])
    model = {"layers": [1, 2], "layer_names": ["L1", "L2"], "num_experts": experts, "top_k": top_k}
    lines = [
        step(n, [fair(n, sum(row) // experts, experts), row], 0) for n, row in enumerate(rows, 1)
    ]
    for line in lines:
        del line["tokens"]
    return [header(model=model, profile="eval", planned_steps=None, **changes), *lines, *more]


def of_four(per_expert: float, num_steps: int = 7) -> list[Row]:
    """Four of 32 experts take everything: so many assignments per expert in all steps."""
    return [[round(8 * per_expert / num_steps)] * 4 + [0] * 28 for _ in range(num_steps)]


def silent_expert(per_step: Sequence[int]) -> list[Row]:
    """The last of 32 experts gets nothing at so many assignments per expert."""
    return [[*fair(n, each, 31), 0] for n, each in enumerate(per_step)]


def rules(judgement: Judgement) -> dict[str, str]:
    return {finding.rule: finding.severity.label for finding, _ in judgement.findings}


def test_a_finished_collapsed_probe_is_critical_a_live_one_gathers_evidence(judged: Any) -> None:
    live = judged(evaluation(of_four(700)))
    assert (live.exit_code, rules(live)) == (HEALTHY, {})
    assert "L2 at .00 for 7 steps, gathering evidence" in live.notes
    over = judged(evaluation(of_four(700), END))
    assert (over.exit_code, rules(over)) == (CRITICAL, {"COLLAPSE": "crit"})
    ((finding, advice),) = over.findings
    assert (finding.layers, finding.onset) == (("L2",), 1)
    assert not [note for note in over.notes if "gathering" in note]
    assert "4.0 of 32 experts effective" in advice.why
    assert "exact counts, summed over all steps" in advice.why


def test_an_evaluation_that_is_too_short_is_not_judged(judged: Any) -> None:
    short = judged(evaluation([[8] * 4 + [0] * 28] * 19, END))
    assert (short.exit_code, rules(short)) == (NO_VERDICT, {})
    assert short.problem == "not judged: L2 has 19 assignments per expert, needs 20"
    assert judged(evaluation([[8] * 4 + [0] * 28] * 20, END)).exit_code == CRITICAL


def test_shares_have_no_sum_that_could_be_judged(judged: Any) -> None:
    shares = {"source": {"writer": "test", "counts": "shares"}}
    read = judged(evaluation(of_four(700), END, **shares))
    assert (read.exit_code, read.findings, read.problem) == (HEALTHY, [], None)


@pytest.mark.parametrize(
    ("per_step", "found"),
    [
        ([60] * 3, {"DEAD": "warn"}),
        ([20] * 9, {"DEAD": "warn"}),
        ([20] * 8, {}),  # less than three times the evidence of one window
        ([700], {"DEAD": "warn"}),
    ],
)
def test_an_expert_without_tokens_is_dead_in_a_sum_of_three_times_the_evidence(
    judged: Any, per_step: Sequence[int], found: dict[str, str]
) -> None:
    judgement = judged(evaluation(silent_expert(per_step), END))
    assert rules(judgement) == found
    assert judgement.exit_code == bool(found)


def test_starved_experts_are_information_and_against_a_baseline_a_warning(judged: Any) -> None:
    known = RouterBaseline((0.0,) * 2, (frozenset(),) * 2, (None,) * 2, (None,) * 2)
    rows = [[*fair(n, 100, 24), *[1] * 8] for n in range(9)]
    judgement = judged(evaluation(rows, END))
    assert (judgement.exit_code, rules(judgement)) == (HEALTHY, {"STARVED": "info"})
    ((finding, advice),) = judgement.findings
    assert "8 of 32 experts" in advice.why
    assert advice.why.endswith("summed over all steps on this text.")
    assert [grade.severity for grade in finding.worst.grades] == [Severity.INFO]
    against = judged(evaluation(rows, END), criteria=Criteria(baseline=known))
    assert (against.exit_code, rules(against)) == (WARNING, {"STARVED": "warn"})


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(
    shape=st.sampled_from([(8, 2), (32, 4), (64, 8), (128, 8)]),
    per_expert=st.integers(22, 500),
    num_steps=st.integers(3, 12),
    seed=st.integers(0, 10**6),
)
def test_a_healthy_model_on_narrow_text_has_no_finding(
    judged: Any, shape: tuple[int, int], per_expert: int, num_steps: int, seed: int
) -> None:
    (experts, top_k), rng = shape, random.Random(seed)
    weights = [rng.lognormvariate(0.0, 0.8) for _ in range(experts)]
    rows = []
    for _ in range(num_steps):
        burst = [w * rng.gammavariate(4.0, 0.25) for w in weights]
        mean = per_expert / num_steps * experts / sum(burst)
        rows.append([round(rng.gauss(w * mean, (w * mean) ** 0.5)) for w in burst])
    rows = [[max(0, n) for n in row] for row in rows]
    totals = [sum(column) for column in zip(*rows, strict=True)]
    assume((measures.balance(totals, top_k).collapse_index or 0.0) > 0.42)  # OLMoE on Wikipedia
    assume(min(totals) > 0)  # an expert without a token is DEAD from 168 expected ones on
    ignoring = Criteria(frozenset({"METER"}))
    judgement = judged(evaluation(rows, END, top_k=top_k), criteria=ignoring)
    assert judgement.exit_code in (HEALTHY, NO_VERDICT), judgement
    assert not [word for word in rules(judgement).values() if word != "info"]


def test_steps_that_are_narrow_one_by_one_are_even_in_the_sum(judged: Any) -> None:
    rows = [[400 if e // 4 == n % 8 else 0 for e in range(32)] for n in range(16)]
    assert judged(evaluation(rows, END)).exit_code == HEALTHY


def test_an_evaluation_that_starts_again_counts_anew(judged: Any) -> None:
    again = evaluation([fair(n, 100, 32) for n in range(7)], END, resumed_at_step=1)
    assert judged([*evaluation(of_four(700)), *again]).exit_code == HEALTHY


@pytest.mark.parametrize(
    ("sick", "last", "code"),
    [
        (collapse_at(200), 209, WARNING),
        (collapse_at(200), 208, HEALTHY),
        (collapse_at(200), 230, CRITICAL),  # the rule itself is met
        (collapse_at(80), 95, NO_VERDICT),  # in the warm-up
        (alternating, 212, HEALTHY),
    ],
)
@pytest.mark.parametrize("counted", [True, False])
def test_a_training_that_ended_in_a_collapse_is_not_healthy(
    judged: Any, sick: Any, last: int, code: int, counted: bool
) -> None:
    records = [header(), *steps(1, last, sick)]
    if not counted:
        records = [{k: v for k, v in r.items() if k != "tokens_per_expert"} for r in records]
        code = WARNING if sick is alternating else code  # without counts it cannot be told apart
    judgement = judged([*records, END])
    assert judgement.exit_code == code, judgement
    if code == WARNING and counted:
        ((finding, advice),) = judgement.findings
        assert (finding.rule, finding.layers, finding.onset) == ("COLLAPSE", ("L2",), 200)
        assert advice.verdict.endswith("since step 200; the run ended while it was collapsing")
    assert judged(records).exit_code in (HEALTHY, code)


def test_a_swing_that_ends_in_a_low_is_no_collapse() -> None:
    def in_turn(n: int) -> Row:
        taken = [1988 if e // 2 == n // 10 % 3 else 20 for e in range(8)]
        return taken if n > 120 else [512] * 8

    diagnosis = judge(steps(1, 499, in_turn))
    diagnosis.conclude()
    found = {e.rule for e in diagnosis.episodes if e.active and e.severity >= Severity.WARN}
    assert found == {"OSCILLATION", "STARVED"}


def test_a_layer_that_collapsed_at_a_resume_is_not_excused_by_the_warm_up(judged: Any) -> None:
    again = [header(resumed_at_step=301), *steps(301, 340, collapse_at(301))]
    judgement = judged([header(), *steps(1, 300), *again[:30], END])
    assert (judgement.exit_code, rules(judgement)) == (WARNING, {"COLLAPSE": "warn"})


def test_every_view_of_a_run_that_fell_silent_agrees(write_log: Any, tmp_path: Path) -> None:
    for name, records in {
        "training": [header(), *steps(1, 212, collapse_at(200))],
        "probe": evaluation(of_four(700)),
        "short": evaluation(of_four(7)),
    }.items():
        path = write_log(records, name)
        os.utime(path, (time.time() - 700,) * 2)
    fleet = Fleet(tmp_path)
    judge_all(fleet)
    listed = {card.file.name: card_text(card) for card in fleet.cards()}
    assert listed["training"].startswith("training crashed? W COLLAPSE L2 since 200")
    assert listed["probe"].startswith("probe crashed? C COLLAPSE L2 since 1")
    assert listed["short"] == "short crashed? not judged: L2 has 7 assignments per expert, needs 20"
    for card in fleet.cards():
        watch = RunWatch(card.file)
        watch.read_all()
        view, judgement = view_of(watch), check(card.file)
        shown = [(f.rule, f.severity, f.onset) for f, _ in view.findings]
        assert shown == [(f.rule, f.severity, f.onset) for f, _ in judgement.findings]
        assert view.judging.no_verdict == judgement.problem
        assert not view.judging.pending
        with card.file.path.open("ab") as log:  # it continues
            log.write(json.dumps(step(213, [fair(1, 128, 32)] * 2, 0)).encode() + b"\n")
        assert watch.advance()
        assert not watch.diagnosis.over


@pytest.mark.parametrize("profile", ["pretrain", "eval"])
@settings(max_examples=8)
@given(ends=st.sets(st.integers(2, 160), max_size=4), first=st.integers(90, 160))
def test_a_run_that_goes_on_is_judged_as_if_never_over(profile: str, ends: Any, first: int) -> None:
    records = [header(profile=profile), *steps(1, 160, collapse_at(first))]
    judging, reader = Judge("run", Criteria()), RunReader("run")
    for n, record in enumerate(records):
        if n in ends and judging.diagnosis is not None:
            judging.diagnosis.conclude()
            judging.diagnosis = restore(save(judging.diagnosis), judging.diagnosis.run)
        for entry in reader.feed(json.dumps(record).encode() + b"\n"):
            judging.take(entry)
    assert save(judging.diagnosis) == save(judge(records))
