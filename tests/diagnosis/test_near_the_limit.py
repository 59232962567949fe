"""Close to a limit: what is old enough, low enough or costly enough for an alarm, and what not."""

import pytest

from microscope_tui.diagnosis import Criteria, Severity
from tests.conftest import header, step
from tests.diagnosis.conftest import Counts, about, even, judge, loud, of, steps, without_expert


def two_resting(last: int) -> Counts:
    """Experts 3 and 6 receive nothing from step 200 to ``last``."""
    return lambda n: without_expert(without_expert(even(n), 3), 6) if 200 <= n <= last else even(n)


def test_dead_experts_are_a_warning_after_100_steps_and_critical_after_200_of_pretraining() -> None:
    for last in (240, 290):
        rules = {e.rule for e in loud(judge([header(), *steps(1, 400, two_resting(last))]))}
        assert rules <= {"OVERLOAD"}
    found = of(judge([header(), *steps(1, 390, two_resting(390))]), "DEAD")
    assert (found.severity, found.facts["experts"]) == (Severity.WARN, (3, 6))
    assert 200 <= found.onset < 208
    assert found.onset + 100 <= found.alarm < found.onset + 108
    for profile, late in (("pretrain", [(Severity.CRITICAL, 2)]), ("finetune", [])):
        found = of(judge([header(profile=profile), *steps(1, 500, two_resting(500))]), "DEAD")
        grades = [(grade.severity, (grade.step - found.onset) // 100) for grade in found.grades]
        assert grades == [(Severity.WARN, 1), *late]


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


@pytest.mark.parametrize("every", [1, 10])
def test_in_a_fine_tuning_an_expert_starves_until_it_is_back_above_a_tenth(every: int) -> None:
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


@pytest.mark.parametrize(("noise", "rules"), [(0.0, {"ERODING"}), (0.05, set())])
def test_a_slide_within_its_noise_is_not_eroding(noise: float, rules: set[str]) -> None:
    def balance(n: int) -> float:
        return 0.85 - 0.35 * min(1.0, max(0, n - 150) / 200) + noise * (-1) ** ((n - 1) // 5)

    router = lambda n: {"effective_experts": [7.9, 2 + 6 * balance(n), 7.9]}  # noqa: E731
    unlike_counts = Criteria(frozenset({"METER"}))
    found = judge([header(), *steps(1, 350, router=router)], unlike_counts).episodes
    assert {e.rule for e in found} == rules


@pytest.mark.parametrize(("load", "alarm"), [(768, None), (769, 101)])
def test_a_rank_is_overloaded_beyond_1_5_times_the_mean(load: int, alarm: int | None) -> None:
    others = (4096 - 2 * load) // 6
    row = [load, load, *[others] * 5, 4096 - 2 * load - 5 * others]
    found = loud(judge([header(expert_parallel_size=4), *steps(1, 160, about(row))]))
    assert [e.alarm for e in found] == ([alarm] if alarm else [])


def test_the_counts_of_one_line_do_not_decide_for_lines_without_any() -> None:
    three = about([815, 815, 815, 815, 806, 10, 10, 10])
    one = about([584, 584, 584, 584, 584, 584, 582, 10])
    sick = lambda n: even(n) if n < 200 else three(n) if n == 200 else one(n)  # noqa: E731
    records = [header(profile="finetune"), *steps(1, 300, sick)]
    for record in records[201:]:
        del record["tokens_per_expert"]
    assert not [e for e in judge(records).episodes if e.rule == "STARVED"]
