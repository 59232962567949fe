"""The rules: right rule, right layer, right onset, and silence on what only looks like trouble."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.diagnosis import Episode, Severity
from microscope_tui.scenarios import draw_counts, inclusion_shares

Make = Callable[..., dict[str, Any]]
Rows = Callable[[int], list[list[int]]]
COLLAPSED = [2048, 0, 0, 0, 2048, 0, 0, 0]
SHAPES = [(8, 2, 2048), (4, 1, 96), (64, 8, 2048), (128, 8, 4096)]


@pytest.fixture
def judge(
    write_log: Callable[..., Path], open_log: Any, make_header: Make, make_step: Make, balanced: Any
) -> Callable[..., list[Episode]]:
    """Episodes of a run of 3 routers; ``sick(step)`` gives the counts of router 1."""

    def run(
        sick: Callable[[int], list[int]] | None = None, steps: int = 400, **extra: Any
    ) -> list[Episode]:
        records = [make_header()]
        for n in range(1, steps + 1):
            rows = [balanced(), sick(n) if sick else balanced(), balanced()]
            changes = {key: value(n) for key, value in extra.items()}
            records.append(make_step(n, rows, 2048, **changes))
        return loud(open_log(write_log(records)))

    return run


def loud(watch: Any) -> list[Episode]:
    """Episodes that are more than information."""
    return [e for e in watch.diagnosis.episodes if e.severity > Severity.INFO]


def only(episodes: list[Episode]) -> Episode:
    assert len(episodes) == 1, episodes
    return episodes[0]


@pytest.mark.parametrize(("experts", "top_k", "tokens"), SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_a_collapse_is_found_in_the_right_layer_close_to_its_onset(
    scenario: Any, open_log: Any, experts: int, top_k: int, tokens: int, seed: int
) -> None:
    folder = scenario(
        "collapse", seed, routers=6, num_experts=experts, top_k=top_k, tokens=tokens, steps=450
    )
    episode = only(loud(open_log(folder / "metrics.jsonl")))
    assert (episode.rule, episode.severity) == ("COLLAPSE", Severity.CRITICAL)
    assert episode.router.name == "L5"
    assert 150 <= episode.onset <= 190
    assert episode.alarm <= 150 + 55


@pytest.mark.parametrize(("experts", "top_k", "tokens"), SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_a_healthy_run_raises_nothing(
    scenario: Any, open_log: Any, experts: int, top_k: int, tokens: int, seed: int
) -> None:
    folder = scenario(
        "healthy", seed, routers=4, num_experts=experts, top_k=top_k, tokens=tokens, steps=600
    )
    assert loud(open_log(folder / "metrics.jsonl")) == []


def test_a_sudden_collapse_is_dated_to_its_first_step(judge: Any, balanced: Any) -> None:
    episode = only(judge(lambda n: COLLAPSED if n >= 200 else balanced()))
    assert (episode.rule, episode.router.name, episode.onset) == ("COLLAPSE", "L2", 200)
    assert episode.alarm <= 230
    assert episode.facts["experts"] == (0, 4)
    assert episode.active


def test_period_two_oscillation_is_not_collapse(judge: Any) -> None:
    even, odd = [1024, 0] * 4, [0, 1024] * 4
    # Each step alone reads c = 0.33; the sum of any two steps is perfectly even.
    episode = only(judge(lambda n: even if n % 2 else odd))
    assert (episode.rule, episode.facts["period"]) == ("OSCILLATION", 2)


def test_a_short_shock_is_not_collapse(judge: Any, balanced: Any) -> None:
    assert judge(lambda n: COLLAPSED if 200 <= n < 215 else balanced()) == []


def test_warm_up_imbalance_is_not_collapse(judge: Any, balanced: Any) -> None:
    mild = [1500, 1500, 300, 300, 200, 150, 100, 46]
    assert judge(lambda n: mild if n < 95 else balanced()) == []


def test_total_collapse_is_urgent_even_in_the_warm_up(judge: Any) -> None:
    episode = only(judge(lambda n: COLLAPSED, steps=90))
    assert (episode.rule, episode.onset, episode.severity) == ("COLLAPSE", 1, Severity.CRITICAL)
    assert episode.alarm <= 60


def test_a_collapse_that_ends_is_recovered_and_a_second_one_recurs(
    judge: Any, balanced: Any
) -> None:
    first, second = judge(
        lambda n: COLLAPSED if 150 <= n < 200 or n >= 350 else balanced(), steps=420
    )
    assert (first.recovered_at is not None, second.active) == (True, True)
    assert 200 <= first.recovered_at <= 230
    assert (first.recurrence, second.recurrence) == (0, 1)


def test_one_expert_that_every_token_chooses_is_not_collapse(judge: Any) -> None:
    shared = [2048, 300, 290, 295, 285, 290, 295, 293]
    assert judge(lambda n: shared) == []


def test_dead_experts_are_named_and_collapse_is_not(judge: Any, balanced: Any) -> None:
    def two_dead(n: int) -> list[int]:
        row = balanced()
        if n >= 200:
            row[1] += row[3] + row[6]
            row[3] = row[6] = 0
        return row

    episode = only([one for one in judge(two_dead, steps=450) if one.rule != "OVERLOAD"])
    assert (episode.rule, episode.severity) == ("DEAD", Severity.CRITICAL)
    assert episode.facts["experts"] == (3, 6)
    assert 195 <= episode.onset <= 215


def test_an_expert_that_is_empty_now_and_then_is_not_dead(judge: Any, balanced: Any) -> None:
    def flicker(n: int) -> list[int]:
        row = balanced()
        if n % 3:
            row[0] += row[5]
            row[5] = 0
        return row

    assert judge(flicker) == []


def test_few_tokens_are_not_evidence_of_a_dead_expert(
    write_log: Any, open_log: Any, make_header: Make, make_step: Make
) -> None:
    rng = random.Random(3)
    header = make_header(
        model={"num_experts": 64, "top_k": 1, "layers": [1], "layer_names": ["L1"]}
    )
    records = [header]
    for n in range(1, 400):
        records.append(make_step(n, [draw_counts([1.0] * 64, 32, 1, rng)], 32))
    assert loud(open_log(write_log(records))) == []


@pytest.mark.parametrize(("rate", "severity"), [(0.1, Severity.WARN), (0.3, Severity.CRITICAL)])
def test_drops_above_their_limits_are_reported(judge: Any, rate: float, severity: Severity) -> None:
    router = lambda n: {"drop_rate": [0.001, rate if n >= 200 else 0.001, None]}  # noqa: E731
    episode = only(judge(router=router))
    assert (episode.rule, episode.router.name, episode.severity) == ("DROPS", "L2", severity)
    assert episode.onset == 200


def test_counts_that_are_twice_what_they_should_be_are_a_meter_fault_not_a_disease(
    judge: Any,
) -> None:
    episode = only(judge(lambda n: [2 * count for count in COLLAPSED], steps=300))
    assert (episode.rule, episode.severity) == ("METER", Severity.ERROR)
    assert episode.facts["cause"] == "multiple"


def test_equal_counts_are_a_forced_balance(judge: Any) -> None:
    episode = only(judge(lambda n: [512] * 8, steps=300))
    assert (episode.rule, episode.facts["cause"]) == ("METER", "forced")


def test_nan_is_a_meter_fault_although_it_looks_like_collapse(judge: Any, balanced: Any) -> None:
    episodes = judge(
        lambda n: [2048, 2048, 0, 0, 0, 0, 0, 0] if n >= 200 else balanced(),
        loss=lambda n: "NaN" if n >= 200 else 2.0,
    )
    assert {episode.rule for episode in episodes} == {"METER"}
    assert [(one.router, one.onset) for one in episodes] == [(None, 200)]  # the run as a whole


def test_without_counts_the_verdict_says_what_it_rests_on(
    write_log: Any, open_log: Any, make_header: Make, make_step: Make, balanced: Any
) -> None:
    records = [make_header()]
    for n in range(1, 300):
        record = make_step(n, [balanced(), COLLAPSED if n > 150 else balanced(), balanced()], 2048)
        del record["tokens_per_expert"]
        records.append(record)
    episode = only(loud(open_log(write_log(records))))
    assert (episode.rule, episode.confidence) == ("COLLAPSE", "per-step summaries only")


def test_a_resume_before_the_onset_withdraws_the_alarm(
    write_log: Any, open_log: Any, make_header: Make, make_step: Make, balanced: Any
) -> None:
    def steps(first: int, last: int, sick: int) -> list[dict[str, Any]]:
        return [
            make_step(n, [balanced(), COLLAPSED if n >= sick else balanced(), balanced()], 2048)
            for n in range(first, last)
        ]

    records = [make_header(), *steps(1, 300, 200), make_header(resumed_at_step=180)]
    watch = open_log(write_log([*records, *steps(180, 400, 10**9)]))
    assert watch.diagnosis.episodes == []


@pytest.mark.parametrize(
    ("weights", "top_k"), [([1, 1, 1, 1], 2), ([100, 1, 1, 1], 2), ([0, 0, 1], 1)]
)
def test_inclusion_shares_sum_to_k_and_none_exceeds_one(weights: list[float], top_k: int) -> None:
    shares = inclusion_shares(weights, top_k)
    assert sum(shares) == pytest.approx(top_k)
    assert all(0 <= share <= 1 + 1e-12 for share in shares)


@pytest.mark.parametrize("seed", range(20))
def test_drawn_counts_sum_to_tokens_times_k_and_none_exceeds_the_tokens(seed: int) -> None:
    rng = random.Random(seed)
    weights = [rng.expovariate(1.0) ** 3 for _ in range(8)]
    counts = draw_counts(weights, 100, 2, rng)
    assert sum(counts) == 200
    assert all(0 <= count <= 100 for count in counts)


@pytest.mark.parametrize("onset", [20, 60, 95])
def test_a_collapse_that_begins_in_the_warm_up_is_dated_to_its_first_step(
    judge: Any, balanced: Any, onset: int
) -> None:
    settling = [1200, 1100, 500, 400, 350, 296, 150, 100]  # uneven enough to be suspected
    episode = only(judge(lambda n: COLLAPSED if n >= onset else settling, steps=200))
    assert abs(episode.onset - onset) <= 2
    assert episode.alarm <= max(101, onset + 50)


def test_a_slow_oscillation_before_a_collapse_does_not_move_the_onset_far(judge: Any) -> None:
    even, odd = [1024, 0] * 4, [0, 1024] * 4
    episodes = judge(lambda n: COLLAPSED if n >= 200 else (even if n % 2 else odd))
    episode = only([one for one in episodes if one.rule == "COLLAPSE"])
    assert 170 <= episode.onset <= 225


@pytest.mark.parametrize("length", [5, 12, 17])
def test_a_shock_that_passes_is_not_a_collapse(judge: Any, balanced: Any, length: int) -> None:
    assert judge(lambda n: COLLAPSED if 200 <= n < 200 + length else balanced()) == []


def test_a_step_logged_twice_hides_nothing_and_is_said(
    write_log: Any, open_log: Any, make_header: Make, make_step: Make, balanced: Any
) -> None:
    steps = [
        make_step(n, [balanced(), COLLAPSED if n >= 150 else balanced(), balanced()], 2048)
        for n in range(1, 300)
    ]
    watch = open_log(write_log([make_header(), *(s for step in steps for s in (step, step))]))
    assert [e.rule for e in watch.diagnosis.episodes] == ["COLLAPSE"]
    assert watch.history.restarts == []
    assert "step 1 again: two writers?" in watch.defects.first[0]


def test_resuming_often_hides_no_collapse(
    write_log: Any, open_log: Any, make_header: Make, make_step: Make, balanced: Any
) -> None:
    records = [make_header()]
    for start in range(1, 400, 20):  # saved every 20 steps, pre-empted after 23
        records.append(make_header(resumed_at_step=start))
        for n in range(start, start + 23):
            rows = [balanced(), COLLAPSED if n >= 150 else balanced(), balanced()]
            records.append(make_step(n, rows, 2048))
    episode = only(loud(open_log(write_log(records))))
    assert (episode.rule, episode.active) == ("COLLAPSE", True)
    assert abs(episode.onset - 150) <= 3


def test_an_ignored_meter_mutes_nothing(
    write_log: Any, make_header: Make, make_step: Make, balanced: Any
) -> None:
    from microscope_tui.diagnosis import Criteria
    from microscope_tui.report import CheckRequest
    from microscope_tui.report import judge as judge_file
    from microscope_tui.runlog import RunFile

    doubled = [2 * count for count in COLLAPSED]
    steps = [make_step(n, [balanced(), doubled, balanced()], 2048) for n in range(1, 300)]
    file = RunFile("run", write_log([make_header(), *steps]), 0.0)
    assert judge_file(file).exit_code == 3
    assert judge_file(file, CheckRequest(criteria=Criteria(frozenset({"METER"})))).exit_code == 2
