"""All rules, in the order in which they evaluate a step: every file here."""

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import msgspec

from microscope_tui.diagnosis.context import AtMost, Limits, RuleLimits
from microscope_tui.diagnosis.rules.base import Rule

AnyRule = Rule[Any, Any]


for _file in iter_modules(__path__, f"{__name__}."):
    import_module(_file.name)
RULES: Mapping[str, type[AnyRule]] = {
    rule.name: rule for rule in sorted(Rule.__subclasses__(), key=lambda rule: rule.turn)
}


class BadLimit(ValueError):
    """An unknown limit or an invalid value; the message gives the valid values."""


def changed_limits(rules: Mapping[str, Mapping[str, Any]]) -> Limits:
    """The limits of all rules, some of them changed: ``{"COLLAPSE": {"warn": 0.3}}``.

    Raises:
        BadLimit: values that would switch a rule off silently, or keep it from ending.
    """
    changed: dict[str, Any] = {}
    for name, values in rules.items():
        rule = name.upper()
        if rule not in RULES:
            raise BadLimit(f"[rules.{name}]: no such rule; there are {', '.join(RULES)}")
        if rule in changed:
            raise BadLimit(f"[rules.{name}]: {rule} is defined twice; merge the two tables")
        defaults = RULES[rule].limits_type()
        known = defaults.values()
        for key, value in values.items():
            if key not in known:
                raise BadLimit(f"[rules.{name}] {key}: no such limit; there are {', '.join(known)}")
            _check(f"[rules.{name}] {key}", value, known[key])
        changed[rule] = msgspec.structs.replace(defaults, **values)
    in_turn = [(name, changed[name]) for name in RULES if name in changed]
    for rule, mine in in_turn:
        for relation in mine.relations:
            _check_relation(rule, mine, relation)
    return Limits(tuple(mine for _, mine in in_turn if mine != type(mine)()))


def _check(what: str, value: object, default: float) -> None:
    if isinstance(default, int) and (type(value) is not int or not 1 <= value <= 10_000):
        raise BadLimit(f"{what} is {value!r}: give an integer from 1 to 10,000, like {default}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        raise BadLimit(f"{what} is {value!r}: give a number from 0 to 1e12, like {default:g}")


def _check_relation(rule: str, mine: RuleLimits, relation: AtMost) -> None:
    low = _value(mine, relation.low)
    high = _value(mine, relation.high)
    if relation.holds(low, high):
        return
    names = (side for side in (relation.low, relation.high) if isinstance(side, str))
    named = " and ".join(f"{name} is {_value(mine, name):g}" for name in names)
    raise BadLimit(f"[rules.{rule}] {named}: expected {relation}")


def _value(mine: RuleLimits, side: str | float) -> float:
    return mine.values()[side] if isinstance(side, str) else side
