"""Close to a limit: what is old enough, low enough or costly enough for an alarm, and what not."""

import pytest

from microscope_tui.diagnosis import Severity, advise, group
from tests.conftest import header, step
from tests.diagnosis.conftest import Counts, even, judge, loud, of, steps, without_expert


def two_resting(last: int) -> Counts:
    """Experts 3 and 6 receive nothing from step 200 to ``last``."""
    return lambda n: without_expert(without_expert(even(n), 3), 6) if 200 <= n <= last else even(n)


@pytest.mark.parametrize("last", [240, 290])
def test_experts_that_rest_for_less_than_100_steps_are_not_dead(last: int) -> None:
    rules = {e.rule for e in loud(judge([header(), *steps(1, 400, two_resting(last))]))}
    assert rules <= {"OVERLOAD"}


def test_dead_experts_are_a_warning_after_100_steps_and_critical_after_200() -> None:
    found = of(judge([header(), *steps(1, 390, two_resting(390))]), "DEAD")
    assert (found.severity, found.facts["experts"]) == (Severity.WARN, (3, 6))
    assert 200 <= found.onset < 208
    assert found.onset + 100 <= found.alarm < found.onset + 108
    found = of(judge([header(), *steps(1, 500, two_resting(500))]), "DEAD")
    grades = [(grade.severity, (grade.step - found.onset) // 100) for grade in found.grades]
    assert grades == [(Severity.WARN, 1), (Severity.CRITICAL, 2)]


def test_the_age_of_dead_experts_is_a_difference_of_step_numbers() -> None:
    rows = [even(1), without_expert(without_expert(even(2), 3), 6), even(3)]
    records = [header(), *(step(10 * n, rows, 2048) for n in range(1, 60))]
    found = of(judge(records), "DEAD")
    assert (found.onset, found.alarm, found.severity) == (10, 240, Severity.CRITICAL)


def test_other_experts_that_rest_keep_no_episode_of_dead_ones_open() -> None:
    def course(n: int) -> list[int]:
        if n >= 350:
            return without_expert(even(n), 1 + n // 40 % 7)
        return without_expert(even(n), 3) if n >= 200 else even(n)

    found = of(judge([header(), *steps(1, 600, course)]), "DEAD")
    assert (found.severity, found.facts["experts"]) == (Severity.WARN, (3,))
    assert 350 <= (found.recovered_at or 0) <= 370


def test_an_expert_that_is_empty_in_two_of_three_steps_is_not_dead() -> None:
    sick: Counts = lambda n: without_expert(even(n), 5) if n % 3 else even(n)  # noqa: E731
    assert loud(judge([header(), *steps(1, 400, sick)])) == []


@pytest.mark.parametrize(("profile", "with_counts"), [("finetune", False), ("eval", True)])
def test_an_expert_that_hovers_at_a_tenth_of_its_share_does_not_starve(
    profile: str, with_counts: bool
) -> None:
    def sick(n: int) -> list[int]:
        few = 60 if n < 60 else 51 + (-12 if n // 70 % 2 else 12)  # of a fair share of 512
        row = even(n)
        return [*row[:6], row[6] + row[7] - few, few]

    records = [header(profile=profile), *steps(1, 400, sick)]
    for record in records if not with_counts else ():
        record.pop("tokens_per_expert", None)
    assert loud(judge(records)) == []


@pytest.mark.parametrize("every", [1, 10])
def test_an_expert_that_loses_its_share_in_a_fine_tuning_starves_until_it_is_back_above_a_tenth(
    every: int,
) -> None:
    def sick(n: int) -> list[int]:
        few = 512 if n < 200 else 10 if n < 600 else 40 if n < 900 else 200
        row = even(n)
        return [*row[:6], row[6] + row[7] - few, few]

    records = [header(profile="finetune"), *steps(1, 1400, sick)]
    for record in records[1:]:
        if record["step"] % every:
            del record["tokens_per_expert"]
    (found,) = loud(judge(records))
    assert (found.rule, found.severity, found.recurrence) == ("STARVED", Severity.WARN, 0)
    assert 200 <= found.onset <= 200 + 30 * every
    assert 900 <= (found.recovered_at or 0) <= 900 + 30 * every


@pytest.mark.parametrize(("load", "alarm"), [(768, None), (769, 101)])
def test_a_rank_is_overloaded_beyond_one_and_a_half_times_the_mean(
    load: int, alarm: int | None
) -> None:
    others = (4096 - 2 * load) // 6
    row = [load, load, *[others] * 5, 4096 - 2 * load - 5 * others]
    found = loud(judge([header(expert_parallel_size=4), *steps(1, 160, lambda n: row)]))
    assert [e.alarm for e in found] == ([alarm] if alarm else [])


@pytest.mark.parametrize(
    ("model", "ranks", "severity", "advice"),
    [
        ({}, 1, Severity.INFO, "Nothing, while neither a capacity nor"),
        ({"capacity_factor": 1.25}, 1, Severity.WARN, "Watch memory and step time"),
        ({}, 8, Severity.WARN, "Watch memory and step time"),
    ],
)
def test_a_busy_expert_is_information_unless_something_waits_for_it(
    model: dict[str, float], ranks: int, severity: Severity, advice: str
) -> None:
    def row(n: int) -> list[int]:
        counts = [256 + (3 * n + 5 * e) % 7 - 3 for e in range(63)]
        if n >= 250:
            counts = [count * 14 // 15 for count in counts]
        return [*counts, 2048 * 8 - sum(counts)]

    wide = {"num_experts": 64, "top_k": 8, "layers": [1], "layer_names": ["L1"]} | model
    records = [header(model=wide, expert_parallel_size=ranks)]
    diagnosis = judge(records + [step(n, [row(n)], 2048) for n in range(1, 320)])
    found = of(diagnosis, "OVERLOAD")
    assert found.severity is severity
    assert advise(group([found])[0], diagnosis.run).next.startswith(advice)
