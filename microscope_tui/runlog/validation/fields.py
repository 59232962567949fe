"""Validates single values, with messages that say what is expected.

``Number`` describes a numeric key; the tables of keys in ``run`` and ``steps`` consist of them.
"""

import difflib
import itertools
import math
import sys
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from microscope_tui.runlog.safe_text import safe_text
from microscope_tui.runlog.validation.problems import Problems, shown

_HUGE = sys.float_info.max
NON_FINITE = ("NaN", "Infinity", "-Infinity")
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_MAX_UNKNOWN_KEYS, _MAX_KEY_LENGTH = 100, 64

# Names in other trainers; difflib finds the misspelt ones.
_OTHER_NAMES = {
    "bias": "expert_bias",
    "counts": "tokens_per_expert",
    "expert_counts": "tokens_per_expert",
    "grad": "grad_norm",
    "iter": "step",
    "iteration": "step",
    "layer_numbers": "layers",
    "lm_loss": "loss",
    "load": "tokens_per_expert",
    "lr": "learning_rate",
    "max_steps": "planned_steps",
    "moe_router_topk": "top_k",
    "n_routed_experts": "num_experts",
    "num_experts_per_tok": "top_k",
    "num_local_experts": "num_experts",
    "num_moe_experts": "num_experts",
    "timestamp": "time",
    "topk": "top_k",
}


@dataclass(frozen=True, slots=True)
class Number:
    """What a number may be."""

    what: str
    """The rule in words; completes the sentence "expected …"."""
    low: float = -_HUGE
    high: float = _HUGE
    integer: bool = False
    non_finite: bool = False
    """A measurement that can fail: ``"NaN"`` and the infinities are values."""


SHARE = Number("a share in [0, 1]", 0, 1)
COUNT = Number("an integer of at least 0", 0, 2**62, integer=True)
POSITIVE = Number("an integer of at least 1", 1, 2**62, integer=True)
TIME = Number("Unix seconds (not milliseconds)", 0, 1e11)


def fits(value: Any, rule: Number) -> bool:
    """Whether the value is a finite number that the rule allows."""
    if type(value) is not int and (type(value) is not float or rule.integer):
        return False
    return rule.low <= value <= rule.high  # NaN and the infinities are in no range


def number(
    problems: Problems, key: str, value: Any, rule: Number, code: str = ""
) -> int | float | None:
    """The finite number at ``key``; ``None`` where there is none or where it is a problem.

    Args:
        code: class of the problem where ``key`` holds an index, so that its class is bounded.
    """
    code = code or key
    if fits(value, rule):
        return cast(int | float, value)
    if value is None or (type(value) is float and not math.isfinite(value)):
        return None  # a bare token was reported when the line was parsed
    if type(value) is int or (type(value) is float and not rule.integer):
        problems.error(f"range {code}", f"{key} is {shown(value)}, expected {rule.what}")
    elif isinstance(value, str) and value in NON_FINITE:
        if not rule.non_finite:
            problems.error(
                f"range {code}",
                f"{key} is {shown(value)}, expected {rule.what}, or null where there is no value",
            )
    else:
        problems.error(f"type {code}", f"{key} is {shown(value)}, expected {_typed(rule, value)}")
    return None


def text(problems: Problems, key: str, value: Any) -> str | None:
    """The text at ``key``; ``None`` where there is none."""
    if value is None:
        return None
    if not isinstance(value, str):
        problems.error(f"type {key}", f"{key} is {shown(value)}, expected a string")
        return None
    if not value.isprintable():
        char = next((c for c in value if unicodedata.category(c) in _UNPRINTABLE), None)
        if char is not None:
            problems.error(
                "unprintable",
                f"{key} is {shown(value)} with the control character U+{ord(char):04X}: "
                "write plain text, screens do not show it",
            )
    return value


def choice(problems: Problems, key: str, value: Any, known: Collection[str], default: str) -> str:
    """The text at ``key``, which is one of ``known``."""
    name = text(problems, key, value)
    if name is not None and name not in known:
        problems.error(
            f"choice {key}", f"{key} is {shown(name)}, expected one of {', '.join(known)}"
        )
        return default
    return default if name is None else name


def mapping(problems: Problems, key: str, value: Any) -> dict[str, Any]:
    """The object at ``key``; empty where there is none."""
    if value is None or isinstance(value, dict):
        return value or {}
    problems.error(f"type {key}", f"{key} is {shown(value)}, expected an object")
    return {}


def per_router(problems: Problems, key: str, value: Any, routers: int | None) -> list[Any] | None:
    """The list at ``key`` with one entry per router; ``None`` where there is none."""
    if value is None:
        return None
    if not isinstance(value, list):
        problems.error(
            f"type {key}",
            f"{key} is {shown(value)}, expected a list with one entry per router of model.layers",
        )
        return None
    if routers is not None and len(value) != routers:
        problems.error(
            f"length {key}",
            f"{key} has {len(value):,} entries for {routers:,} routers: write one per entry of "
            "model.layers, null where there is no value",
        )
        return None
    return value


def unknown_keys(
    problems: Problems, inside: str, record: Mapping[str, Any], known: frozenset[str]
) -> None:
    """Report keys that look misspelt; other unknown keys are allowed."""
    strange = itertools.islice((key for key in record if key not in known), _MAX_UNKNOWN_KEYS)
    for key in strange:
        candidates = _likely(key, known) if len(key) <= _MAX_KEY_LENGTH else ()
        likely = next((name for name in candidates if name not in record), None)
        if likely is not None:
            problems.hint(
                f"misspelt {inside}{likely}",
                f"{inside}{safe_text(key, 40)} is not a key of the format and is ignored: "
                f"write {likely} if you mean that",
            )


@lru_cache(maxsize=1024)
def _likely(key: str, known: frozenset[str]) -> tuple[str, ...]:
    """What ``key`` may mean, best first."""
    plain = key.lower().replace("-", "_")
    other = _OTHER_NAMES.get(plain)
    if other in known:
        return (other,)
    return tuple(difflib.get_close_matches(plain, sorted(known), 3, 0.8))


def _typed(rule: Number, value: Any) -> str:
    """What is expected instead of a wrong type, with a hint for common mistakes."""
    if isinstance(value, str) and value.lower().lstrip("+-") in ("nan", "inf", "infinity"):
        return f'{rule.what}, or the string "NaN", "Infinity" or "-Infinity"'
    if isinstance(value, str):
        return f"{rule.what}, without quotes"
    if isinstance(value, float) and value.is_integer():
        return f"{rule.what}, without a decimal point"
    return f"{rule.what}, or null"
