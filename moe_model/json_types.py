"""Validate JSON against dataclass types before use.

Types are strict: true is not 1 and "32" is not a number, but 1 is accepted for 1.0. Callers check
ranges and relations.
"""

from __future__ import annotations

import dataclasses
import reprlib
import sys
import types
import typing
from typing import Any, Literal

MOST = 2**31
"""Larger than any real size; larger numbers are rejected as damaged."""

_KINDS = {
    int: f"a whole number below {MOST}",
    float: "a number",
    bool: "true or false",
    str: "a text",
}


def fields_of(cls: type, found: object, what: str) -> dict[str, Any]:
    """Validated arguments for the dataclass ``cls``, with nested dataclasses constructed.

    Args:
        cls: Its annotations are int, float, bool, str, ``Literal`` of texts or a dataclass, or one
            of these ``| None``, or several dataclasses ``| None``.
        found: The parsed JSON, of any type.
        what: Its name in errors.

    Raises:
        ValueError: If it is not an object, a field is unknown or missing, or a value has a wrong
            type.
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
    """``value`` if it is an integer from 0 to 2^63 - 1, else ``ValueError`` with ``name``."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{name}={shown(value)}: it must be a whole number of 0 or more.")
    return value


def number(name: str, value: object, most: float = sys.float_info.max) -> float:
    """``value`` if it is a number from 0 to ``most``, else ``ValueError`` with ``name``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise ValueError(f"{name}={shown(value)}: it must be a number from 0 to {most:g}.")
    return float(value)


def shown(value: object) -> str:
    """A truncated ``repr`` for error messages."""
    return reprlib.repr(value)


def _plain(name: object) -> str:
    """The name as it is if it could be a field name, else quoted."""
    quoted = shown(name)
    return quoted[1:-1] if isinstance(name, str) and quoted[1:-1].isidentifier() else quoted


def _fitting(name: str, value: Any, annotation: Any) -> Any:
    kinds = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else ()
    optional = type(None) in kinds
    if optional and value is None:
        return None
    kind = annotation
    if kinds:  # the dataclass that has all fields, else the first
        given = set(value) if isinstance(value, dict) else set()
        several = [k for k in kinds if k is not type(None)]
        has_all = (k for k in several[1:] if given <= {f.name for f in dataclasses.fields(k)})
        kind = next(has_all, several[0])
    if typing.get_origin(kind) is Literal:
        kind = str  # the dataclass checks the value
    if kind not in _KINDS:
        return kind(**fields_of(kind, value, name))
    if type(value) is kind and (kind is not int or abs(value) < MOST):
        return value
    if kind is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    nothing = ", or null" if optional else ""
    raise ValueError(f"{name}={shown(value)}: it must be {_KINDS[kind]}{nothing}.")
