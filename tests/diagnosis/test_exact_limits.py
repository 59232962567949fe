"""Every limit from both sides: silence just inside it, and exact dates just beyond it.

The router in the middle takes the given readings; those of the other two stay usual. The log has no
counts, so a reading is compared with its limit and with nothing else.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest

from microscope_tui.diagnosis import WHOLE_RUN, Diagnosis, Episode, Severity
from microscope_tui.runlog import RouterInfo, RouterSummary, RunRecord, StepRecord

INFO, WARN, CRITICAL, ERROR = Severity
USUAL = {"effective_experts": 7.9, "max_load": 1.5, "starved_experts": 0.0}
NAN, LN_8 = math.nan, math.log(8)
Course = Callable[[int], float]


def found(rule: str, courses: Any, last: int, experts: int = 8, **run: Any) -> list[Episode]:
    """The episodes of a rule after ``last`` steps whose readings take these courses.

    ``norm`` is the gradient norm of the whole model, ``bias`` the spread of the selection bias.
    """
    routers = tuple(RouterInfo(f"L{i}", i, experts, 2) for i in (1, 2, 3))
    known = {"balance": {"method": "bias"}, "planned_steps": 500, "counts": "none"}
    diagnosis = Diagnosis(RunRecord("r", routers, **known | run))
    of_routers = {name: course for name, course in courses.items() if name not in ("norm", "bias")}
    usual = USUAL | {name: course(0) for name, course in of_routers.items()}
    for step in range(1, last + 1):
        readings = {name: [value] * 3 for name, value in usual.items()}
        for name, course in of_routers.items():
            readings[name][1] = course(step)
        norm = courses["norm"](step) if "norm" in courses else 1.0
        spread = courses["bias"](step) if "bias" in courses else 0.0
        router = RouterSummary(**readings)
        record = StepRecord(step, loss=2.0, tokens=2048.0, grad_norm=norm, router=router)
        diagnosis.observe(record, lambda _: None, lambda i, s=spread: [0.0, s if i == 1 else 0.0])
    return [episode for episode in diagnosis.episodes if episode.rule == rule]


def between(first: int, last: int, value: float, usual: float, after: float = NAN) -> Course:
    """``value`` in these steps, ``usual`` before them, ``after`` (or ``usual``) after them."""
    rest = usual if after != after else after
    return lambda step: usual if step < first else value if step <= last else rest


@pytest.mark.parametrize(
    ("rule", "name", "usual", "limit", "margin", "severity", "dates"),
    [
        ("METER", "max_load", 1.5, (4.07, 4.09), (4.09, 1.5), ERROR, (2, 3)),
        ("DROPS", "drop_rate", 0.001, (0.05, 0.0501), (0.025, 0.0249), WARN, (22, 50)),
        ("DROPS", "drop_rate", 0.001, (0.2, 0.2001), (0.025, 0.0249), CRITICAL, (22, 50)),
        ("MISMATCH", "disagreement", 0.06, (0.1, 0.1001), (0.0751, 0.0749), WARN, (8, 20)),
        ("MISMATCH", "disagreement", 0.04, (0.08, 0.0801), (0.0601, 0.0599), WARN, (8, 20)),
        ("MISMATCH", "disagreement", 0.005, (0.02, 0.0201), (0.0151, 0.0149), WARN, (8, 20)),
        ("LOGITS", "z_loss", 4.0, (12.0, 12.01), (6.01, 6.0), WARN, (8, 50)),
        ("LOGITS", "z_loss", 4.0, (40.0, 40.1), (6.01, 6.0), CRITICAL, (8, 50)),
        ("LOGITS", "z_loss", 0.2, (0.99, 1.0), (0.34, 0.3), WARN, (8, 50)),
        ("LOGITS", "max_logit", 20.0, (64.0, 64.1), (49.3, 49.2), WARN, (8, 50)),
        ("GRADSPIKE", "norm", 1.0, (10.0, 10.01), (3.01, 3.0), WARN, (8, 50)),
        ("OVERLOAD", "max_load", 1.5, (3.5, 3.51), (2.93, 2.92), WARN, (22, 50)),
        ("OVERLOAD", "max_load", 1.9, (3.69, 3.71), (3.08, 3.07), WARN, (22, 50)),
        ("HOT_EXPERT", "max_load", 1.5, (3.2, 3.21), (2.8, 2.79), INFO, (22, 50)),
        ("COLLAPSE", "effective_experts", 7.9, (4.11, 4.09), (4.69, 4.71), WARN, (26, 60)),
        ("COLLAPSE", "effective_experts", 7.9, (2.91, 2.89), (4.69, 4.71), CRITICAL, (26, 60)),
        ("STARVED", "starved_experts", 0.0, (1.0, 2.0), (1.0, 0.0), WARN, (44, 100)),
    ],
)
def test_a_value_is_reported_beyond_its_limit_and_over_once_it_is_clear_of_it(
    rule: str, name: str, usual: float, limit: Any, margin: Any, severity: Severity, dates: Any
) -> None:
    (inside, beyond), (kept, clear), (delay, leave) = limit, margin, dates

    def run(value: float, after: float, last: int = 269) -> list[Episode]:
        courses = {name: between(200, 269, value, usual, after)}
        experts = 10 if rule == "STARVED" else 8
        episodes = found(rule, courses, last, experts, expert_parallel_size=2, dtype="bf16")
        return [e for e in episodes if e.severity >= severity or not e.active]

    assert run(inside, usual) == []
    (episode,) = run(beyond, usual)
    where = WHOLE_RUN if name == "norm" else 1
    assert (episode.router_index, episode.onset, episode.alarm) == (where, 200, 200 + delay)
    assert [e.active for e in run(beyond, kept, 269 + leave)] == [True]
    assert [e.active for e in run(beyond, clear, 268 + leave)] == [True]
    assert [e.recovered_at for e in run(beyond, clear, 269 + leave)] == [270]


@pytest.mark.parametrize(
    ("norm", "steps", "expected"),
    [
        *((50.0, 1, []), (50.1, 1, [(INFO, 200)]), (50.1, 8, [(INFO, 200)])),
        *((50.1, 9, [(WARN, 208)]), (NAN, 2, [(INFO, 200)]), (NAN, 3, [(WARN, 202)])),
        *((math.inf, 8, [(WARN, 202)]), (math.inf, 9, [(CRITICAL, 202)])),
    ],
)
def test_a_gradient_once_far_too_large_is_information_and_a_warning_if_it_stays_so(
    norm: float, steps: int, expected: list[Any]
) -> None:
    episodes = found("GRADSPIKE", {"norm": between(200, 199 + steps, norm, 1.0)}, 260)
    assert [(e.severity, e.alarm) for e in episodes] == expected
    in_warm_up = found("GRADSPIKE", {"norm": between(80, 79 + steps, norm, 1.0)}, 99)
    assert in_warm_up == []


@pytest.mark.parametrize(("z_loss_from", "severity"), [(241, CRITICAL), (242, INFO)])
def test_a_spike_with_an_explosion_is_critical(z_loss_from: int, severity: Severity) -> None:
    courses = {"norm": between(200, 200, 60.0, 1.0), "z_loss": between(z_loss_from, 300, 20.0, 4.0)}
    (spike,) = found("GRADSPIKE", courses, 270)
    assert (spike.severity, spike.recovered_at) == (severity, 201)


@pytest.mark.parametrize(
    ("value", "last", "after", "reported"),
    [
        (6.41, 209, 7.9, False),  # by less than .25
        (6.39, 209, 7.9, True),
        (6.39, 200, 7.9, False),  # a single step
        (6.39, 201, 7.9, True),
        (6.39, 250, 7.9, True),
        (6.39, 251, 7.9, False),  # it lasts
        (6.39, 219, 7.29, False),  # it is not back
        (6.39, 219, 7.31, True),
    ],
)
def test_a_shock_is_a_fall_that_is_back_within_50_steps(
    value: float, last: int, after: float, reported: bool
) -> None:
    courses = {"effective_experts": between(200, last, value, 7.9, after)}
    dates = [(e.onset, e.last, e.alarm, e.recovered_at) for e in found("SHOCK", courses, 300)]
    assert dates == ([(200, last, last + 1, last + 1)] if reported else [])


@pytest.mark.parametrize(
    ("share", "readings", "expected"),
    [
        (0.969, {}, []),
        (0.971, {}, [(INFO, 560, 649)]),
        (0.971, {"grad_norm": 1.1e-6}, [(INFO, 560, 649)]),
        (0.971, {"grad_norm": 0.9e-6}, [(WARN, 560, 649)]),
        (0.971, {"grad_norm": 0.9e-4}, [(INFO, 560, 649)]),
        (0.971, {"grad_norm": 1.1e-4}, []),
        (0.971, {"selected_mass": 0.299}, [(INFO, 560, 649)]),
        (0.971, {"selected_mass": 0.301}, []),
    ],
)
def test_an_unlearned_router_has_no_gradient_and_prefers_no_expert(
    share: float, readings: dict[str, float], expected: list[Any]
) -> None:
    courses = {name: between(1, 700, value, 0.5) for name, value in readings.items()}
    courses["entropy"] = between(560, 700, share * LN_8, 0.5 * LN_8)
    episodes = found("UNIFORM", courses, 660)
    assert [(e.severity, e.onset, e.alarm) for e in episodes] == expected


@pytest.mark.parametrize(("planned", "alarm"), [(500, 590), (2000, 690)])
def test_a_router_has_500_steps_or_30_percent_of_a_plan_to_learn(planned: int, alarm: int) -> None:
    courses = {"entropy": between(1, 999, 0.99 * LN_8, 0.5)}
    (episode,) = found("UNIFORM", courses, 700, planned_steps=planned)
    assert (episode.onset, episode.alarm) == (1, alarm)


@pytest.mark.parametrize(
    ("slope", "c", "rise", "reported"),
    [
        (0.00101, 0.6, 0.0, True),
        (0.00099, 0.6, 0.0, False),  # slower than half of the fastest
        (0.00101, 0.79, 0.0, True),
        (0.00101, 0.81, 0.0, False),  # even enough
        (0.00101, 0.6, 0.04, True),
        (0.00101, 0.6, 0.05, False),  # the load follows
    ],
)
def test_a_runaway_bias_is_fast_and_without_effect(
    slope: float, c: float, rise: float, reported: bool
) -> None:
    courses: dict[str, Course] = {
        "bias": lambda step: slope * step,
        "effective_experts": lambda step: 2 + 6 * (c + rise * step / 576),
    }
    balance = {"method": "bias", "bias_update_rate": 0.001}
    assert found("BIAS_RUNAWAY", courses, 575, balance=balance) == []
    episodes = found("BIAS_RUNAWAY", courses, 576, balance=balance)  # 24 points, 25 steps apart
    assert [(e.onset, e.alarm, e.router_index) for e in episodes] == [(76, 576, 1)] * reported


@pytest.mark.parametrize(
    ("start", "end", "reported"),
    [
        (0.69, 0.57, False),  # it lost less than a fifth of itself
        (0.69, 0.50, True),
        (0.95, 0.71, False),  # experts that specialise settle there
        (0.95, 0.63, True),
    ],
)
def test_a_slide_that_is_deep_and_low_is_reported(start: float, end: float, reported: bool) -> None:
    courses = {"effective_experts": lambda n: 2 + 6 * max(end, start - 0.0025 * max(0, n - 200))}
    assert bool(found("ERODING", courses, 400)) == reported


@pytest.mark.parametrize(
    ("course", "last", "plan", "alarm"),
    [
        (between(1, 90, 2.29, 7.9), 90, 500, 45),  # a total collapse is urgent
        (between(1, 90, 2.29, 7.9), 44, 500, None),
        (between(1, 90, 2.31, 7.9), 90, 500, None),
        (between(1, 50, 6.81, 6.81, 3.0), 120, 100_000, 77),  # it was even for 50 steps
        (between(1, 49, 6.81, 6.81, 3.0), 120, 100_000, None),
        (between(1, 50, 6.79, 6.79, 3.0), 120, 100_000, None),
    ],
)
def test_a_collapse_in_the_warm_up_is_total_or_a_fall_from_an_even_load(
    course: Course, last: int, plan: int, alarm: int | None
) -> None:
    episodes = found("COLLAPSE", {"effective_experts": course}, last, planned_steps=plan)
    assert [e.alarm for e in episodes] == ([alarm] if alarm else [])


@pytest.mark.parametrize(
    ("usual", "value", "severity"),
    [
        (4.4, 3.69, None),  # c .40: a warning needs .28
        (4.4, 3.67, WARN),
        (3.2, 2.88, WARN),  # c .20: critical is below .14
        (3.2, 2.83, CRITICAL),
        (2.88, 2.88, CRITICAL),  # collapsed from the start: no reference
    ],
)
def test_a_fine_tuning_is_compared_with_its_first_steps(
    usual: float, value: float, severity: Severity | None
) -> None:
    courses = {"effective_experts": between(200, 300, value, usual)}
    episodes = found("COLLAPSE", courses, 260, profile="finetune")
    episodes = [e for e in episodes if e.router_index == 1]
    assert [e.severity for e in episodes] == ([severity] if severity else [])


@pytest.mark.parametrize(("starved", "reported"), [(2.0, False), (3.0, True)])
def test_without_counts_one_starved_expert_of_a_fine_tuning_may_be_close_to_a_tenth(
    starved: float, reported: bool
) -> None:
    courses = {"starved_experts": between(200, 300, starved, 0.0)}
    assert bool(found("STARVED", courses, 290, 10, profile="finetune")) == reported


def test_what_starves_in_a_collapsed_router_is_not_that_of_an_earlier_long_tail() -> None:
    courses: dict[str, Course] = {
        "starved_experts": lambda n: 0.0 if n < 150 else 3.0 if n < 400 else 8.0,
        "effective_experts": between(300, 500, 2.0, 9.0),
    }
    (tail,) = found("STARVED", courses, 450, 10)
    assert (tail.onset, tail.value) == (150, 0.3)


@pytest.mark.parametrize(
    ("again", "expected"), [(330, [(200, 0, None)]), (331, [(200, 0, 230), (331, 1, None)])]
)
def test_what_returns_within_100_steps_had_not_recovered(again: int, expected: list[Any]) -> None:
    courses = {"drop_rate": lambda n: 0.1 if 200 <= n < 230 or n >= again else 0.0}
    episodes = found("DROPS", courses, 400)
    assert [(e.onset, e.recurrence, e.recovered_at) for e in episodes] == expected


@pytest.mark.parametrize(("after", "present"), [(0.04, None), (0.01, (True, 40))])
def test_a_value_inside_its_limit_counts_towards_the_end_only_well_inside(
    after: float, present: Any
) -> None:
    (episode,) = found("DROPS", {"drop_rate": between(200, 229, 0.1, 0.0, after)}, 239)
    now = episode.now
    assert (now and (now.inside, now.left)) == present


def test_a_flickering_layer_keeps_20_episodes_and_counts_all() -> None:
    courses = {"effective_experts": lambda n: 6.3 if n > 150 and n % 12 < 3 else 7.9}
    episodes = found("SHOCK", courses, 150 + 12 * 25)
    assert len(episodes) == 20
    assert episodes[-1].recurrence >= 23


def test_an_uneven_layer_has_no_hot_expert() -> None:
    load = {"max_load": between(150, 300, 3.5, 1.5)}
    assert found("HOT_EXPERT", load, 200)
    uneven = {"effective_experts": between(150, 300, 4.0, 7.9)}
    assert found("HOT_EXPERT", load | uneven, 200) == []
