"""The problems of a log: how they are counted, and which a line and a single value can have.

A writer with one mistake makes it on every line: the first twenty problems of each class are
reported in full, and the rest as one line with their number. The reader tolerates bare ``NaN``,
holes of NUL bytes and broken UTF-8; here each is reported, and what can be read after it is
returned, so that one mistake does not hide others.
"""

import difflib
import itertools
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import msgspec

from microscope_tui.runlog.records import NON_FINITE, Each, Number, PerRouter, Rule
from microscope_tui.runlog.safe_text import safe_text

Severity = Literal["error", "hint"]

SAID_IN_FULL = 20
_STRING_OR_BARE = re.compile(r'"(?:[^"\\]|\\.)*"|(-?Infinity|NaN)')
_EXCERPT = 16
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_MAX_UNKNOWN_KEYS = 100
_MAX_KEY_LENGTH = 64

# Names in other trainers; difflib finds the misspelt ones.
_OTHER_NAMES = {
    "expert_bias": ("bias",),
    "tokens_per_expert": ("counts", "expert_counts", "load"),
    "grad_norm": ("grad",),
    "step": ("iter", "iteration"),
    "layers": ("layer_numbers",),
    "loss": ("lm_loss",),
    "learning_rate": ("lr",),
    "planned_steps": ("max_steps",),
    "top_k": ("moe_router_topk", "num_experts_per_tok", "topk"),
    "num_experts": ("n_routed_experts", "num_local_experts", "num_moe_experts"),
    "time": ("timestamp",),
}
_MEANT = {other: name for name, others in _OTHER_NAMES.items() for other in others}

_WORDS = """
empty? an empty line: write one record a line and nothing between them
bom? the file starts with a byte order mark: write plain UTF-8 without one
nul! {size:,} NUL bytes: a hole that a crash or two writers left; records may be lost here, write
  each record with one write to a file opened for append
no newline? no newline at the end of the file, readers {what}: write each record and its "\\n" with
  one write
overlong! longer than 64 MB and skipped by every reader: write one step a line
utf-8! not UTF-8: byte {byte:#04x} at byte {at:,}: write the file as UTF-8
depth! nested too deeply to be a record: write flat lists and objects
object! {value}, not an object: write one JSON object a line
json! not JSON: {why} at character {at:,}, near {near!r}: write one whole JSON object a line
no record! not a record: {why}: write plain numbers and lists
bare! {count} bare {name} (at character {at:,}), which is not JSON: write the string "{name}"
refused! a strict JSON reader refuses this line ({why}): write finite numbers of usual size, and
  text without lone surrogates
misspelt? {inside}{key} is not a key of the format and is ignored: write {likely} if you mean that
expected! {key} is {value}, expected {expected}
missing! {key} is missing: write {expected}
unprintable! {key} is {value} with the control character U+{char:04X}: write plain text, screens do
  not show it
length! {key} has {entries:,} entries for {routers:,} routers: write one per entry of model.layers,
  null where there is no value

unknown kind? kind {value} is not one of {kinds}: readers ignore the record
no run! a {kind} before any run record: write the run record first, with format_version {version}
  and model.layers, num_experts and top_k
no load? no step has tokens_per_expert or router.effective_experts: there is no load to judge, write
  one of them
no resumed_at_step? another run record without resumed_at_step: write the first step that will be
  written again (checkpoint step + 1; 1 after a fresh start)
another model? layers, num_experts or top_k differ from the run record before: the diagnosis
  restarts here, write each model to its own folder
unknown? {key} is unknown{where}: no balance and no verdict on a collapse, write it if you can
top_k above num_experts! top_k {k:,} of router {index} is above its num_experts {e:,}: write how
  many different experts a token chooses
top1! source.counts is "top1" but model.top_k is not 1: write top_k 1 where only the first choice is
  counted, or count all choices and write "exact"
event! an event without a name: write "event": "eval", "checkpoint" …
reason? reason is {value}: the screen has words for {known}, and shows any other as stopped

after end? a step after the end event of line {line:,}: write a run record with resumed_at_step
  before continuing
before resumed! step {step:,} is below resumed_at_step {first:,} of line {line:,}: resumed_at_step
  is the first step that is written again
twice! step {step:,} twice in a row: write each step once, from one process
backwards! step {step:,} after step {last:,}: write a run record with resumed_at_step {step:,}
  before it if the run was resumed
clock? time {time:.3f} is {back:.3g} s before that of the step above: write Unix seconds, from one
  machine
key order? "kind" must be the first key of the line and {keys} the last, in this order: readers skip
  the rest of it, and are slow otherwise
router! router.{name}[{index}] is {number:g}, {limit}

width! {key} has {entries:,} entries, expected {expected}: one per routed expert, shared ones left
  out; {otherwise}
null! {key} is null: {instead}
fractions! {key} {why}
no tokens? tokens_per_expert without tokens: write the real tokens of the global batch, so that it
  can be checked whether the counts are complete
sum of shares! {key} sums to {total}, expected {expected} for shares: scale the fractions to it and
  give what rounding leaves to the largest
sum of a rank! {key} sums to {total}, above tokens x top_k = {expected} of the global batch: count
  the pairs of one rank once, and all ranks in tokens
sum! {key} sums to {total}, expected tokens x top_k = {expected}: {advice}
above tokens! {key} is {count}, above tokens = {tokens}: a token chooses an expert at most once,
  count each pair once and all real tokens in tokens
"""
_SAYINGS: dict[str, tuple["Severity", str]] = {
    found[1]: ("error" if found[2] == "!" else "hint", found[3].replace("\n  ", " "))
    for found in re.finditer(r"^(\S.*?)([!?]) (.*(?:\n  .*)*)", _WORDS, re.MULTILINE)
}


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
    """Collects the problems of one line after the other, and finds those of single values."""

    def __init__(self) -> None:
        self.line = 0
        """The current line; the collector adds it to new problems."""
        self.found: list[Problem] = []
        """Those that are reported in full."""
        self.routers: int | None = None
        """How many there are, by the last run record; ``None`` if it has no number."""
        self._seen: Counter[str] = Counter()  # by class, as the last one
        self._last: dict[str, Problem] = {}

    def say(self, what: str, code: str = "", /, **values: Any) -> None:
        """``what``: of ``_WORDS``; ``code``: the class, if these words have several."""
        if "value" in values:
            values["value"] = shown(values["value"])
        severity, words = _SAYINGS[what]
        problem = Problem(self.line, severity, words.format(**values), code or what)
        self._seen[problem.code] += 1
        if self._seen[problem.code] <= SAID_IN_FULL:
            self.found.append(problem)
        else:
            self._last[problem.code] = problem

    def rest(self) -> Iterator[Problem]:
        """One summary for each class with more problems than are reported in full."""
        for code, last in self._last.items():
            more = self._seen[code] - SAID_IN_FULL
            reason = f"{more:,} more like the first {SAID_IN_FULL}; the last one: {last.reason}"
            yield replace(last, reason=reason, count=more)

    def strict_object(self, line: bytes) -> dict[str, Any] | None:
        """The object of the line; ``None``, reported, if there is none."""
        if not line.strip():
            self.say("empty")
            return None
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            self.say("utf-8", byte=line[error.start], at=error.start + 1)
            text = line.decode("utf-8", "replace")
        try:
            value = msgspec.json.decode(line)
        except RecursionError:
            self.say("depth")
            return None
        except (msgspec.MsgspecError, UnicodeDecodeError) as refusal:
            try:
                value = json.loads(text)
            except json.JSONDecodeError as error:
                near = text[max(0, error.pos - _EXCERPT) : error.pos + _EXCERPT]
                near = safe_text(near, 2 * _EXCERPT)
                self.say("json", why=safe_text(error.msg), at=error.pos + 1, near=near)
                return None
            except (ValueError, RecursionError) as error:  # thousands of digits, deep nesting
                self.say("no record", "json", why=safe_text(error))
                return None
            bare = [match for match in _STRING_OR_BARE.finditer(text) if match[1]]
            if bare:
                self.say("bare", count=len(bare), name=bare[0][1], at=bare[0].start() + 1)
            elif isinstance(refusal, msgspec.MsgspecError):
                self.say("refused", "json", why=safe_text(refusal))
        if isinstance(value, dict):
            return value
        self.say("object", value=value)
        return None

    def checked_fields(
        self, inside: str, record: Mapping[str, Any], rules: Mapping[str, Rule]
    ) -> dict[str, Any]:
        """The sound values of an object by name; unknown keys that look misspelt are reported.

        ``inside``: the path of the object, with its dot.
        """
        unknown = (key for key in record if key not in rules)
        for key in itertools.islice(unknown, _MAX_UNKNOWN_KEYS):
            candidates = _likely(key, tuple(sorted(rules))) if len(key) <= _MAX_KEY_LENGTH else ()
            likely = next((name for name in candidates if name not in record), None)
            if likely is not None:
                code = f"misspelt {inside}{likely}"
                self.say("misspelt", code, inside=inside, key=safe_text(key, 40), likely=likely)
        return {
            name: self.checked(inside + name, record.get(name), rule)
            for name, rule in rules.items()
        }

    def checked(self, key: str, value: Any, rule: Rule, code: str = "") -> Any:
        """The sound value at ``key``; ``None`` where there is none or where it is a problem.

        Args:
            key: Where it is, as shown.
            value: As decoded from JSON; ``None`` is never a problem.
            rule: What the format allows there.
            code: Class of the problem where ``key`` holds an index, so that the classes are
                bounded.
        """
        code = code or key
        if value is None or rule is None:
            return value
        if isinstance(rule, Number):
            return self._number(key, value, rule, code)
        if isinstance(rule, PerRouter):
            return self._entries(key, value, rule)
        if isinstance(rule, Each | Mapping):
            return self._object(key, value, rule, code)
        kind = rule if isinstance(rule, type) else str
        if not isinstance(value, kind):
            what = {dict: "an object", bool: "true or false", str: "a string"}[kind]
            return self.unexpected(f"type {code}", key, value, what)
        if isinstance(value, str) and not value.isprintable():
            char = next((c for c in value if unicodedata.category(c) in _UNPRINTABLE), None)
            if char is not None:
                self.say("unprintable", key=key, value=value, char=ord(char))
        if isinstance(rule, tuple) and value not in rule:
            return self.unexpected(f"choice {code}", key, value, f"one of {', '.join(rule)}")
        return value

    def _object(self, key: str, value: Any, rule: Each | Mapping[str, Rule], code: str) -> Any:
        if self.checked(key, value, dict, code) is None:
            return None
        if not isinstance(rule, Each):
            return self.checked_fields(f"{key}.", value, rule)
        for name, inner in value.items():
            self.checked(f"a key of {key}", name, str if rule.named else None)
            self.checked(f"a {rule.noun} of {key}", inner, rule.value)
        return value

    def _entries(self, key: str, value: Any, rule: PerRouter) -> list[Any] | None:
        if rule.shared and not isinstance(value, list):
            return [self.checked(key, value, rule.rule)]
        entries = self.per_router(key, value)
        if entries is None:
            return None
        if rule.shared or not isinstance(rule.rule, Number):
            return [self.checked(key, entry, rule.rule) for entry in entries]
        if all(map(rule.rule.fits, entries)):
            return entries
        return [
            self.checked(f"{key}[{index}]", entry, rule.rule, key)
            for index, entry in enumerate(entries)
        ]

    def unexpected(self, code: str, key: str, value: Any, expected: str) -> None:
        """Report a ``value`` that the format does not allow; ``code`` is the class of the
        problem.
        """
        self.say("expected", code, key=key, value=value, expected=expected)

    def _number(self, key: str, value: Any, rule: Number, code: str) -> Any:
        if rule.fits(value):
            return value
        if type(value) is float and not math.isfinite(value):
            return None  # a bare token was reported when the line was parsed
        if isinstance(value, str) and value in NON_FINITE:
            if rule.non_finite:
                return None
            expected = f"{rule.what}, or null where there is no value"
        elif type(value) is not int and (type(value) is not float or rule.integer):
            return self.unexpected(f"type {code}", key, value, f"{rule.what}, or null")
        else:
            expected = rule.what
        return self.unexpected(f"range {code}", key, value, expected)

    def per_router(self, key: str, value: Any) -> list[Any] | None:
        """The list at ``key``; ``None`` unless it has one entry per router."""
        if value is None:
            return None
        if not isinstance(value, list):
            expected = "a list with one entry per router of model.layers"
            self.unexpected(f"type {key}", key, value, expected)
            return None
        if self.routers not in (None, len(value)):
            self.say("length", f"length {key}", key=key, entries=len(value), routers=self.routers)
            return None
        return value


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


@lru_cache(maxsize=1024)
def _likely(key: str, known: tuple[str, ...]) -> tuple[str, ...]:
    plain = key.lower().replace("-", "_")
    other = _MEANT.get(plain)
    if other in known:
        return (other,)
    return tuple(difflib.get_close_matches(plain, known, 3, 0.8))
