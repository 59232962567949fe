"""Swings of the load: what recurs is found with its period, what only changes is not."""

import functools
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from microscope_tui import measures
from microscope_tui.diagnosis import report
from microscope_tui.diagnosis.context import Context
from microscope_tui.diagnosis.engine import Diagnosis, restore, save
from microscope_tui.diagnosis.episodes import Severity
from microscope_tui.diagnosis.rules.oscillation import (
    Oscillation,
    recurring,
    signs,
    spreads,
    to_and_fro,
)
from microscope_tui.runlog import RouterInfo, RouterSummary, RunRecord, StepRecord
from microscope_tui.scenarios import draw_counts, jittered
from tests.conftest import header
from tests.diagnosis.conftest import judge, steps

STEPS = 64


def rotating(n: int, experts: int, groups: int, hold: int = 1) -> list[int]:
    """One group after the other gets everything, ``hold`` steps each."""
    up = n // hold % groups
    each = experts // groups
    share = 4096 // each
    return [share if e % groups == up else 0 for e in range(experts)]


def looked_at(rows: Sequence[list[int]], top_k: int) -> tuple[int, float, float]:
    router = RouterInfo("L1", 1, len(rows[0]), top_k)
    return Oscillation(Context(RunRecord("r", (router,))))._swing(0, list(rows))


@pytest.mark.parametrize(
    ("experts", "groups", "hold", "top_k"),
    [(12, 3, 1, 2), (12, 3, 5, 2), (8, 4, 1, 2), (64, 5, 3, 8), (64, 8, 4, 8), (256, 7, 1, 8)],
)
def test_groups_that_take_turns_swing_with_their_period(
    experts: int, groups: int, hold: int, top_k: int
) -> None:
    rows = [rotating(n, experts, groups, hold) for n in range(STEPS)]
    assert looked_at(rows, top_k)[0] == groups * hold


@pytest.mark.parametrize(("period", "found"), [(3, 3), (5, 5), (7, 7), (2.5, 5), (3.5, 3)])
def test_a_smooth_swing_of_any_period_is_found(period: float, found: int) -> None:
    rng = random.Random(0)
    rows = []
    for n in range(STEPS):
        turns = [n / period + e / 3 for e in range(12)]
        weights = [math.exp(0.9 * math.cos(2 * math.pi * turn)) for turn in turns]
        rows.append(draw_counts(jittered(weights, 60.0, rng), 1024, 2, rng))
    assert looked_at(rows, 2)[0] == found


def test_three_groups_never_disagree_enough_to_swing_to_and_fro() -> None:
    masks = [signs(loads) for _, loads in spreads([rotating(n, 12, 3) for n in range(STEPS)])]
    assert to_and_fro(masks, STEPS, 0.35) == 0
    assert recurring(masks, STEPS, 0.5) == 3


@pytest.mark.parametrize(
    ("swing", "experts", "found"),
    [(0.21, 4, 2), (0.19, 4, 0), (0.5, 4, 2), (0.5, 2, 0)],  # 2 of 8 are too few
)
def test_a_swing_is_wide_and_of_many_experts(swing: float, experts: int, found: int) -> None:
    def row(n: int) -> list[int]:
        change = round(512 * swing)
        ups = [change if (e + n) % 2 else -change for e in range(experts)]
        return [512 + up for up in ups] + [512] * (8 - experts)

    assert looked_at([row(n) for n in range(STEPS)], 2)[0] == found


@pytest.mark.parametrize("rhythm", [(1, 2), (1, 1, 2), (3, 1, 2, 1, 1)])
def test_tokens_that_alternate_are_not_a_swing_of_the_load(rhythm: tuple[int, ...]) -> None:
    uneven = [900, 800, 600, 500, 400, 350, 300, 246]
    rows = [[rhythm[n % len(rhythm)] * count for count in uneven] for n in range(STEPS)]
    assert looked_at(rows, 2)[0] == 0


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([(4, 1), (8, 2), (64, 8)]), st.floats(0.0, 0.98))
def test_loads_that_wander_are_no_swing(seed: int, shape: tuple[int, int], memory: float) -> None:
    rng, (experts, top_k) = random.Random(seed), shape
    logs = [rng.gauss(0, 0.5) for _ in range(experts)]
    rows = []
    for _ in range(STEPS):
        news = math.sqrt(1 - memory * memory) * 0.5
        logs = [memory * log + news * rng.gauss(0, 1) for log in logs]
        rows.append(draw_counts([math.exp(log) for log in logs], 1024, top_k, rng))
    assert looked_at(rows, top_k)[0] == 0


def swing(course: Callable[[int, int], float], last: int = 400, skew: float = 0.0) -> float:
    """What is known after ``last`` steps in which expert ``e`` has this multiple of its share."""
    rng, routers = random.Random(0), (RouterInfo("L1", 1, 16, 2),)
    still = [math.exp(skew * rng.gauss(0, 1)) for _ in range(16)]
    diagnosis = Diagnosis(RunRecord("r", routers, balance={"method": "bias"}, planned_steps=400))
    for n in range(1, last + 1):
        row = draw_counts([w * course(n, e) for e, w in enumerate(still)], 8192, 2, rng)
        router = RouterSummary(**measures.summarise([row]))
        diagnosis.observe(StepRecord(n, tokens=8192.0, router=router), lambda _, row=row: row)
    again = restore(save(diagnosis), diagnosis.run)
    rule = again.rules["OSCILLATION"]
    return rule.swing()


def sine(amplitude: float, period: float, groups: int = 2) -> Callable[[int, int], float]:
    return lambda n, e: 1 + amplitude * math.cos(math.tau * (n / period + e % groups / groups))


@pytest.mark.parametrize("skew", [0.0, 0.3])
@pytest.mark.parametrize(("period", "groups"), [(4, 2), (7, 3), (11, 16), (24, 2)])
@pytest.mark.parametrize(("amplitude", "room"), [(0.05, "all"), (0.15, "some"), (0.3, "none")])
def test_a_rate_is_raised_within_the_room_that_the_largest_swing_leaves(
    amplitude: float, room: str, period: float, groups: int, skew: float
) -> None:
    found = swing(sine(amplitude, period, groups), skew=skew)
    assert room == ("all" if found <= 0.1 else "some" if found <= 0.2 else "none")


@pytest.mark.parametrize(
    ("course", "last", "skew"),
    [
        (sine(0.3, 24), 0, 0.0),  # nothing is known
        (lambda n, e: 1.0, 400, 0.5),  # uneven, and still
        (lambda n, e: math.exp(min(6.0, max(0.0, (n - 150) / 20)) * (e < 2)), 400, 0.3),  # falling
        (lambda n, e: 2.0 if n % 200 < 40 and e < 6 else 1.0, 400, 0.3),  # data in blocks
    ],
)
def test_a_load_that_does_not_swing_leaves_all_room(course: Any, last: int, skew: float) -> None:
    assert swing(course, last, skew) <= 0.1


@functools.cache
def trained(
    rate: float,
    sources: int = 1,
    *,
    pull: float = 0.1,
    every: int = 1,
    logs: str = "routed with",
    said: float | None = None,
) -> Diagnosis:
    """A router of 16 experts that chooses by score + bias, and the sign update of its bias.

    Each source of the data, one step after the other, has its own favourites: ``pull``.
    """
    rng, routers = random.Random(sources), (RouterInfo("L1", 1, 16, 2),)
    balance = {"method": "bias", "bias_update_rate": said or rate, "update": "sign"}
    diagnosis = Diagnosis(RunRecord("r", routers, balance=balance, planned_steps=400))
    tastes = [[rng.gauss(0.5, pull) for _ in range(16)] for _ in range(sources)]
    bias, seen = [0.0] * 16, [0] * 16
    for n in range(1, 261):
        mean, row = [a + b for a, b in zip(tastes[n % sources], bias, strict=True)], [0] * 16
        for _ in range(200):
            scores = [rng.gauss(m, 0.1) for m in mean]
            for expert in sorted(range(16), key=scores.__getitem__)[-2:]:
                row[expert] += 1
        before, seen = bias, [a + b for a, b in zip(seen, row, strict=True)]
        if n % every == 0:
            over = [total > sum(seen) / 16 for total in seen]
            bias = [b - rate if high else b + rate for b, high in zip(bias, over, strict=True)]
            seen = [0] * 16
        logged = {"routed with": before, "after": bias}.get(logs)
        router = RouterSummary(**measures.summarise([row]))
        step = StepRecord(n, tokens=200.0, router=router)
        diagnosis.observe(step, lambda _, row=row: row, lambda _, logged=logged: logged)
    return diagnosis


def told(diagnosis: Diagnosis) -> tuple[Severity, str, str]:
    ((finding, advice),) = [(f, a) for f, a in report(diagnosis) if f.rule == "OSCILLATION"]
    return finding.severity, advice.cause, advice.next


@pytest.mark.parametrize(
    ("rate", "every", "logs"),
    [(0.1, 1, "nothing"), (0.3, 1, "routed with"), (0.03, 4, "routed with"), (0.03, 4, "after")],
)
def test_a_bias_that_overshoots_causes_its_swing(rate: float, every: int, logs: str) -> None:
    severity, cause, remedy = told(trained(rate, every=every, logs=logs))
    assert (severity, cause) == (Severity.WARN, "bias_update_rate too high")
    assert remedy.startswith(f"Lower bias_update_rate from {rate:g} to 0.0")


@pytest.mark.parametrize(
    ("sources", "rate", "logs"),
    [
        *((2, 0.001, "routed with"), (3, 0.001, "after"), (7, 0, "after")),
        *((12, 0.001, "routed with"), (7, 0.01, "after")),
    ],
)
def test_a_logged_bias_that_the_load_does_not_follow_is_not_blamed_for_alternating_data(
    sources: int, rate: float, logs: str
) -> None:
    severity, cause, remedy = told(trained(rate, sources, logs=logs))
    assert severity is Severity.INFO
    assert cause == f"data or micro-batches alternate with period {sources}"
    assert "update" not in remedy


@pytest.mark.parametrize(("pull", "severity"), [(0.06, Severity.INFO), (0.1, Severity.WARN)])
def test_without_a_bias_an_uneven_swing_has_both_readings(pull: float, severity: Severity) -> None:
    found, cause, remedy = told(trained(0.001, 2, pull=pull, logs="nothing"))
    assert (found, cause) == (severity, "data or micro-batches alternate with period 2")
    assert ("average the load" in remedy) == (severity is Severity.WARN)
    assert "bias_update_rate" not in remedy


def test_alternating_data_leaves_all_the_room_to_raise_a_rate() -> None:
    assert trained(0.001, 2).known.swing == 0.0
    assert trained(0.3).known.swing > 0.3


def test_a_bias_that_moves_faster_than_the_header_says_is_named_and_no_rate_is_lowered() -> None:
    _, cause, remedy = told(trained(0.1, said=0.002))
    assert cause == "bias too fast in L1"
    assert remedy == "Find what moves the bias by 0.1 a step: the header has another rate."


def test_what_starves_beside_alternating_data_is_not_blamed_on_the_rate() -> None:
    advice = {f.rule: a for f, a in report(trained(0.001, 3, pull=0.3))}
    assert {a.cause for a in advice.values()} == {"data or micro-batches alternate with period 3"}
    assert "raise" not in advice["DEAD"].next


def test_counts_that_do_not_fit_are_counts_of_consecutive_steps_all_the_same() -> None:
    diagnosis = judge([header(), *(record | {"tokens": 1024} for record in steps(1, 120))])
    assert {e.rule for e in diagnosis.episodes} == {"METER"}
    assert "OSCILLATION" not in diagnosis.blind_spots()
