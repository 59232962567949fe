"""COLLAPSE in the cases that are easily misjudged: hot experts, dead groups, long warm-ups."""

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.commands.check.baseline import AgainstBaseline, read_baseline
from microscope_tui.diagnosis import Criteria, Diagnosis, Severity, overall, report
from microscope_tui.draw.export import view_json
from microscope_tui.runlog import RunFile
from microscope_tui.scenarios import draw_counts
from microscope_tui.watch import view_of
from tests.conftest import header, open_log, step
from tests.diagnosis import conftest
from tests.diagnosis.conftest import Counts, Record, collapse_at, even, judge, loud, of, steps

TOKENS = 4096


def drawn(weights: list[float], top_k: int, seed: int, tokens: int = TOKENS) -> list[int]:
    return draw_counts(weights, tokens, top_k, random.Random(seed))


def only_on(experts: int, alive: int, seed: int, top_k: int) -> list[int]:
    """The first ``alive`` experts share all tokens, the others receive nothing."""
    return [*drawn([1.0] * alive, top_k, seed), *([0] * (experts - alive))]


def hot(experts: int, top_k: int, seed: int) -> list[int]:
    """Expert 5 is chosen by every token; the other choices are even."""
    rest = drawn([1.0] * (experts - 1), 1, seed, (top_k - 1) * TOKENS)
    return [*rest[:5], TOKENS, *rest[5:]]


def one_router(
    counts: Counts,
    experts: int = 8,
    top_k: int = 2,
    numbers: Iterable[int] = range(1, 301),
    tokens: int = TOKENS,
    **head: Any,
) -> list[Record]:
    """The records of a run with one router, from its counts step by step."""
    model = {"num_experts": experts, "top_k": top_k, "layers": [3], "layer_names": ["L3"]}
    return [header(model=model, **head), *(step(n, [counts(n)], tokens) for n in numbers)]


def without(records: list[Record], *names: str) -> list[Record]:
    for record in records[1:]:
        for name in names:
            record.pop(name, None)
            record["router"].pop(name, None)
    return records


def severity_of(records: list[Record]) -> Severity:
    return overall(judge(records).findings())


def why(diagnosis: Diagnosis) -> str:
    (words,) = [advice.why for f, advice in report(diagnosis) if f.rule == "COLLAPSE"]
    return words


def test_an_oscillation_does_not_move_the_onset_of_a_collapse_far() -> None:
    (episode,) = loud(judge([header(), *steps(1, 300, conftest.alternating)]))
    assert (episode.rule, episode.facts["period"]) == ("OSCILLATION", 2)
    collapse = of(
        judge([header(), *steps(1, 300, collapse_at(200, conftest.alternating))]), "COLLAPSE"
    )
    assert 170 <= collapse.onset <= 225


def test_without_counts_the_verdict_names_its_evidence() -> None:
    records = without([header(), *steps(1, 240, collapse_at(150))], "tokens_per_expert")
    (episode,) = loud(judge(records))
    assert (episode.rule, episode.confidence) == ("COLLAPSE", "per-step summaries only")


@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (32, 2), (256, 2), (64, 8)])
def test_an_expert_that_every_token_chooses_is_hot_no_collapse(experts: int, top_k: int) -> None:
    diagnosis = judge(one_router(lambda n: hot(experts, top_k, n), experts, top_k, range(1, 160)))
    assert overall(diagnosis.findings()) is Severity.INFO
    found = of(diagnosis, "HOT_EXPERT")
    assert found.facts["experts"] == (5,)
    assert found.facts["c"] > 0.9


def test_a_hot_expert_is_recognised_from_the_summaries_alone() -> None:
    records = one_router(lambda n: hot(256, 2, n), 256, 2, range(1, 160))
    assert severity_of(without(records, "tokens_per_expert")) is Severity.INFO
    diagnosis = judge(without(records, "max_load"))
    assert "cannot be distinguished from a collapse" in why(diagnosis)


def test_the_screen_has_the_balance_of_all_experts_and_the_judged_one(write_log: Any) -> None:
    view = view_of(open_log(write_log(one_router(lambda n: hot(32, 2, n), 32, 2, range(1, 121)))))
    (layer,) = view.layers
    assert layer.without == (5,)
    assert (layer.balance < 0.4, layer.judged_balance > 0.95) == (True, True)
    assert max(column.high for column in layer.balance_history) < 0.4
    assert json.loads(view_json(view))["layers"][0]["without_experts"] == [5]


def test_of_a_collapse_beside_a_hot_expert_the_rest_is_judged() -> None:
    def counts(n: int) -> list[int]:  # every token chooses 5; from 150 on, and one of four others
        return [*drawn([1.0] * 4, 1, n), 0, TOKENS, *[0] * 26] if n >= 150 else hot(32, 2, n)

    found = of(judge(one_router(counts, 32, 2)), "COLLAPSE")
    assert (found.severity, abs(found.onset - 150) <= 2) == (Severity.CRITICAL, True)


@pytest.mark.parametrize(
    ("experts", "alive", "top_k"),
    [(8, 2, 2), (8, 3, 2), (8, 4, 2), (8, 5, 2), (8, 6, 2), (64, 20, 8), (64, 32, 8), (64, 44, 8)],
)
def test_more_dead_experts_never_soften_the_verdict(experts: int, alive: int, top_k: int) -> None:
    def counts(n: int) -> list[int]:
        return only_on(experts, experts if n < 120 else alive, n, top_k)

    assert severity_of(one_router(counts, experts, top_k, range(1, 361))) is Severity.CRITICAL


@pytest.mark.parametrize(("last", "young"), [(249, True), (250, False)])
def test_only_a_young_collapse_may_be_a_shock(last: int, young: bool) -> None:
    diagnosis = judge([header(), *steps(1, last, collapse_at(200))])
    assert of(diagnosis, "COLLAPSE").severity is Severity.CRITICAL
    assert ("a transient shock" in why(diagnosis)) == young


def test_five_lines_with_few_tokens_are_not_enough() -> None:
    # An even router of 64 experts that sees 16 choices a line: five lines look collapsed.
    def counts(n: int) -> list[int]:
        return drawn([1.0] * 64, 2, n, 8)

    diagnosis = judge(one_router(counts, 64, 2, range(100, 4001, 100), tokens=8))
    assert [e for e in diagnosis.episodes if e.rule == "COLLAPSE"] == []


def test_lines_close_together_are_not_worth_more_than_steps() -> None:
    def counts(n: int) -> list[int]:  # a shock of 24 steps, seen in every fourth step
        return [4096, 4096, *([0] * 6)] if 400 <= n < 424 else only_on(8, 8, n, 2)

    assert severity_of(one_router(counts, numbers=range(4, 801, 4))) is Severity.INFO


def test_a_restart_in_a_sparse_log_does_not_ask_for_more_lines() -> None:
    def lines(first: int, last: int) -> list[Record]:
        return [
            step(n, [even(n), conftest.COLLAPSED if n >= 2500 else even(n, 1), even(n, 2)], 2048)
            for n in range(first, last, 100)
        ]

    records = [header(), *lines(100, 2001), header(resumed_at_step=1901), *lines(2000, 4001)]
    found = of(judge(records), "COLLAPSE")
    assert (found.onset, found.alarm) == (2500, 2900)


NARROW = [0.85, 0.82, 0.12, 0.08, 0.05, 0.04, 0.02, 0.02]  # c about 0.27, no expert at 95 %
NARROWER = [0.94, 0.93, 0.03, 0.03, 0.02, 0.02, 0.02, 0.01]  # c about 0.12


def test_a_fine_tuning_that_returns_to_its_reference_has_recovered() -> None:
    narrowing: Counts = lambda n: drawn(NARROWER if 200 <= n < 300 else NARROW, 2, n)  # noqa: E731
    diagnosis = judge(one_router(narrowing, numbers=range(1, 451), profile="finetune"))
    found = of(diagnosis, "COLLAPSE")
    assert (found.severity, found.active) == (Severity.CRITICAL, False)
    assert abs(found.onset - 200) <= 3
    assert "in the reference" in why(diagnosis)


@pytest.mark.parametrize(
    ("weights", "criteria", "expected"),
    [
        (NARROW, None, []),  # against itself
        (NARROWER, None, [Severity.WARN]),  # below the critical limit
        (NARROWER, Criteria(profile="finetune"), [Severity.CRITICAL]),  # collapsed from the start
        (NARROWER, Criteria(profile="eval"), [Severity.CRITICAL]),
    ],
)
def test_below_the_critical_limit_even_a_run_like_its_baseline_is_a_warning(
    write_log: Any, weights: list[float], criteria: Criteria | None, expected: list[Severity]
) -> None:
    records = one_router(lambda n: drawn(weights, 2, n))
    path: Path = write_log(records)
    if criteria is None:
        criteria = AgainstBaseline(baseline=read_baseline(RunFile("run", path, 0.0)).reference)
    episodes = judge(records, criteria).episodes
    assert [e.severity for e in episodes if e.rule == "COLLAPSE"] == expected


def test_a_slide_that_ends_in_a_critical_collapse_is_over_as_a_warning(scenario: Any) -> None:
    path = scenario("slow-collapse", 3, routers=3, steps=1000) / "metrics.jsonl"
    diagnosis: Diagnosis = open_log(path).diagnosis
    eroding, collapse = of(diagnosis, "ERODING"), of(diagnosis, "COLLAPSE")
    critical = next(g.step for g in collapse.grades if g.severity is Severity.CRITICAL)
    assert (eroding.active, eroding.recovered_at, eroding.led_to) == (False, critical, "COLLAPSE")
    assert collapse.onset == eroding.onset
    assert 7.6 <= float(str(collapse.facts["usual"])) <= 8.0  # from before the slide


def test_a_runaway_bias_is_dated_to_where_the_load_became_uneven(scenario: Any) -> None:
    path = scenario("collapse", 1, steps=600) / "metrics.jsonl"
    diagnosis = open_log(path).diagnosis
    found = [episode.onset for episode in diagnosis.episodes if episode.rule == "BIAS_RUNAWAY"]
    assert found
    assert all(abs(onset - of(diagnosis, "COLLAPSE").onset) <= 30 for onset in found)
