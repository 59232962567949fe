"""The problems of a log, and how many of them are reported.

A writer with one mistake makes it on every line. So the first twenty problems of each class are
reported in full, and the rest as one line with their number: the report stays short.
"""

import difflib
import itertools
import json
import math
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, cast

import msgspec

from microscope_tui.runlog.safe_text import safe_text

Severity = Literal["error", "hint"]

SAID_IN_FULL = 20
_MAX_CLASSES = 500  # far above what the checks name; a bound all the same
_OTHER = "other"


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of one line; an ``error`` breaks the format, a ``hint`` does not."""

    line: int
    severity: Severity
    reason: str
    code: str = ""
    """The class of the problem: the same mistake has the same code."""
    count: int = 1
    """Number of problems that this one represents."""


class Problems:
    """Collects the problems of one line after the other."""

    def __init__(self) -> None:
        self.line = 0
        """The current line; the collector adds it to new problems."""
        self._new: list[Problem] = []
        self._seen: Counter[tuple[Severity, str]] = Counter()
        self._last: dict[tuple[Severity, str], Problem] = {}

    def error(self, code: str, reason: str) -> None:
        """The line breaks the format."""
        self._add("error", code, reason)

    def hint(self, code: str, reason: str) -> None:
        """The line is valid, but probably not intended."""
        self._add("hint", code, reason)

    def new(self) -> list[Problem]:
        """Problems added since the last call that are reported in full."""
        problems, self._new = self._new, []
        return problems

    def rest(self) -> Iterator[Problem]:
        """One summary for each class with more problems than are reported in full."""
        for (severity, code), last in self._last.items():
            more = self._seen[severity, code] - SAID_IN_FULL
            reason = f"{more:,} more like the first {SAID_IN_FULL}; the last one: {last.reason}"
            yield Problem(last.line, severity, reason, code, more)

    def _add(self, severity: Severity, code: str, reason: str) -> None:
        key = (severity, code)
        if key not in self._seen and len(self._seen) >= _MAX_CLASSES:
            key = (severity, _OTHER)
        self._seen[key] += 1
        problem = Problem(self.line, severity, reason, key[1])
        if self._seen[key] <= SAID_IN_FULL:
            self._new.append(problem)
        else:
            self._last[key] = problem


def shown(value: Any, max_cells: int = 40) -> str:
    """A value from a log for a message: small ones as JSON, others by their kind."""
    if isinstance(value, list):
        return f"a list of {len(value):,}"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, str):
        return safe_text(json.dumps(value[: 4 * max_cells], ensure_ascii=False), max_cells)
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length():,} bits"
    return json.dumps(value)


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


_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_STRING_OR_BARE = re.compile(r'"(?:[^"\\]|\\.)*"|-?Infinity|NaN')
_BARE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_EXCERPT = 16


def strict_object(problems: Problems, line: bytes) -> dict[str, Any] | None:
    """The object of the line; ``None`` if there is none, which is reported."""
    line = _without_strange_bytes(problems, line)
    if not line.strip():
        problems.hint("empty", "an empty line: write one record a line and nothing between them")
        return None
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        problems.error(
            "utf-8",
            f"not UTF-8: byte {line[error.start]:#04x} at byte {error.start + 1:,}: "
            "write the file as UTF-8",
        )
        text = line.decode("utf-8", "replace")
    value = _value(problems, line, text)
    if value is not None and not isinstance(value, dict):
        problems.error("object", f"{shown(value)}, not an object: write one JSON object a line")
        return None
    return value


def _without_strange_bytes(problems: Problems, line: bytes) -> bytes:
    if problems.line == 1 and line.startswith(_BYTE_ORDER_MARK):
        byte_order_mark(problems)
        line = line.removeprefix(_BYTE_ORDER_MARK)
    if b"\0" in line:
        hole(problems, line.count(b"\0"))
        line = line.strip(b"\0")
    return line


def byte_order_mark(problems: Problems) -> None:
    """The file starts with U+FEFF."""
    problems.hint("bom", "the file starts with a byte order mark: write plain UTF-8 without one")


def hole(problems: Problems, size: int) -> None:
    """``size`` NUL bytes are in the file."""
    problems.error(
        "nul",
        f"{size:,} NUL bytes: a hole that a crash or two writers left; records may be lost here, "
        "write each record with one write to a file opened for append",
    )


def _value(problems: Problems, line: bytes, text: str) -> Any:
    """The JSON value; ``None`` (not a record either) after the reason was reported."""
    try:
        value = msgspec.json.decode(line)
    except RecursionError:
        problems.error("depth", "nested too deeply to be a record: write flat lists and objects")
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError) as refusal:
        return _by_the_standard_library(problems, text, refusal)
    if value is None:
        problems.error("object", "null, not an object: write one JSON object a line")
    return value


def _by_the_standard_library(problems: Problems, text: str, refusal: Exception) -> Any:
    """Values that msgspec refuses: reported with the place of the mistake, or tolerated."""
    bare: list[str] = []

    def keep(name: str) -> float:
        bare.append(name)
        return _BARE[name]

    try:
        value = json.loads(text, parse_constant=keep)
    except json.JSONDecodeError as error:
        near = safe_text(text[max(0, error.pos - _EXCERPT) : error.pos + _EXCERPT], 2 * _EXCERPT)
        problems.error(
            "json",
            f"not JSON: {safe_text(error.msg)} at character {error.pos + 1:,}, near {near!r}: "
            "write one whole JSON object a line",
        )
        return None
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, deep nesting
        problems.error("json", f"not a record: {safe_text(error)}: write plain numbers and lists")
        return None
    if bare:
        name, place = _first_bare(text)
        problems.error(
            "bare",
            f"{len(bare)} bare {name} (at character {place:,}), which is not JSON: "
            f'write the string "{name}"',
        )
    elif isinstance(refusal, msgspec.MsgspecError):
        problems.error(
            "json",
            f"a strict JSON reader refuses this line ({safe_text(refusal)}): "
            "write finite numbers of usual size, and text without lone surrogates",
        )
    return value


def _first_bare(text: str) -> tuple[str, int]:
    for match in _STRING_OR_BARE.finditer(text):
        if not match.group().startswith('"'):
            return match.group(), match.start() + 1
    raise AssertionError("the parser met a bare name outside of every string")
