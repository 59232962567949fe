"""COLLAPSE in the cases that are easily misjudged: hot experts, dead groups, long warm-ups."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from microscope_tui.diagnosis import Criteria, Diagnosis, Severity, advise, group, overall
from microscope_tui.runlog import RunFile
from microscope_tui.scenarios import draw_counts
from microscope_tui.watch import AgainstBaseline, read_baseline
from tests.diagnosis.conftest import COLLAPSED, of

Make = Callable[..., Any]
Counts = Callable[[int], list[int]]
TOKENS = 4096


def drawn(weights: list[float], top_k: int, seed: int, tokens: int = TOKENS) -> list[int]:
    return draw_counts(weights, tokens, top_k, random.Random(seed))


def only_on(experts: int, alive: int, seed: int, top_k: int, tokens: int = TOKENS) -> list[int]:
    """The first ``alive`` experts share all tokens, the others receive nothing."""
    return [*drawn([1.0] * alive, top_k, seed, tokens), *([0] * (experts - alive))]


def hot(experts: int, top_k: int, seed: int, share: float = 1.0) -> list[int]:
    """Expert 5 is chosen by this share of the tokens; the other choices are even."""
    own = round(share * TOKENS)
    rest = drawn([1.0] * (experts - 1), 1, seed, top_k * TOKENS - own)
    return [*rest[:5], own, *rest[5:]]


@pytest.fixture
def run_of(write_log: Make, open_log: Make, make_header: Make, make_step: Make) -> Make:
    """The watch of a run with one router, from its counts step by step."""

    def made(
        counts: Counts,
        experts: int,
        top_k: int,
        steps: Any = 300,
        tokens: int = TOKENS,
        **head: Any,
    ) -> Any:
        model = {"num_experts": experts, "top_k": top_k, "layers": [3], "layer_names": ["L3"]}
        steps = range(1, steps + 1) if isinstance(steps, int) else steps
        criteria = head.pop("criteria", None)
        without = head.pop("without", ())
        records = [make_header(model=model, **head)]
        for step in steps:
            record = make_step(step, [counts(step)], tokens)
            for name in without:
                record.pop(name, None)
                record["router"].pop(name, None)
            records.append(record)
        return open_log(write_log(records), **({"criteria": criteria} if criteria else {}))

    return made


def severity_of(diagnosis: Diagnosis) -> Severity:
    return overall(diagnosis.findings())


# A hot expert.


@pytest.mark.parametrize(
    ("experts", "top_k"), [(8, 2), (32, 2), (64, 2), (128, 2), (256, 2), (64, 8)]
)
def test_an_expert_that_every_token_chooses_is_a_hot_expert_and_no_collapse(
    run_of: Make, experts: int, top_k: int
) -> None:
    watch = run_of(lambda n: hot(experts, top_k, n), experts, top_k, 200)
    diagnosis = watch.diagnosis
    assert severity_of(diagnosis) is Severity.INFO
    found = of(diagnosis, "HOT_EXPERT")
    assert found.facts["experts"] == (5,)
    assert found.facts["c"] > 0.9


@pytest.mark.parametrize("experts", [32, 256])
def test_a_hot_expert_is_recognised_from_the_summaries_alone(run_of: Make, experts: int) -> None:
    watch = run_of(lambda n: hot(experts, 2, n), experts, 2, 200, without=["tokens_per_expert"])
    assert severity_of(watch.diagnosis) is Severity.INFO


def test_without_counts_and_max_load_the_text_says_that_a_hot_expert_would_look_the_same(
    run_of: Make,
) -> None:
    watch = run_of(lambda n: hot(256, 2, n), 256, 2, 200, without=["tokens_per_expert", "max_load"])
    (finding,) = [f for f in watch.diagnosis.findings() if f.rule == "COLLAPSE"]
    assert "cannot be distinguished from a collapse" in advise(finding, watch.run).why


def test_the_balance_on_the_screen_is_the_one_that_is_judged(run_of: Make) -> None:
    from microscope_tui.report import view_json
    from microscope_tui.watch import view_of

    view = view_of(run_of(lambda n: hot(32, 2, n), 32, 2, 120))
    (layer,) = view.layers
    assert layer.without == (5,)
    assert layer.collapse_index > 0.95
    assert min(column.low for column in layer.balance_history) > 0.9
    assert '"without_experts":[5]' in view_json(view).replace(" ", "")


def test_of_a_collapse_beside_a_hot_expert_the_rest_is_judged(run_of: Make) -> None:
    def counts(n: int) -> list[int]:
        if n < 150:
            return hot(32, 2, n)
        rest = drawn([1.0] * 4, 1, n)  # every token chooses 5, and one of four others
        return [*rest, 0, TOKENS, *([0] * 26)]

    watch = run_of(counts, 32, 2)
    found = of(watch.diagnosis, "COLLAPSE")
    assert found.severity is Severity.CRITICAL
    assert abs(found.onset - 150) <= 2


# Experts that receive nothing.


@pytest.mark.parametrize("alive", [2, 3, 4, 5, 6])
def test_more_dead_experts_never_make_the_verdict_milder_with_8_experts(
    run_of: Make, alive: int
) -> None:
    watch = run_of(lambda n: only_on(8, 8 if n < 120 else alive, n, 2), 8, 2, 600)
    assert severity_of(watch.diagnosis) is Severity.CRITICAL


@pytest.mark.parametrize("alive", [20, 24, 32, 44])
def test_more_dead_experts_never_make_the_verdict_milder_with_64_experts(
    run_of: Make, alive: int
) -> None:
    watch = run_of(lambda n: only_on(64, 64 if n < 120 else alive, n, 8), 64, 8, 600)
    assert severity_of(watch.diagnosis) is Severity.CRITICAL


def test_two_of_three_groups_that_receive_nothing_are_critical_and_the_text_says_so(
    run_of: Make,
) -> None:
    watch = run_of(lambda n: only_on(12, 12 if n < 120 else 4, n, 2), 12, 2, 600)
    diagnosis = watch.diagnosis
    assert severity_of(diagnosis) is Severity.CRITICAL
    (finding,) = [f for f in diagnosis.findings() if f.rule == "COLLAPSE"]
    assert (
        "8 of 12 experts (4, 5, 6, 7, 8, 9 and 2 more) receive nothing"
        in advise(finding, watch.run).why
    )


# Warm-up, shocks and sparse logs.


def test_a_fall_from_even_counts_is_reported_in_the_warm_up_of_a_long_plan(run_of: Make) -> None:
    watch = run_of(
        lambda n: only_on(8, 8, n, 2) if n < 150 else [4096, 3896, 100, 60, 40, 0, 50, 50],
        8,
        2,
        300,
        planned_steps=100_000,
    )
    found = of(watch.diagnosis, "COLLAPSE")
    assert (found.severity, found.onset) == (Severity.CRITICAL, 150)
    assert found.alarm <= 180


def test_a_layer_that_never_was_even_keeps_its_warm_up(run_of: Make) -> None:
    uneven = [1.0, 0.9, 0.3, 0.2, 0.2, 0.1, 0.1, 0.1]

    def counts(n: int) -> list[int]:
        if n < 150:
            return drawn(uneven, 2, n)
        return [4096, 3596, 200, 100, 100, 50, 25, 25] if n < 260 else drawn(uneven, 2, n)

    watch = run_of(counts, 8, 2, 400, planned_steps=100_000)
    assert [e for e in watch.diagnosis.episodes if e.rule == "COLLAPSE"] == []


def test_after_a_resume_a_layer_has_to_settle_again(
    write_log: Make, open_log: Make, make_header: Make, make_step: Make, balanced: Make
) -> None:
    # The bias is lost: the load falls for forty steps and heals.
    lost = [1900, 1800, 100, 80, 80, 70, 60, 6]
    records = [make_header(planned_steps=1000)]
    records += [make_step(n, [balanced()] * 3, 2048) for n in range(1, 301)]
    records += [make_header(planned_steps=1000, resumed_at_step=301)]
    for n in range(301, 500):
        rows = [balanced(), lost if n < 341 else balanced(), balanced()]
        records.append(make_step(n, rows, 2048))
    assert [e.rule for e in open_log(write_log(records)).diagnosis.episodes] == ["SHOCK"]


def test_a_young_collapse_says_that_it_may_be_a_shock_and_an_old_one_does_not(
    run_of: Make,
) -> None:
    def counts(n: int) -> list[int]:
        return only_on(8, 8, n, 2) if n < 200 else [4096, 4096, *([0] * 6)]

    for steps, young in ((235, True), (400, False)):
        watch = run_of(counts, 8, 2, steps)
        (finding,) = [f for f in watch.diagnosis.findings() if f.rule == "COLLAPSE"]
        assert finding.severity is Severity.CRITICAL
        assert ("a transient shock" in advise(finding, watch.run).why) == young


def test_a_collapse_that_recovers_within_50_steps_is_reported_as_a_shock_and_stays_as_severe(
    run_of: Make,
) -> None:
    def counts(n: int) -> list[int]:
        return [4096, 4096, *([0] * 6)] if 200 <= n < 235 else only_on(8, 8, n, 2)

    watch = run_of(counts, 8, 2, 400)
    (finding,) = [f for f in watch.diagnosis.findings() if f.rule == "COLLAPSE"]
    assert finding.severity is Severity.CRITICAL
    assert "recovered after" in advise(finding, watch.run).verdict
    assert "a shock" in advise(finding, watch.run).verdict


@pytest.mark.parametrize("apart", [10, 50, 100])
def test_in_a_sparse_log_five_lines_are_enough(run_of: Make, apart: int) -> None:
    lines = range(apart, 40 * apart + 1, apart)
    onset = 20 * apart
    watch = run_of(
        lambda n: only_on(8, 8, n, 2) if n < onset else [4096, 4096, *([0] * 6)], 8, 2, lines
    )
    found = of(watch.diagnosis, "COLLAPSE")
    assert (found.severity, found.onset) == (Severity.CRITICAL, onset)
    assert found.alarm <= onset + 4 * apart


def test_five_lines_with_few_tokens_are_not_enough(run_of: Make) -> None:
    # An even router of 64 experts that sees 16 choices a line: five lines look collapsed.
    def counts(n: int) -> list[int]:
        return drawn([1.0] * 64, 2, n, 8)

    watch = run_of(counts, 64, 2, range(100, 4001, 100), tokens=8)
    assert [e for e in watch.diagnosis.episodes if e.rule == "COLLAPSE"] == []


def test_lines_close_together_are_not_worth_more_than_steps(run_of: Make) -> None:
    def counts(n: int) -> list[int]:  # a shock of 24 steps, seen in every fourth step
        return [4096, 4096, *([0] * 6)] if 400 <= n < 424 else only_on(8, 8, n, 2)

    watch = run_of(counts, 8, 2, range(4, 801, 4))
    assert severity_of(watch.diagnosis) is Severity.INFO


def test_a_restart_in_a_sparse_log_does_not_ask_for_more_lines(
    write_log: Make, open_log: Make, make_header: Make, make_step: Make, balanced: Make
) -> None:
    records = [make_header()]
    records += [make_step(n, [balanced()] * 3, 2048) for n in range(100, 2001, 100)]
    records += [make_header(resumed_at_step=1901)]
    for n in range(2000, 4001, 100):
        rows = [balanced(), COLLAPSED if n >= 2500 else balanced(), balanced()]
        records.append(make_step(n, rows, 2048))
    found = of(open_log(write_log(records)).diagnosis, "COLLAPSE")
    assert (found.onset, found.alarm) == (2500, 2900)


# A fine-tuning.

NARROW = [0.85, 0.82, 0.12, 0.08, 0.05, 0.04, 0.02, 0.02]  # c about 0.27, no expert at 95 %
NARROWER = [0.94, 0.93, 0.03, 0.03, 0.02, 0.02, 0.02, 0.01]  # c about 0.12


def test_a_steady_uneven_load_is_normal_in_a_fine_tuning(run_of: Make) -> None:
    watch = run_of(lambda n: drawn(NARROW, 2, n), 8, 2, 600, profile="finetune")
    assert [e for e in watch.diagnosis.episodes if e.rule == "COLLAPSE"] == []


def test_the_same_load_warns_in_a_pretraining(run_of: Make) -> None:
    watch = run_of(lambda n: drawn(NARROW, 2, n), 8, 2, 300)
    assert of(watch.diagnosis, "COLLAPSE").severity is Severity.WARN


def test_a_run_never_collapses_against_itself_as_its_baseline(run_of: Make, open_log: Make) -> None:
    watch = run_of(lambda n: drawn(NARROW, 2, n), 8, 2, 300)
    baseline = read_baseline(RunFile("run", watch.file.path, 0.0))
    again = open_log(watch.file.path, criteria=AgainstBaseline(baseline=baseline.reference))
    assert [e for e in again.diagnosis.episodes if e.rule == "COLLAPSE"] == []


def test_a_fine_tuning_that_becomes_more_uneven_is_reported_with_its_reference(
    run_of: Make,
) -> None:
    watch = run_of(
        lambda n: drawn(NARROW if n < 300 else NARROWER, 2, n), 8, 2, 600, profile="finetune"
    )
    found = of(watch.diagnosis, "COLLAPSE")
    assert (found.severity, found.active) == (Severity.CRITICAL, True)
    assert abs(found.onset - 300) <= 3
    (finding,) = [f for f in watch.diagnosis.findings() if f.rule == "COLLAPSE"]
    assert "in the reference" in advise(finding, watch.run).why


def test_below_the_critical_limit_every_profile_warns_at_least(
    run_of: Make, open_log: Make
) -> None:
    watch = run_of(lambda n: drawn(NARROWER, 2, n), 8, 2, 300)
    baseline = read_baseline(RunFile("run", watch.file.path, 0.0)).reference
    for criteria, severity in (
        (AgainstBaseline(baseline=baseline), Severity.WARN),
        (Criteria(profile="finetune"), Severity.CRITICAL),  # collapsed from the start
        (Criteria(profile="eval"), Severity.CRITICAL),
    ):
        diagnosis = open_log(watch.file.path, criteria=criteria).diagnosis
        assert of(diagnosis, "COLLAPSE").severity is severity, criteria


def test_a_fine_tuning_that_returns_to_its_reference_has_recovered(run_of: Make) -> None:
    watch = run_of(
        lambda n: drawn(NARROWER if 200 <= n < 350 else NARROW, 2, n),
        8,
        2,
        600,
        profile="finetune",
    )
    assert not of(watch.diagnosis, "COLLAPSE").active


# ERODING.


def test_a_slide_that_ends_in_a_critical_collapse_is_over_as_a_warning(
    scenario: Make, open_log: Make
) -> None:
    watch = open_log(scenario("slow-collapse", 3, steps=1500) / "metrics.jsonl")
    eroding, collapse = of(watch.diagnosis, "ERODING"), of(watch.diagnosis, "COLLAPSE")
    critical = next(g.step for g in collapse.grades if g.severity is Severity.CRITICAL)
    assert (eroding.active, eroding.recovered_at, eroding.led_to) == (False, critical, "COLLAPSE")
    (finding,) = group([eroding])
    words = advise(finding, watch.run)
    assert "then router collapse" in words.verdict
    assert "recovered" not in words.verdict
    assert "cheap" not in words.next


@pytest.mark.parametrize("seed", range(4))
def test_experts_that_part_from_an_equal_start_and_settle_are_not_eroding(
    run_of: Make, seed: int
) -> None:
    rng = random.Random(seed)
    logs = [rng.gauss(0, 1) for _ in range(16)]
    mean = sum(logs) / len(logs)
    spread = (sum((x - mean) ** 2 for x in logs) / len(logs)) ** 0.5
    settled = [(x - mean) / spread * 0.65 for x in logs]  # c about 0.76

    def counts(n: int) -> list[int]:
        share = min(1.0, max(0.0, (n - 150) / 250))
        return drawn([2.718281828 ** (share * x) for x in settled], 2, 1000 * seed + n)

    watch = run_of(counts, 16, 2, 700)
    assert [e for e in watch.diagnosis.episodes if e.severity > Severity.INFO] == []


def test_a_runaway_bias_is_dated_to_where_the_load_became_uneven(
    scenario: Make, open_log: Make
) -> None:
    watch = open_log(scenario("collapse", 1, steps=600) / "metrics.jsonl")
    collapse = of(watch.diagnosis, "COLLAPSE")
    found = [e for e in watch.diagnosis.episodes if e.rule == "BIAS_RUNAWAY"]
    assert all(abs(e.onset - collapse.onset) <= 30 for e in found)
    assert found
