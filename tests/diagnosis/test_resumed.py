"""A resumed run: what was superseded no longer holds, what is open ends, settings change."""

from typing import Any

import pytest

from microscope_tui.diagnosis import Criteria, Severity, restore, save
from tests.conftest import header
from tests.diagnosis.conftest import (
    COLLAPSED,
    Counts,
    Record,
    about,
    alternating,
    collapse_at,
    even,
    judge,
    loud,
    of,
    steps,
    without_expert,
)

UNEVEN = [1800, 1700, 200, 150, 100, 60, 50, 36]  # c = 0.24


def dying(n: int) -> list[int]:
    return without_expert(even(n), 3) if n >= 200 else even(n)


def resumed(
    last: int, at: int, end: int, before: Any = even, after: Any = even, **head: Any
) -> list[Record]:
    """Steps up to ``last``, resumed at ``at`` and continued up to ``end``."""
    first = header(**head)
    again = first | {"resumed_at_step": at}
    return [first, *steps(1, last, before), again, *steps(at, end, after)]


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("METER", {"router": lambda n: {"z_loss": ["NaN" if 200 <= n < 230 else 4.0] * 3}}),
        ("DIVERGED", {"loss": lambda n: "NaN" if 200 <= n < 230 else 2.0}),
        ("GRADSPIKE", {"grad_norm": lambda n: 100.0 if 200 <= n < 230 else 1.0}),
        ("DROPS", {"router": lambda n: {"drop_rate": [0.3 if 150 <= n < 230 else 0.0] * 3}}),
    ],
)
@pytest.mark.parametrize("counts", [True, False])
def test_an_episode_that_a_resume_reopens_ends(rule: str, changes: Any, counts: bool) -> None:
    sound = {name: lambda n, value=value: value(1) for name, value in changes.items()}
    records = [
        *(header(), *steps(1, 400, **changes)),
        *(header(resumed_at_step=210), *steps(210, 400, **sound)),
    ]
    for record in records if not counts else ():
        record.pop("tokens_per_expert", None)
    found = [episode for episode in judge(records).episodes if episode.rule == rule]
    assert [episode.recovered_at for episode in found] == [210] * len(found) != []


@pytest.mark.parametrize("end", [500, 530])
def test_a_swing_that_stops_recovers_without_any_resume(end: int) -> None:
    still = [512 + 3 * e - 10 for e in range(8)]  # too even to be looked at
    still[0] += 4096 - sum(still)
    swing: Counts = lambda n: alternating(n) if 200 <= n < end else about(still)(n)  # noqa: E731
    found = of(judge([header(), *steps(1, 1000, swing)]), "OSCILLATION")
    assert end <= found.recovered_at <= end + 200
    assert 192 <= found.onset <= 208


def test_severity_and_numbers_of_superseded_steps_are_withdrawn() -> None:
    falling: Counts = lambda n: UNEVEN if 300 <= n < 400 else collapse_at(400)(n)  # noqa: E731
    records = resumed(480, 380, 500, falling)
    worst = of(judge(records[:481]), "COLLAPSE")
    assert (worst.severity, worst.facts["effective"]) == (Severity.CRITICAL, pytest.approx(2.0))
    for known in (records, resumed(379, 380, 500, falling)):
        found = of(judge(known), "COLLAPSE")
        assert (found.severity, found.limit, found.active) == (Severity.WARN, 0.35, False)
        assert found.facts["effective"] == pytest.approx(3.47, abs=0.02)
        assert max(grade.severity for grade in found.grades) is Severity.WARN


def test_an_alarm_of_superseded_steps_is_withdrawn_though_its_onset_was_not() -> None:
    assert judge(resumed(400, 280, 450, collapse_at(300))).episodes == []
    assert judge(resumed(400, 305, 450, collapse_at(300))).episodes == []
    again = of(judge(resumed(400, 305, 450, collapse_at(300), collapse_at(300))), "COLLAPSE")
    assert abs(again.onset - 300) <= 1  # the evidence from before the resume was kept


def test_resuming_often_hides_no_collapse() -> None:
    records: list[Record] = []
    for start in range(1, 300, 20):  # saved every 20 steps, pre-empted after 23
        records.append(header(resumed_at_step=start))
        records += steps(start, start + 22, collapse_at(150))
    (episode,) = loud(judge(records))
    assert (episode.rule, episode.active) == ("COLLAPSE", True)
    assert abs(episode.onset - 150) <= 3


@pytest.mark.parametrize("resumed_at", [1, 201])
def test_a_resume_in_a_long_warm_up_does_not_shorten_it(resumed_at: int) -> None:
    settling: Counts = lambda n: UNEVEN if n < 450 else even(n)  # noqa: E731
    # The plan has a warm-up of 500 steps.
    records = resumed(250, resumed_at, 600, settling, settling, planned_steps=50_000)
    assert judge(records).episodes == []


def test_a_setting_that_a_resume_corrects_is_over_and_one_that_it_spoils_is_reported() -> None:
    good, bad = {"method": "bias"}, {"method": "none"}
    for before, after, dates in ((bad, good, (1, 150)), (good, bad, (150, None))):
        again = header(balance=after, resumed_at_step=150)
        records = [header(balance=before), *steps(1, 149), again, *steps(150, 160)]
        found = of(judge(records), "LINT")
        assert (found.alarm, found.recovered_at) == dates


def test_checkpoints_of_superseded_steps_are_forgotten() -> None:
    saved = [{"kind": "event", "event": "checkpoint", "step": n} for n in (0, 50, 50, 100)]
    records = [header(), *steps(1, 110), *saved]
    assert judge(records).checkpoints == [0, 50, 100]
    assert judge([*records, header(resumed_at_step=100), *steps(100, 110)]).checkpoints == [0, 50]


@pytest.mark.parametrize(("method", "active"), [("none", True), ("bias", False)])
def test_a_setting_of_a_superseded_resume_depends_on_the_next(method: str, active: bool) -> None:
    bad, good = header(balance={"method": "none"}), header(resumed_at_step=150)
    again = header(balance={"method": method}, resumed_at_step=140)
    records = [bad, *steps(1, 160), good, *steps(150, 170), again, *steps(140, 150)]
    assert of(judge(records), "LINT").active == active


@pytest.mark.parametrize(("before", "after", "dates"), [(4, 1, (1, 201)), (1, 4, (201, None))])
def test_ranks_are_those_of_the_latest_header(before: int, after: int, dates: Any) -> None:
    skewed = about([900, 880, 400, 400, 380, 376, 380, 380])
    first, again = (header(expert_parallel_size=ranks) for ranks in (before, after))
    again["resumed_at_step"] = 201
    found = of(judge([first, *steps(1, 200, skewed), again, *steps(201, 400, skewed)]), "OVERLOAD")
    assert (found.onset, found.recovered_at, found.facts["ranks"]) == (*dates, 4.0)


def test_the_profile_of_a_later_header_decides_which_rules_apply() -> None:
    spiking = [header(), *steps(1, 200, grad_norm=lambda n: 1e3 if n >= 180 else 1.0)]
    evaluated = [header(profile="eval"), *steps(201, 300, grad_norm=lambda n: 1e3)]
    assert of(judge(spiking), "GRADSPIKE").active
    assert of(judge([*spiking, *evaluated]), "GRADSPIKE").recovered_at == 201


def starving(n: int) -> list[int]:
    return about([560, 540, 555, 565, 622, 624, 620, 10])(n) if n >= 200 else even(n)


@pytest.mark.parametrize(
    ("rule", "sick", "fact"),
    [("DEAD", dying, ("experts", (3,))), ("STARVED", starving, ("reference", 0.0))],
)
def test_a_resume_does_not_make_damage_the_reference(rule: str, sick: Counts, fact: Any) -> None:
    found = of(judge(resumed(450, 401, 600, sick, sick, profile="finetune")), rule)
    assert (found.active, found.facts[fact[0]]) == (True, fact[1])


def test_a_restart_from_the_first_step_takes_a_new_reference() -> None:
    narrow: Counts = lambda n: without_expert(even(n), 3)  # noqa: E731
    found = judge(resumed(300, 1, 300, even, narrow, profile="finetune")).episodes
    assert not {"DEAD", "STARVED"} & {episode.rule for episode in found}


def test_a_restored_judgement_leaves_out_what_is_ignored_now() -> None:
    diagnosis = judge([header(), *steps(1, 200, lambda n: COLLAPSED)])
    assert [episode.rule for episode in diagnosis.episodes] == ["COLLAPSE"]
    ignoring = Criteria(ignore=frozenset({"COLLAPSE"}))
    assert restore(save(diagnosis), diagnosis.run, ignoring).episodes == []


def test_a_restart_forgets_evidence_whose_steps_are_superseded() -> None:
    diagnosis = judge([header(), *steps(1, 210, collapse_at(200))])
    assert list(diagnosis.rules["COLLAPSE"].tracks) == [1]
    diagnosis.restart(200)
    assert not diagnosis.rules["COLLAPSE"].tracks


def test_a_setting_that_returns_is_another_episode() -> None:
    records = [header(balance={"method": "none"}), *steps(1, 49)]
    for at, method in ((50, "bias"), (100, "none")):
        again = header(balance={"method": method}, resumed_at_step=at)
        records += [again, *steps(at, at + 49)]
    found = [(e.onset, e.recovered_at, e.recurrence) for e in judge(records).episodes]
    assert found == [(1, 50, 0), (100, None, 1)]
