"""Limits of one's own: the table of ``thresholds.py`` with some values replaced."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from microscope_tui.diagnosis.thresholds import DEFAULTS, Limits


class BadLimit(ValueError):
    """A limit that does not exist or has no such value; the message says which there are."""


def changed_limits(rules: Mapping[str, Mapping[str, Any]]) -> Limits:
    """The table with some values replaced: ``{"COLLAPSE": {"warn": 0.3}}``.

    Raises:
        BadLimit: no such rule, no such limit, or a value of another kind.
    """
    limits = DEFAULTS
    for name, values in rules.items():
        rule = name.upper()
        if rule not in (known := [entry.name for entry in fields(Limits)]):
            raise BadLimit(f"[rules.{name}]: no such rule; there are {', '.join(known)}")
        before = getattr(limits, rule)
        for key, value in values.items():
            if key not in (keys := [entry.name for entry in fields(before)]):
                raise BadLimit(f"[rules.{name}] {key}: no such limit; there are {', '.join(keys)}")
            _check(f"[rules.{name}] {key}", value, getattr(before, key))
        limits = replace(limits, **{rule: replace(before, **values)})
    return limits


def _check(what: str, value: object, default: float) -> None:
    if isinstance(default, int) and (type(value) is not int or not 1 <= value <= 10_000):
        raise BadLimit(f"{what} is {value!r}: give an integer from 1 to 10,000, like {default}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        raise BadLimit(f"{what} is {value!r}: give a number from 0 on, like {default:g}")
