"""A bias update with the wrong sign is found, and one that does nothing; one that is only slow,
late, averaged or too fast is not. The router here is a real one in small: what the bias does to the
load is simulated."""

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from microscope_tui import measures
from microscope_tui.diagnosis import Severity, StepView, report, restore, save
from microscope_tui.diagnosis.bias_sign import SignMemory
from microscope_tui.diagnosis.context import Context
from microscope_tui.diagnosis.rules.lint import Lint
from microscope_tui.runlog import RouterInfo, RouterSummary, RunRecord, StepRecord
from microscope_tui.scenarios import draw_counts
from tests.conftest import header, step as line_of
from tests.diagnosis.conftest import Record, judge, loud

E, K, ROUTERS, TOKENS = 8, 2, 3, 1024
ROUTER = tuple(RouterInfo(f"L{i + 1}", i + 1, E, K) for i in range(ROUTERS))
HEADER = RunRecord("r", ROUTER, balance={"method": "bias", "bias_update_rate": 0.001})
Line = tuple[list[list[int]], list[list[float]]]
UNEVEN = [608, 416, 288, 224, 192, 144, 96, 80]
SPREAD = 0.05
"""Difference of two scores at which one expert is e times as popular as the other."""


@dataclass
class Routers:
    rate: float
    seed: int = 0
    every: int = 1
    memory: float = 0.0
    proportional: bool = False
    logged_after: bool = False
    signs: Sequence[int] = (1,) * ROUTERS
    spread: float = 0.7
    step: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.skill = [[self.rng.gauss(0, self.spread) for _ in range(E)] for _ in self.signs]
        self.bias = [[0.0] * E for _ in self.signs]
        self.mean = [[0.0] * E for _ in self.signs]

    def __next__(self) -> Line:
        self.step += 1
        counts, routed_with = [], [list(row) for row in self.bias]
        parts = zip(self.skill, self.bias, self.mean, self.signs, strict=True)
        for skill, bias, mean, sign in parts:
            logs = [max(-9.0, min(9.0, s + b / SPREAD)) for s, b in zip(skill, bias, strict=True)]
            row = draw_counts([2.718**x for x in logs], TOKENS, K, self.rng)
            counts.append(row)
            for e, n in enumerate(row):
                over = n * E / (TOKENS * K) - 1
                mean[e] = self.memory * mean[e] + (1 - self.memory) * over
                if self.step % self.every == 0:
                    size = mean[e] if self.proportional else (mean[e] > 0) - (mean[e] < 0)
                    bias[e] -= sign * self.rate * size
        return counts, [list(row) for row in self.bias] if self.logged_after else routed_with

    def __iter__(self) -> Iterator[Line]:
        return self


def view(step: int, line: Line, *, with_counts: bool = True) -> StepView:
    counts, biases = line
    effective = [measures.effective_experts(row) for row in counts]
    record = StepRecord(step, tokens=TOKENS, router=RouterSummary(effective_experts=effective))
    if not with_counts:
        return StepView(record, ROUTER, lambda i: None, lambda i: None)
    return StepView(record, ROUTER, lambda i: counts[i], lambda i: biases[i])


def wrong_at(routers: Iterator[Line], steps: int, counts_every: int = 1) -> int | None:
    """The step at which the sign counts as wrong, if it does within these steps."""
    sign, memory = Lint(Context(HEADER)).sign, SignMemory()
    for step in range(1, steps + 1):
        shown = step % counts_every == 0
        sign.observe(view(step, next(routers), with_counts=shown), memory)
        if memory.wrong:
            return step
    return None


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "changes", [{}, {"logged_after": True}, {"memory": 0.9}, {"proportional": True}, {"every": 4}]
)
def test_a_bias_that_feeds_the_busy_experts_is_found(changes: Any, seed: int) -> None:
    assert wrong_at(Routers(-0.001, seed=seed, **changes), 130 * changes.get("every", 1))


def test_it_is_found_where_only_some_lines_have_counts() -> None:
    assert wrong_at(Routers(-0.001), 1500, counts_every=10)


@pytest.mark.parametrize("counts_every", [1, 20])
@pytest.mark.parametrize(
    "settings",
    [
        {"rate": 0.001},
        {"rate": 0.001, "logged_after": True},
        {"rate": 0.05},
        {"rate": 0.05, "logged_after": True},
        {"rate": 0.01, "memory": 0.98},
        {"rate": 0.002, "memory": 0.99},
        {"rate": 0.01, "proportional": True},
        {"rate": 0.1, "proportional": True, "logged_after": True},
        {"rate": 0.02, "every": 10, "memory": 0.9},
        {"rate": 0.1, "every": 7},
    ],
)
def test_the_right_sign_is_never_blamed(settings: dict[str, Any], counts_every: int) -> None:
    steps = 400 if counts_every == 1 and "every" not in settings else 1500
    assert wrong_at(Routers(**settings, seed=counts_every), steps, counts_every) is None


def test_a_bias_that_rests_where_it_once_went_is_not_evidence() -> None:
    def resting() -> Iterator[Line]:
        for step in itertools.count(1):
            bias = [0.01 * (4 - e) * min(1.0, step / 20) + 0.001 * (step + e & 1) for e in range(E)]
            yield [UNEVEN] * ROUTERS, [bias] * ROUTERS

    assert wrong_at(resting(), 400) is None


def test_a_load_that_does_not_grow_with_the_bias_needs_two_and_a_half_times_the_changes() -> None:
    lines = (([UNEVEN] * ROUTERS, [[0.001 * n * (4 - e) for e in range(E)]] * ROUTERS)
             for n in itertools.count())  # fmt: skip
    assert wrong_at(lines, 300) == 251


def swinging(step: int, period: float, lag: int = 0) -> Line:
    """A load that goes round, and the bias that follows it with the right sign, ``lag`` late."""
    turns = [2 * math.pi * (step / period + e / E) for e in range(E)]
    fair = TOKENS * K / E
    counts = [round(fair * (1 + 0.95 * math.cos(turn))) for turn in turns]
    late = 2 * math.pi * lag / period
    return [counts] * ROUTERS, [[-0.05 * math.sin(turn - late) for turn in turns]] * ROUTERS


@pytest.mark.parametrize(
    ("period", "lag", "counts_every"),
    [(10.3, 0, 10), (21.0, 0, 20), (2.05, 0, 2), (6.0, 3, 1), (24.0, 0, 20), (48.0, 12, 1)],
)
def test_a_swing_that_looks_reversed_in_few_lines_is_not_a_wrong_sign(
    period: float, lag: int, counts_every: int
) -> None:
    sign, memory = Lint(Context(HEADER)).sign, SignMemory()
    for step in range(counts_every, 400 * counts_every, counts_every):
        sign.observe(view(step, swinging(step, period, lag)), memory)
    assert memory.outcomes, "it was tested"
    assert not memory.wrong


def test_after_it_was_corrected_and_resumed_it_ends() -> None:
    sign, memory, routers = Lint(Context(HEADER)).sign, SignMemory(), Routers(-0.001)
    for step in range(1, 201):
        sign.observe(view(step, next(routers)), memory)
    assert memory.wrong
    assert not memory.resumed(min(memory.wrong.values())).wrong  # those steps no longer hold
    memory, routers.rate = memory.resumed(201), 0.001
    assert memory.wrong
    for step in range(201, 260):
        sign.observe(view(step, next(routers)), memory)
    assert not memory.wrong


@pytest.mark.parametrize(
    ("balance", "profile", "moves"),
    [
        ({"method": "bias"}, "pretrain", True),
        ({}, "pretrain", True),
        ({"method": "bias", "bias_update_rate": 0.0}, "pretrain", False),
        ({"method": "aux"}, "pretrain", False),
        ({"method": "none"}, "pretrain", False),
        ({"method": "bias"}, "eval", False),
    ],
)
def test_a_fixed_bias_is_not_tested(balance: dict[str, Any], profile: str, moves: bool) -> None:
    run = RunRecord("r", ROUTER, balance=balance, profile=profile)
    assert Lint(Context(run)).bias_moves == moves


def log_of(routers: Routers, steps: int, rate: float = 0.001, **changes: Any) -> list[Record]:
    names = [f"L{i + 1}" for i in range(len(routers.signs))]
    model = {"layers": [*range(len(names))], "layer_names": names, "score_function": "sigmoid"}
    balance = {"method": "bias", "bias_update_rate": rate, "update": "sign"}
    lines = [header(model=model, balance=balance, **changes)]
    for counts, biases in itertools.islice(routers, steps):
        lines.append(line_of(routers.step, counts, TOKENS, expert_bias=biases))
    return lines


def settings(records: list[Record]) -> list[Any]:
    found = [finding for finding, _ in report(judge(records)) if finding.rule == "LINT"]
    return [(f.worst.reason, f.layers, f.severity) for f in found]


@pytest.mark.parametrize("signs", [(1, -1, 1, 1), (-1, 1, 1, -1)])
def test_only_the_layers_with_a_wrong_sign_are_flipped_and_no_rate_is_raised(signs: Any) -> None:
    records = log_of(Routers(0.001, signs=signs, seed=3), 300)
    wrong = tuple(f"L{i + 1}" for i, sign in enumerate(signs) if sign < 0)
    assert settings(records) == [("wrong bias sign", wrong, Severity.WARN)]
    for finding, advice in report(judge(records)):
        assert finding.rule == "LINT" or advice.cause == "bias update with the wrong sign"
        assert advice.next.startswith(f"Flip the sign of the bias update in {', '.join(wrong)}: ")
        assert advice.next.endswith(f"with expert_bias in {', '.join(wrong)} set to zero.")
    assert not loud(judge(log_of(Routers(0.001, signs=(1,) * 4, seed=3), 300))), "the remedy works"


def test_a_router_that_disagrees_with_all_others_needs_a_second_full_trial() -> None:
    two, one = (wrong_at(Routers(0.001, signs=signs), 400) for signs in ((-1, -1, 1), (-1, 1, 1)))
    assert 0 < (two or 0) < 130
    assert 100 <= (one or 0) - (two or 0) < 180


def test_while_a_trial_agrees_no_rate_is_raised() -> None:
    (_, advice), *_ = report(judge(log_of(Routers(0.001, signs=(-1, 1, 1)), 150)))
    assert advice.cause.endswith(", or its sign is wrong")
    assert advice.next.startswith("First check the sign of the bias update in L1, where the bias")


@pytest.mark.parametrize(("named", "even"), [(False, False), (True, False), (True, True)])
def test_a_trial_or_a_resume_with_the_right_sign_clears_a_router(named: bool, even: bool) -> None:
    sign, memory = Lint(Context(HEADER)).sign, SignMemory()
    routers = Routers(0.001, signs=(-1, 1, 1))
    while not (memory.wrong if named else memory.doubted):
        sign.observe(view(routers.step, next(routers)), memory)
    memory, routers.signs = memory.resumed(999) if named else memory, (1, 1, 1)
    if even:
        routers.skill, routers.bias = ([[0.0] * E for _ in ROUTER] for _ in range(2))
    for line in itertools.islice(routers, 100 if named else 300):
        sign.observe(view(routers.step, line), memory)
    assert not memory.wrong


def test_a_router_whose_trial_decided_nothing_is_tried_again_once_it_collapses() -> None:
    sign, memory = Lint(Context(HEADER)).sign, SignMemory(outcomes=dict.fromkeys(range(3), 0))
    tried = []
    for step, line in enumerate(itertools.islice(Routers(-0.001), 400), 1):
        sign.observe(view(step, line), memory)
        tried += [step] * bool(memory.trials)
    assert tried[0] > 40
    assert memory.wrong


STANDS = "bias does not move"
ALL = ("L1", "L2", "L3")


@pytest.mark.parametrize(
    ("how", "until", "rate", "profile", "found"),
    [
        ({"signs": (0, 0, 0)}, 130, 0.001, "pretrain", [(STANDS, ALL, Severity.WARN)]),
        ({"signs": (1, 0, 1)}, 130, 0.001, "pretrain", [(STANDS, ("L2",), Severity.WARN)]),
        ({"signs": (0, 0, 0)}, 118, 0.001, "pretrain", [(STANDS, ALL, Severity.INFO)]),  # too short
        ({"signs": (0, 0, 0), "spread": 0}, 200, 0.001, "pretrain", [(STANDS, ALL, Severity.INFO)]),
        ({"signs": (1, 1, 1)}, 130, 0.001, "pretrain", []),
        ({"signs": (0, 0, 0)}, 130, 0.0, "pretrain", []),
        ({"signs": (0, 0, 0)}, 130, None, "pretrain", []),  # it may be 0
        ({"signs": (0, 0, 0)}, 130, 0.001, "eval", []),
    ],
)
def test_a_bias_that_never_moves_is_a_warning_where_the_load_is_uneven(
    how: Any, until: int, rate: Any, profile: str, found: list[Any]
) -> None:
    assert settings(log_of(Routers(0.001, **how), until, rate, profile=profile)) == found


def test_the_update_that_is_not_called_explains_a_collapse_and_the_rate_stays() -> None:
    records = log_of(Routers(0.0, spread=3.0, signs=(1, 1)), 240)
    (first, advice), *_ = found = report(judge(records))
    assert (first.rule, advice.cause) == ("COLLAPSE", "selection bias does not move")
    assert advice.next == "Call the bias update after the optimizer's step and start again."
    assert not any("aise" in advice.next for _, advice in found)
    (why,) = (advice.why for finding, advice in found if finding.rule == "LINT")
    assert "did not change in 200 steps although the rate is 0.001: the update is not" in why
    records[0]["balance"]["force_collapse"] = "1@9"
    assert not settings(records)


@pytest.mark.parametrize(("rate", "active"), [(0.001, True), (0.0, False)])
def test_a_bias_that_does_not_move_is_in_order_once_the_header_has_a_rate_of_zero(
    rate: float, active: bool
) -> None:
    routers = Routers(0.001, signs=(0, 0, 0))
    records = log_of(routers, 130)
    again = log_of(routers, 140, rate)
    again[0]["resumed_at_step"] = 131
    stands = [e for e in judge(records + again).episodes if e.reason == STANDS]
    assert {e.active for e in stands} == {active}


def test_a_bias_that_moved_and_stands_may_be_held_in_bf16() -> None:
    routers = Routers(0.001, seed=1)
    records = log_of(routers, 150)
    routers.rate = 0.0
    judged = judge(records + log_of(routers, 250)[1:])
    assert not loud(judged), "an even load"
    ((_, advice),) = report(judged)
    assert "or overwritten, or it is held in bf16, where 0.001 is lost, or" in advice.why
    assert save(restore(save(judged), judged.run)) == save(judged)


def test_where_the_load_does_not_follow_the_bias_ten_times_the_rate_is_what_helps() -> None:
    made = [Routers(rate, spread=2.0, seed=1, signs=(1, 1)) for rate in (1e-5, 3e-5, 1e-4)]
    runs = [judge(log_of(routers, 750, routers.rate)) for routers in made]
    (_, advice), *_ = report(runs[0])
    assert advice.next == "Raise bias_update_rate from 1e-05 to 0.0001 and start again."
    assert [any(e.active for e in loud(run)) for run in runs] == [True, True, False]
