"""Limits of one's own: what passes can be judged by, what would do nothing or harm is refused."""

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.scenarios import SCENARIOS
from microscope_tui.diagnosis import (
    DEFAULTS,
    RULES,
    BadLimit,
    CollapseLimits,
    Criteria,
    Limits,
    changed_limits,
)
from microscope_tui.report import findings_with_advice
from microscope_tui.runlog import Entry, RunReader
from microscope_tui.scenarios import Shape, lines
from microscope_tui.watch import Judge

TABLES = {name: rule.limits_type().values() for name, rule in RULES.items()}
LIMITS = [(rule, limit) for rule, table in TABLES.items() for limit in table]
RELATIONS = [
    (name, relation, otherwise)
    for name, rule in RULES.items()
    for relation, otherwise in rule.limits_type.relations
]


@cache
def scenario(name: str) -> tuple[Entry, ...]:
    """The records of a short run; small windows fill up in it."""
    shape = Shape(routers=2, steps=240)
    if not SCENARIOS[name].fits(shape):
        shape = Shape(routers=10, steps=240)
    _, written = lines(SCENARIOS[name], shape, 0)
    return tuple(RunReader("run").feed(b"".join(written)))


def judged(name: str, limits: Limits, profile: str = "") -> Judge:
    """What a watch does with a log, but what goes wrong is not caught."""
    judge = Judge("run", Criteria(limits=limits, profile=profile))
    for entry in scenario(name):
        judge.take(entry)
    return judge


def value_of(default: float) -> st.SearchStrategy[float]:
    """A value that is likely to pass, or one at the edge of what may be."""
    if isinstance(default, int):
        near = st.integers(1, 2 * default)
        return st.one_of(near, st.sampled_from([1, 2, 3, 4, 8, 200, 10_000]))
    near = st.floats(0.1, 2.0).map(lambda factor: factor * default)
    return st.one_of(near, st.sampled_from([0.0, 1e-300, 0.5, 1.0, 1.000001, 1e9]))


@st.composite
def passing_limits(draw: Any) -> Limits:
    """Some limits of every rule replaced; where they do not go together, none of that rule."""
    passed: dict[str, dict[str, float]] = {}
    for rule, table in TABLES.items():
        names = st.lists(st.sampled_from(list(table)), max_size=4)
        values = {name: draw(value_of(table[name])) for name in draw(names)}
        try:
            changed_limits({rule: values})
        except BadLimit:
            continue
        passed[rule] = values
    return changed_limits(passed)


@settings(max_examples=40, deadline=None)
@given(
    passing_limits(),
    st.sampled_from(sorted(SCENARIOS)),
    st.sampled_from(["", "", "finetune", "eval"]),
)
def test_limits_that_pass_judge_every_scenario_and_can_be_put_into_words(
    limits: Limits, name: str, profile: str
) -> None:
    diagnosis = judged(name, limits, profile).diagnosis
    assert diagnosis is not None
    assert diagnosis.last_step >= 239
    findings_with_advice(diagnosis, diagnosis.episodes)


def test_every_relation_is_between_limits_there_are_and_holds_by_default() -> None:
    for rule, relation, otherwise in RELATIONS:
        left, sign, right = relation.split()
        sides = [side for side in (left, right) if not side[0].isdigit()]
        assert sides, relation
        assert {(rule, side) for side in sides} <= set(LIMITS), relation
        assert sign in ("<", "<=")
        assert otherwise
    assert changed_limits({}) == DEFAULTS


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda r: f"{r[0]} {r[1]}")
def test_a_broken_relation_is_refused_with_the_values_and_what_to_do(
    relation: tuple[str, str, str],
) -> None:
    rule, text, _ = relation
    left, _, right = text.split()
    ends = {s: float(s) if s[0].isdigit() else TABLES[rule][s] for s in (left, right)}
    for side, value in ((left, 2 * ends[right]), (right, ends[left] / 2)):
        if side[0].isdigit():
            continue
        broken = int(value) if isinstance(ends[side], int) else value
        with pytest.raises(BadLimit) as refused:
            changed_limits({rule: {side: broken}})
        message = str(refused.value)
        assert message.startswith(f"[rules.{rule}] ")
        assert f"{side} is {broken:g}" in message or f"and {side} {broken:g}:" in message
        assert "; lower " in message or "; raise " in message


def test_relations_hold_between_the_new_values_whatever_the_old_ones_were() -> None:
    with pytest.raises(BadLimit, match=r"warn is 0\.7 and leave 0\.45.*lower warn or raise leave"):
        changed_limits({"COLLAPSE": {"warn": 0.7}})
    limits = changed_limits({"COLLAPSE": {"warn": 0.7, "leave": 0.8}})
    mine = limits.of(CollapseLimits)
    assert (mine.warn, mine.leave) == (0.7, 0.8)


def test_a_rule_that_stands_there_twice_is_refused() -> None:
    with pytest.raises(BadLimit, match="COLLAPSE is defined twice"):
        changed_limits({"COLLAPSE": {"warn": 0.3}, "collapse": {"warn": 0.2}})
