"""A resumed run: what was superseded no longer holds, what is open ends, settings change."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from microscope_tui.diagnosis import Criteria, Severity, restore, save
from tests.diagnosis.conftest import COLLAPSED, of, without_expert

Make = Callable[..., Any]
UNEVEN = [1800, 1700, 200, 150, 100, 60, 50, 36]  # c = 0.24


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("METER", {"loss": lambda n: "NaN" if 500 <= n < 530 else 2.0}),
        ("GRADSPIKE", {"grad_norm": lambda n: 100.0 if 500 <= n < 530 else 1.0}),
        ("DROPS", {"router": lambda n: {"drop_rate": [0.3 if 450 <= n < 530 else 0.0] * 3}}),
    ],
)
def test_an_episode_that_a_resume_reopens_ends(
    judge: Make, steps: Make, make_header: Make, rule: str, changes: Any
) -> None:
    well = {"loss": 2.0, "grad_norm": 1.0, "router": {"drop_rate": [0.0] * 3}}
    sound = {name: lambda n, name=name: well[name] for name in changes}
    diagnosis = judge(
        [
            make_header(),
            *steps(1, 800, **changes),
            make_header(resumed_at_step=510),
            *steps(510, 900, **sound),
        ]
    )
    found = [episode for episode in diagnosis.episodes if episode.rule == rule]
    assert found
    assert not any(episode.active for episode in found)


def test_a_fault_of_a_log_without_counts_ends_after_a_resume(
    judge: Make, steps: Make, make_header: Make
) -> None:
    records = [
        make_header(),
        *steps(1, 300, loss=lambda n: "NaN" if 200 <= n < 230 else 2.0),
        make_header(resumed_at_step=210),
        *steps(210, 300),
    ]
    for record in records:
        record.pop("tokens_per_expert", None)
    found = of(judge(records), "METER")
    assert found.recovered_at == 210


def test_a_swing_that_a_resume_ends_is_over(
    judge: Make, steps: Make, make_header: Make, balanced: Make
) -> None:
    even, odd = [1024, 0] * 4, [0, 1024] * 4
    swing = lambda n: (even if n % 2 else odd) if n >= 200 else balanced()  # noqa: E731
    records = [make_header(), *steps(1, 600, swing)]
    assert of(judge(records), "OSCILLATION").active
    resumed = [*records, make_header(resumed_at_step=501), *steps(501, 1000)]
    assert not of(judge(resumed), "OSCILLATION").active


@pytest.mark.parametrize("end", [500, 530])
def test_a_swing_that_stops_recovers_without_any_resume(
    judge: Make, make_header: Make, make_step: Make, end: int
) -> None:
    swing = [[0, 1024] * 4, [1024, 0] * 4]
    records = [make_header()]
    for n in range(1, 1001):
        even = [512 + (3 * n + 5 * e) % 7 - 3 for e in range(8)]  # nothing to look at any more
        even[0] += 4096 - sum(even)
        records.append(make_step(n, [even, swing[n % 2] if 200 <= n < end else even, even], 2048))
    found = of(judge(records), "OSCILLATION")
    assert found.recovered_at is not None
    assert end <= found.recovered_at <= end + 200


def test_severity_and_numbers_of_superseded_steps_are_withdrawn(
    judge: Make, steps: Make, make_header: Make, balanced: Make
) -> None:
    falling = lambda n: balanced() if n < 300 else UNEVEN if n < 400 else COLLAPSED  # noqa: E731
    records = [make_header(), *steps(1, 600, falling)]
    worst = of(judge(records), "COLLAPSE")
    assert (worst.severity, worst.facts["effective"]) == (Severity.CRITICAL, pytest.approx(2.0))
    resumed = judge([*records, make_header(resumed_at_step=380), *steps(380, 700)])
    alone = judge([*records[:380], make_header(resumed_at_step=380), *steps(380, 700)])
    for found in (of(resumed, "COLLAPSE"), of(alone, "COLLAPSE")):
        assert (found.severity, found.limit, found.active) == (Severity.WARN, 0.35, False)
        assert found.facts["effective"] == pytest.approx(3.47, abs=0.02)
        assert max(grade.severity for grade in found.grades) is Severity.WARN


def test_an_alarm_of_superseded_steps_is_withdrawn_though_its_onset_was_not(
    judge: Make, steps: Make, make_header: Make, balanced: Make
) -> None:
    collapsing = lambda n: COLLAPSED if n >= 300 else balanced()  # noqa: E731
    records = [make_header(), *steps(1, 500, collapsing), make_header(resumed_at_step=305)]
    assert judge([*records, *steps(305, 600)]).episodes == []
    again = of(judge([*records, *steps(305, 600, collapsing)]), "COLLAPSE")
    assert abs(again.onset - 300) <= 1  # the evidence from before the resume was kept


@pytest.mark.parametrize("resumed_at", [1, 201])
def test_a_resume_in_a_long_warm_up_does_not_shorten_it(
    judge: Make, steps: Make, make_header: Make, balanced: Make, resumed_at: int
) -> None:
    settling = lambda n: [2000, 1900, 50, 50, 40, 30, 20, 6] if n < 450 else balanced()  # noqa: E731
    header = make_header(planned_steps=50_000)  # a warm-up of 500 steps
    again = header | {"resumed_at_step": resumed_at}
    records = [header, *steps(1, 250, settling), again, *steps(resumed_at, 700, settling)]
    assert judge(records).episodes == []


def test_a_setting_that_a_resume_mends_is_over_and_one_that_it_spoils_is_told(
    judge: Make, steps: Make, make_header: Make
) -> None:
    good, bad = {"method": "bias"}, {"method": "none"}

    def lint(before: Any, after: Any) -> Any:
        header = make_header(balance=after, resumed_at_step=150)
        return of(judge([make_header(balance=before), *steps(1, 149), header, *steps(150, 200)]),
                  "LINT")  # fmt: skip

    mended, spoilt = lint(bad, good), lint(good, bad)
    assert (mended.alarm, mended.recovered_at) == (1, 150)
    assert (spoilt.alarm, spoilt.recovered_at) == (150, None)


def test_a_setting_mended_by_a_superseded_resume_is_mended_by_the_next_one_too(
    judge: Make, steps: Make, make_header: Make
) -> None:
    bad, good = make_header(balance={"method": "none"}), make_header(resumed_at_step=150)
    records = [bad, *steps(1, 160), good, *steps(150, 200)]
    assert of(judge([*records, bad, *steps(140, 200)]), "LINT").active
    assert not of(
        judge([*records, good | {"resumed_at_step": 140}, *steps(140, 200)]), "LINT"
    ).active


def test_ranks_are_those_of_the_latest_header(judge: Make, steps: Make, make_header: Make) -> None:
    skewed = lambda n: [900, 880, 400, 400, 380, 376, 380, 380]  # noqa: E731
    one, four = make_header(), make_header(expert_parallel_size=4)

    def overload(before: Any, after: Any) -> Any:
        records = [before, *steps(1, 300, skewed), after | {"resumed_at_step": 301}]
        return of(judge([*records, *steps(301, 600, skewed)]), "OVERLOAD")

    assert overload(four, one).recovered_at == 301
    found = overload(one, four)
    assert (found.onset, found.active, found.facts["ranks"]) == (301, True, 4.0)


def test_the_profile_of_a_later_header_decides_which_rules_speak(
    judge: Make, steps: Make, make_header: Make
) -> None:
    spiking = [make_header(), *steps(1, 200, grad_norm=lambda n: 1e3 if n >= 180 else 1.0)]
    evaluated = [make_header(profile="eval"), *steps(201, 400, grad_norm=lambda n: 1e3)]
    assert of(judge(spiking), "GRADSPIKE").active
    assert of(judge([*spiking, *evaluated]), "GRADSPIKE").recovered_at == 201


def test_a_resume_does_not_make_damage_the_reference_of_a_fine_tuning(
    judge: Make, steps: Make, make_header: Make, balanced: Make
) -> None:
    dying = lambda n: without_expert(balanced(), 3) if n >= 200 else balanced()  # noqa: E731
    header = make_header(profile="finetune")
    records = [header, *steps(1, 500, dying), header | {"resumed_at_step": 401}]
    found = of(judge([*records, *steps(401, 700, dying)]), "DEAD")
    assert (found.active, found.facts["experts"]) == (True, (3,))
    starving = lambda n: [560, 540, 555, 565, 622, 624, 620, 10] if n >= 200 else balanced()  # noqa: E731
    records = [header, *steps(1, 500, starving), header | {"resumed_at_step": 401}]
    found = of(judge([*records, *steps(401, 700, starving)]), "STARVED")
    assert (found.active, found.facts["reference"]) == (True, 0.0)


def test_a_restart_from_the_first_step_takes_a_new_reference(
    judge: Make, steps: Make, make_header: Make, balanced: Make
) -> None:
    header = make_header(profile="finetune")
    narrow = lambda n: without_expert(balanced(), 3)  # noqa: E731
    again = header | {"resumed_at_step": 1}
    diagnosis = judge([header, *steps(1, 300), again, *steps(1, 300, narrow)])
    assert [e.rule for e in diagnosis.episodes if e.rule in ("DEAD", "STARVED")] == []


def test_what_is_ignored_from_a_restore_on_is_no_longer_told(
    judge: Make, steps: Make, make_header: Make
) -> None:
    diagnosis = judge([make_header(), *steps(1, 200, lambda n: COLLAPSED)])
    assert [episode.rule for episode in diagnosis.episodes] == ["COLLAPSE"]
    ignoring = Criteria(ignore=frozenset({"COLLAPSE"}))
    assert restore(save(diagnosis), diagnosis.run, ignoring).episodes == []


def test_a_state_from_before_the_age_of_dead_experts_was_kept_is_restored(
    judge: Make, steps: Make, make_header: Make, balanced: Make
) -> None:
    dying = lambda n: without_expert(balanced(), 3) if n >= 200 else balanced()  # noqa: E731
    diagnosis = judge([make_header(), *steps(1, 250, dying)])
    state = msgspec.msgpack.decode(save(diagnosis))
    memory = msgspec.msgpack.decode(state["memories"]["DEAD"], strict=False)
    assert memory.pop("windows")
    state["memories"]["DEAD"] = msgspec.msgpack.encode(memory)
    restored = restore(msgspec.msgpack.encode(state), diagnosis.run)
    known = next(rule for rule in restored.rules if rule.name == "DEAD").memory
    assert (known.dead[1], known.windows) == ({3: memory["dead"][1][3]}, {})
