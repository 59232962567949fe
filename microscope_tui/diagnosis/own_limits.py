"""Custom limits: the table of ``thresholds.py`` with some values replaced.

Each value is checked by itself, and then against the others: values that would switch a rule off
silently, or keep it from ending, are refused.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from microscope_tui.diagnosis.thresholds import DEFAULTS, Limits

RELATIONS: tuple[tuple[str, str, str], ...] = tuple(
    (row.name, relation, otherwise)
    for row in fields(Limits)
    for relation, otherwise in getattr(DEFAULTS, row.name).relations
)
"""Rule, a required relation between its limits, and the consequence of breaking it."""


class BadLimit(ValueError):
    """An unknown limit or an invalid value; the message says what to write."""


def changed_limits(rules: Mapping[str, Mapping[str, Any]]) -> Limits:
    """The table with some values replaced: ``{"COLLAPSE": {"warn": 0.3}}``.

    Raises:
        BadLimit: no such rule, no such limit, a value of another kind, or one that does not go
            together with the others.
    """
    limits, known, seen = DEFAULTS, [entry.name for entry in fields(Limits)], set[str]()
    for name, values in rules.items():
        rule = name.upper()
        if rule not in known:
            raise BadLimit(f"[rules.{name}]: no such rule; there are {', '.join(known)}")
        if rule in seen:
            raise BadLimit(f"[rules.{name}]: {rule} is defined twice; merge the two tables")
        seen.add(rule)
        before = getattr(limits, rule)
        for key, value in values.items():
            if key not in (keys := [entry.name for entry in fields(before)]):
                raise BadLimit(f"[rules.{name}] {key}: no such limit; there are {', '.join(keys)}")
            _check(f"[rules.{name}] {key}", value, getattr(before, key))
        limits = replace(limits, **{rule: replace(before, **values)})
    for rule, relation, otherwise in RELATIONS:
        _check_relation(rule, getattr(limits, rule), relation, otherwise)
    return limits


def _check(what: str, value: object, default: float) -> None:
    if isinstance(default, int) and (type(value) is not int or not 1 <= value <= 10_000):
        raise BadLimit(f"{what} is {value!r}: give an integer from 1 to 10,000, like {default}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        raise BadLimit(f"{what} is {value!r}: give a number from 0 to 1e12, like {default:g}")


def _check_relation(rule: str, mine: object, relation: str, otherwise: str) -> None:
    """Both sides of ``low < high`` or ``low <= high`` are the name of a limit or a number."""
    left, sign, right = relation.split()
    low, high = _value(mine, left), _value(mine, right)
    if low < high or (sign == "<=" and low == high):
        return
    below, above = ("be below", "be above") if sign == "<" else ("not be above", "not be below")
    if left[0].isdigit():
        what, must, mend = f"{right} is {high:g}", f"it must {above} {left}", "raise it"
    elif right[0].isdigit():
        what, must, mend = f"{left} is {low:g}", f"it must {below} {right}", "lower it"
    else:
        what = f"{left} is {low:g} and {right} {high:g}"
        must, mend = f"{left} must {below} {right}", f"lower {left} or raise {right}"
    raise BadLimit(f"[rules.{rule}] {what}: {must}, or {otherwise}; {mend}")


def _value(mine: object, side: str) -> float:
    value: float = float(side) if side[0].isdigit() else getattr(mine, side)
    return value
