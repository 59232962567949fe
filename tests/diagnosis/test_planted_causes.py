"""One cause, one remedy: planted causes are named first, and no report turns a knob both ways."""

import math
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings, strategies as st

from benchmarks.scenarios import SCENARIOS
from microscope_tui.diagnosis import Advice, Criteria, Finding, report
from microscope_tui.diagnosis.causes import Changes
from microscope_tui.runlog import RunReader
from microscope_tui.scenarios import Scenario, Shape, lines
from microscope_tui.scenarios.course import Course, steps
from microscope_tui.scenarios.popularity import constant
from microscope_tui.scenarios.run import Run, Truth
from microscope_tui.watch.judge import Judge

ACTS = {
    "lint-aux-not-applied": ("set output_router_logits to true", "aux_weight"),
    "lint-pooled-aux": ("per layer", "raise|lower"),
    "lint-top1-normalised": ("norm_top_k", "raise|lower|aux_weight"),
    "bias-wrong-sign": ("flip the sign", "raise|lower"),
    "divergence": ("lower the learning rate", "bias_update_rate|aux_weight"),
    "cause-divergence": ("lower the learning rate", "bias_update_rate|aux_weight"),
    "cause-unbalanced": ("switch on", "raise|lower"),
    "cause-too-slow": ("raise bias_update_rate", "lower"),
    "cause-too-fast": ("sequence-wise auxiliary loss", "raise"),
    "cause-frozen": ("unfreeze", "raise|switch on|bias|aux"),
    "cause-bias-lost": ("bias", "raise|lower"),
    "cause-restart": ("what was loaded", "lower"),
    "cause-rank": ("its own part of the checkpoint", "raise|lower|(?<!not )re-initialise"),
    "cause-data": ("data", "lower"),
    "cause-capacity": ("raise capacity_factor", "bias_update_rate"),
    "cause-stale-rows": ("row|buffer|count", "raise|lower"),
    "cause-wrong-sums": ("count", "raise|lower"),
}
"""Scenario → what its remedy says, and what it must not say: a knob that cannot act."""


def reported(scenario: Scenario, shape: Shape, seed: int = 0) -> list[tuple[Finding, Advice]]:
    judge, reader = Judge("run", Criteria()), RunReader("run")
    for line in lines(scenario, shape, seed)[1]:
        for entry in reader.feed(line):
            judge.take(entry)
    judge.diagnosis.conclude()
    return report(judge.diagnosis)


@pytest.mark.parametrize("name", ACTS)
def test_the_first_line_names_the_planted_cause_and_a_remedy_that_acts(name: str) -> None:
    scenario = SCENARIOS[name]
    wide = {"num_experts": 32, "top_k": 4} if name == "cause-rank" else {}
    layers = 8 if name == "lint-pooled-aux" else 4
    shape = Shape(routers=layers, tokens=2048, steps=scenario.steps // 2, **wide)
    truth, _ = lines(scenario, shape, 1)
    _, advice = reported(scenario, shape, 1)[0]
    assert truth.cause in f"{advice.cause} {advice.verdict}".lower()
    acts, cannot_act = ACTS[name]
    assert re.search(acts, advice.next.lower())
    assert not re.search(cannot_act, advice.next.lower())


@pytest.mark.parametrize("onset", range(200, 208))
def test_a_jump_of_the_loss_is_dated_to_its_step_or_a_little_before(onset: int) -> None:
    changes, rng = Changes(), random.Random(onset)
    for step in range(1, 301):
        changes.add(step, rng.gauss(2.8 if step >= onset else 2.0, 0.02))
    ((step, words),) = changes.found
    assert onset - 4 <= step <= onset
    assert words.startswith("the loss jumps from ")


SICK = ("collapse", "slow", "dead", "starved", "swing", "runaway", "overflow", "divergence")
sick = st.sampled_from(SICK)
BALANCE = {"bias": {"bias_update_rate": 0.03}, "aux": {"aux_weight": 0.01}}
ONSET = 110
Row = list[float]


def weights(kind: str, row: Sequence[float], step: int, period: int) -> Row:
    """The popularity of eight experts of a layer that is sick from ``ONSET`` on."""
    since = max(0, step - ONSET)
    changed = list(row)
    if kind in ("collapse", "slow", "divergence"):
        pull = math.exp(min(12.0, since / (40 if kind == "slow" else 8)))
        changed[2], changed[5] = pull * row[2], pull * row[5]
    elif kind == "dead":
        changed[4] = row[4] * (1e-15 if since else 1.0)
    elif kind == "starved":
        changed[1] = row[1] * max(0.04, math.exp(-since / 20))
    elif kind == "swing" and since:
        turn = 2 * math.pi / period
        changed = [w * math.exp(0.9 * math.cos(turn * (step + e))) for e, w in enumerate(row)]
    elif kind == "runaway" and since:
        changed = [w * (6.0 if e < 3 else 1.0) for e, w in enumerate(row)]
    elif kind == "overflow" and since:
        changed[3] = 6.0 * row[3]
    return changed


def pair(first: str, second: str, method: str, period: int = 2) -> Scenario:
    sick = {1: first, 2: second}

    def build(shape: Shape, rng: random.Random) -> Run:
        base, rate = constant(shape, 0.2, rng), BALANCE[method].get("bias_update_rate")
        capacity = 1.5 if "overflow" in sick.values() else None
        blown = [router for router, kind in sick.items() if kind == "divergence"]

        def grown(step: int) -> float:
            return math.exp(min(5.0, max(0, step - ONSET) / 20)) if blown else 1.0

        course = Course(
            popularity=lambda r, step: weights(sick.get(r, ""), base(r, step), step, period),
            z_scale=lambda r, step: grown(step) if r in blown else 1.0,
            grad_scale=lambda step: grown(step),
            bias_update_rate=rate,
            unheeded=lambda r, step: r in sick and step >= ONSET,
        )
        header = {"balance": {"method": method} | BALANCE[method]}
        shape = replace(shape, capacity_factor=capacity)
        return Run(shape=shape, truth=Truth(), header=header, steps=steps(shape, rng, course))

    return Scenario(f"{first} and {second}", build)


def turned(texts: Iterable[str], balance: str) -> dict[str, set[str]]:
    """Setting → the directions in which the texts turn it; "it" is that of the balancing."""
    found: dict[str, set[str]] = {}
    for text in texts:
        for verb, knob in re.findall(r"\b(raise|lower) (?:the )?(\w+)", text.lower()):
            found.setdefault(balance if knob == "it" else knob, set()).add(verb)
    return found


@settings(max_examples=10)
@given(sick, sick, st.sampled_from(list(BALANCE)), st.sampled_from((2, 3, 5, 24)))
def test_no_setting_is_turned_both_ways(first: str, second: str, method: str, period: int) -> None:
    shape = Shape(routers=3, tokens=2048, steps=640)
    found = reported(pair(first, second, method, period), shape)
    knobs = turned((advice.next for _, advice in found), *BALANCE[method])
    assert all(len(verbs) == 1 for verbs in knobs.values()), knobs


def stopping(
    experts: int = 6, layers: int = 4, fade: float = 0.0, sigma: float = 0.15, apart: int = 0
) -> Scenario:
    """Some of 32 experts of some layers get no more tokens from step 301 on."""

    def build(shape: Shape, rng: random.Random) -> Run:
        base = constant(shape, sigma, rng)

        def popularity(router: int, step: int) -> Sequence[float]:
            since = step - 300 - apart * router if router < layers else 0
            left = math.exp(-min(60.0, since / fade)) if fade else 1e-15
            pull = left if since > 0 else 1.0
            return [w * (pull if e < experts else 1.0) for e, w in enumerate(base(router, step))]

        course = Course(popularity=popularity, bias_update_rate=0.001)
        header = {"balance": {"method": "bias", "bias_update_rate": 0.001}}
        return Run(shape=shape, truth=Truth(), header=header, steps=steps(shape, rng, course))

    return Scenario("stopping", build)


WIDE = Shape(routers=4, num_experts=32, top_k=4, tokens=2048, steps=560)


@pytest.mark.parametrize(
    ("changes", "which"), [({}, "all"), ({"layers": 2}, "2 of 4"), ({"experts": 24}, "all")]
)
def test_experts_of_several_layers_that_stop_in_one_step_are_not_for_the_balancing(
    changes: dict[str, int], which: str
) -> None:
    _, advice = reported(stopping(**changes), WIDE)[0]
    title = rf"{which} layers at step 30\d, no restart: data or code changed there"
    assert re.fullmatch(title, advice.cause)
    assert advice.next.startswith("Look at the batches")
    assert not re.search("raise|re-initialise|go back", advice.next)


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": 1},
        {"fade": 30.0},
        {"sigma": 0.7},  # the others are uneven
        {"experts": 28},  # none are left: a collapse
        {"apart": 40},
    ],
)
def test_what_may_be_the_balancing_is_still_for_it(changes: dict[str, float]) -> None:
    _, advice = reported(stopping(**changes), replace(WIDE, steps=680))[0]
    assert advice.cause == "bias update too slow"
