"""Changed limits: those that pass can judge every run, those that would do nothing are refused."""

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from benchmarks.scenarios import SCENARIOS
from microscope_tui.commands.check.report import findings_with_advice
from microscope_tui.diagnosis import DEFAULTS, RULES, BadLimit, Criteria, Limits, changed_limits
from microscope_tui.diagnosis.rules.collapse import CollapseLimits
from microscope_tui.runlog import Entry, RunReader
from microscope_tui.scenarios import Shape, lines
from microscope_tui.watch.judge import Judge

TABLES = {name: rule.limits_type().values() for name, rule in RULES.items()}
RELATIONS = [
    (name, relation) for name, rule in RULES.items() for relation in rule.limits_type.relations
]


@cache
def scenario(name: str) -> tuple[Entry, ...]:
    routers = 2 if SCENARIOS[name].fits(Shape(routers=2)) else 10
    _, written = lines(SCENARIOS[name], Shape(routers=routers, steps=240), 0)
    return tuple(RunReader("run").feed(b"".join(written)))


def value_of(default: float) -> st.SearchStrategy[float]:
    """A value that is likely to pass, or one at the edge of what may be."""
    if isinstance(default, int):
        near = st.integers(1, 2 * default)
        return st.one_of(near, st.sampled_from([1, 2, 3, 4, 8, 200, 10_000]))
    near = st.floats(0.1, 2.0).map(lambda factor: factor * default)
    return st.one_of(near, st.sampled_from([0.0, 1e-300, 0.5, 1.0, 1.000001, 1e9]))


@st.composite
def passing_limits(draw: Any) -> Limits:
    """Some limits of every rule replaced; where they contradict each other, none of that rule."""
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


@settings(max_examples=30)
@given(passing_limits(), st.sampled_from(sorted(SCENARIOS)), st.sampled_from(["", "finetune"]))
def test_limits_that_pass_judge_every_scenario_and_can_be_put_into_words(
    limits: Limits, name: str, profile: str
) -> None:
    judge = Judge("run", Criteria(limits=limits, profile=profile))
    for entry in scenario(name):
        judge.take(entry)
    assert judge.diagnosis.last_step >= 239
    findings_with_advice(judge.diagnosis, judge.diagnosis.episodes)


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda r: f"{r[0]} {r[1]}")
def test_a_broken_relation_is_refused_with_the_values_and_what_to_do(relation: Any) -> None:
    rule, known = relation
    left, right = known.low, known.high
    ends = {side: TABLES[rule].get(side, side) for side in (left, right)}
    for side, value in ((left, 2 * ends[right]), (right, ends[left] / 2)):
        if not isinstance(side, str):
            continue
        broken = int(value) if isinstance(ends[side], int) else value
        with pytest.raises(BadLimit) as refused:
            changed_limits({rule: {side: broken}})
        message = str(refused.value)
        assert message.startswith(f"[rules.{rule}] ")
        assert f"{side} is {broken:g}" in message
        assert any(message.endswith(f": expected {own}") for name, own in RELATIONS if name == rule)


def test_relations_hold_by_default_and_between_the_new_values() -> None:
    assert changed_limits({}) == changed_limits(TABLES) == DEFAULTS
    with pytest.raises(BadLimit, match=r"warn is 0\.7 and leave is 0\.45: expected warn <= leave"):
        changed_limits({"COLLAPSE": {"warn": 0.7}})
    mine = changed_limits({"COLLAPSE": {"warn": 0.7, "leave": 0.8}}).of(CollapseLimits)
    assert (mine.warn, mine.leave) == (0.7, 0.8)


def test_a_rule_that_is_changed_twice_is_refused() -> None:
    with pytest.raises(BadLimit, match="COLLAPSE is defined twice"):
        changed_limits({"COLLAPSE": {"warn": 0.3}, "collapse": {"warn": 0.2}})
