"""What JSON says, held against the types that are meant, before anything is made of it.

It is taken as it stands: true is no 1 and "32" no number; but 1 may stand where 1.0 is meant. What
the values mean, and which fit together, is for others to judge.
"""

from __future__ import annotations

import dataclasses
import reprlib
import sys
import types
import typing
from typing import Any, Literal

MOST = 2**31
"""No size comes near: a damaged one is refused before anybody counts up to it."""

_KINDS = {
    int: f"a whole number below {MOST}",
    float: "a number",
    bool: "true or false",
    str: "a text",
}


def fields_of(cls: type, found: object, what: str) -> dict[str, Any]:
    """The arguments with which to call the dataclass ``cls``, nested ones made already.

    Args:
        cls: Whose annotations are int, float, bool, str, ``Literal`` of texts or a dataclass, or
            one of these ``| None``, or several dataclasses ``| None``.
        found: What was read, whatever it is.
        what: Its name in a message.

    Raises:
        ValueError: If it is no object, a field is unknown or missing, or a value of another type.
    """
    if not isinstance(found, dict):
        raise ValueError(f"{what}={shown(found)}: it must be an object.")
    fields = dataclasses.fields(cls)
    needed = {field.name for field in fields if field.default is dataclasses.MISSING}
    strangers = [_plain(name) for name in found if name not in {field.name for field in fields}]
    wrong = sorted(strangers)[:20] + sorted(needed - found.keys())
    if wrong:
        raise ValueError(f"fields {', '.join(wrong)} are unknown or missing in {what}.")
    kinds = typing.get_type_hints(cls)
    return {name: _fitting(name, value, kinds[name]) for name, value in found.items()}


def count(name: str, value: object) -> int:
    """``value`` if it is a whole number from 0 to 2^63 - 1; ``ValueError`` with ``name`` if not."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{name}={shown(value)}: it must be a whole number of 0 or more.")
    return value


def number(name: str, value: object, most: float = sys.float_info.max) -> float:
    """``value`` if it is a number from 0 to ``most``; ``ValueError`` with ``name`` if not."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise ValueError(f"{name}={shown(value)}: it must be a number from 0 to {most:g}.")
    return float(value)


def shown(value: object) -> str:
    """``repr``, cut short: for a message about a value that may be anything, of any length."""
    return reprlib.repr(value)


def _plain(name: object) -> str:
    """A name as it is where it could be a field's, else quoted."""
    quoted = shown(name)
    return quoted[1:-1] if isinstance(name, str) and quoted[1:-1].isidentifier() else quoted


def _meant(value: object, kinds: list[Any]) -> Any:
    """Of several dataclasses the one with all fields that ``value`` has; else the first."""
    names = set(value) if isinstance(value, dict) else set()
    fitting = [k for k in kinds[1:] if names <= {field.name for field in dataclasses.fields(k)}]
    return fitting[0] if fitting else kinds[0]


def _fitting(name: str, value: Any, annotation: Any) -> Any:
    kinds = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else ()
    optional = type(None) in kinds
    if optional and value is None:
        return None
    kind = _meant(value, [k for k in kinds if k is not type(None)]) if kinds else annotation
    if typing.get_origin(kind) is Literal:
        kind = str  # which texts there are, the dataclass knows
    if kind not in _KINDS:
        return kind(**fields_of(kind, value, name))
    if type(value) is kind and (kind is not int or abs(value) < MOST):
        return value
    if kind is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    nothing = ", or null" if optional else ""
    raise ValueError(f"{name}={shown(value)}: it must be {_KINDS[kind]}{nothing}.")
