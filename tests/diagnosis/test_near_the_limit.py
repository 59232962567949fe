"""Close to a limit: what is old enough, low enough or costly enough for an alarm, and what not."""

from collections.abc import Callable
from typing import Any

import pytest

from microscope_tui.diagnosis import Diagnosis, Episode, Severity, advise, group
from tests.diagnosis.conftest import without_expert

Make = Callable[..., Any]


def loud(diagnosis: Diagnosis) -> list[Episode]:
    """Episodes that are more than information."""
    return [e for e in diagnosis.episodes if e.severity > Severity.INFO]


def test_dead_experts_are_a_warning_after_100_steps_and_critical_after_200(
    judge: Make, steps: Make, make_header: Make, balanced: Make
) -> None:
    def resting(last: int) -> Callable[[int], list[int]]:
        without = without_expert(without_expert(balanced(), 3), 6)
        return lambda n: without if 200 <= n <= last else balanced()

    for last in (240, 290):
        assert [
            e
            for e in loud(judge([make_header(), *steps(1, 400, resting(last))]))
            if e.rule in ("DEAD", "STARVED")
        ] == []
    (found,) = [
        e for e in loud(judge([make_header(), *steps(1, 400, resting(390))])) if e.rule == "DEAD"
    ]
    assert (found.severity, found.active) == (Severity.WARN, True)
    assert 200 <= found.onset < 208
    assert found.onset + 100 <= found.alarm < found.onset + 108
    (found,) = [
        e for e in loud(judge([make_header(), *steps(1, 500, resting(499))])) if e.rule == "DEAD"
    ]
    assert [(g.severity, (g.step - found.onset) // 100) for g in found.grades] == [
        (Severity.WARN, 1),
        (Severity.CRITICAL, 2),
    ]


def test_the_age_of_dead_experts_is_a_difference_of_step_numbers(
    judge: Make, make_header: Make, make_step: Make, balanced: Make
) -> None:
    rows = [balanced(), without_expert(without_expert(balanced(), 3), 6), balanced()]
    records = [make_header(), *(make_step(10 * n, rows, 2048) for n in range(1, 60))]
    (found,) = [e for e in loud(judge(records)) if e.rule == "DEAD"]
    assert (found.onset, found.alarm, found.severity) == (10, 240, Severity.CRITICAL)


def test_other_experts_that_rest_keep_no_episode_of_dead_ones_open(
    judge: Make, steps: Make, make_header: Make, balanced: Make
) -> None:
    def course(n: int) -> list[int]:
        if n >= 350:
            return without_expert(balanced(), 1 + n // 40 % 7)
        return without_expert(balanced(), 3) if n >= 200 else balanced()

    (found,) = [e for e in loud(judge([make_header(), *steps(1, 600, course)])) if e.rule == "DEAD"]
    assert (found.severity, found.facts["experts"]) == (Severity.WARN, (3,))
    assert 350 <= (found.recovered_at or 0) <= 370


@pytest.mark.parametrize("profile", ["finetune", "eval"])
@pytest.mark.parametrize("with_counts", [True, False])
def test_an_expert_that_hovers_at_a_tenth_of_its_share_does_not_starve(
    judge: Make,
    make_header: Make,
    make_step: Make,
    balanced: Make,
    profile: str,
    with_counts: bool,
) -> None:
    records = [make_header(profile=profile)]
    for n in range(1, 600):
        few = 60 if n < 60 else 51 + (-12 if n // 70 % 2 else 12)  # of a fair share of 512
        row = balanced()
        row[6], row[7] = row[6] + row[7] - few, few
        record = make_step(n, [balanced(), row, balanced()], 2048)
        if not with_counts:
            del record["tokens_per_expert"]
        records.append(record)
    assert loud(judge(records)) == []


@pytest.mark.parametrize("every", [1, 10])
def test_an_expert_that_loses_its_share_in_a_fine_tuning_starves_until_it_is_back_above_a_tenth(
    judge: Make, make_header: Make, make_step: Make, balanced: Make, every: int
) -> None:
    def few(n: int) -> int:
        return 512 if n < 200 else 10 if n < 700 else 40 if n < 1400 else 200

    records = [make_header(profile="finetune")]
    for n in range(1, 2200):
        row = balanced()
        row[6], row[7] = row[6] + row[7] - few(n), few(n)
        record = make_step(n, [balanced(), row, balanced()], 2048)
        if n % every:
            del record["tokens_per_expert"]
        records.append(record)
    (found,) = loud(judge(records))
    assert (found.rule, found.severity, found.recurrence) == ("STARVED", Severity.WARN, 0)
    assert 200 <= found.onset <= 200 + 30 * every
    assert 1400 <= (found.recovered_at or 0) <= 1400 + 30 * every


def test_a_busy_expert_is_information_unless_something_waits_for_it(
    judge: Make, make_header: Make, make_step: Make
) -> None:
    def even(n: int) -> list[int]:
        return [256 + (3 * n + 5 * e) % 7 - 3 for e in range(63)] + [0]

    def row(n: int) -> list[int]:
        counts = even(n)
        if n >= 250:
            counts = [count * 14 // 15 for count in counts]
        counts[63] = 2048 * 8 - sum(counts)
        return counts

    model = {"num_experts": 64, "top_k": 8, "layers": [1], "layer_names": ["L1"]}
    told = {}
    for name, header in {
        "neither": make_header(model=model),
        "capacity": make_header(model=model | {"capacity_factor": 1.25}),
        "ranks": make_header(model=model, expert_parallel_size=8),
    }.items():
        records = [header, *(make_step(n, [row(n)], 2048) for n in range(1, 400))]
        diagnosis = judge(records)
        (found,) = [e for e in diagnosis.episodes if e.rule == "OVERLOAD"]
        told[name] = (found.severity, advise(group([found])[0], diagnosis.run).next)
    assert {name: severity for name, (severity, _) in told.items()} == {
        "neither": Severity.INFO,
        "capacity": Severity.WARN,
        "ranks": Severity.WARN,
    }
    assert told["neither"][1].startswith("Nothing, while neither a capacity nor")
    assert told["capacity"][1].startswith("Watch memory and step time")
