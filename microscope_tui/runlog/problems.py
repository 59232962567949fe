"""The kinds of problems that a log can have, and how many of each are reported.

A writer with one mistake makes it on every line: the first twenty problems of each code are
reported in full, and the rest as one line with their number.
"""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec.structs import replace

from microscope_tui.runlog.safe_text import safe_text

Severity = Literal["error", "hint"]
SAID_IN_FULL = 20


class Kind(NamedTuple):
    """One kind of problem."""

    name: str
    """Also the code of its problems, unless they have several."""
    words: str
    """What is wrong, and after the colon what to write instead; values are in braces."""
    severity: Severity = "error"


KINDS = {
    kind.name: kind
    for kind in (
        Kind("bom", "the file starts with a byte order mark: write plain UTF-8 without one"),
        Kind(
            "nul",
            "{size:,} NUL bytes: a hole that a crash or two writers left; records may be lost "
            "here, write each record with one write to a file opened for append",
        ),
        Kind(
            "no newline",
            "no newline at the end of the file, readers wait for it: write each record and its "
            '"\\n" with one write',
            "hint",
        ),
        Kind("overlong", "longer than 64 MB and skipped by every reader: write one step a line"),
        Kind("utf-8", "not UTF-8: byte {byte:#04x} at byte {at:,}: write the file as UTF-8"),
        Kind("depth", "nested too deeply to be a record: write flat lists and objects"),
        Kind("object", "{value}, not an object: write one JSON object a line"),
        Kind("json", "not JSON: {why}: write one whole JSON object a line"),
        Kind("bare", '{count} bare {name}, which is not JSON: write the string "{name}"'),
        Kind(
            "refused",
            "a strict JSON reader refuses this line ({why}): write finite numbers of usual size, "
            "and text without lone surrogates",
        ),
        Kind(
            "misspelt",
            "{key} is not a key of the format and is ignored: write {likely} if you mean that",
            "hint",
        ),
        Kind("unusable", "{why}"),
        Kind("expected", "{key} is {value}, expected {expected}"),
        Kind("missing", "{key} is missing: write {expected}"),
        Kind(
            "unprintable",
            "{key} is {value} with control characters: write plain text, screens do not show them",
        ),
        Kind(
            "length",
            "{key} has {entries:,} entries for {routers:,} routers: write one per entry of "
            "model.layers, null where there is no value",
        ),
        Kind("unknown kind", "kind {value} is not one of {kinds}: readers ignore it", "hint"),
        Kind(
            "no run",
            "a {kind} before any run record: write the run record first, with format_version and "
            "model.layers, num_experts and top_k",
        ),
        Kind(
            "top_k above num_experts",
            "top_k {router.top_k:,} of router {index} is above its num_experts "
            "{router.num_experts:,}: write how many different experts a token chooses",
        ),
        Kind("event", 'an event without a name: write "event": "eval", "checkpoint" …'),
        Kind(
            "before resumed",
            "step {step:,} is below resumed_at_step {first:,}, which is the first step that is "
            "written again",
        ),
        Kind("twice", "step {step:,} twice in a row: write each step once, from one process"),
        Kind(
            "backwards",
            "step {step:,} after step {last:,}: write a run record with resumed_at_step {step:,} "
            "before it if the run was resumed",
        ),
        Kind(
            "width",
            "{key} has {entries:,} entries, expected one per routed expert (num_experts, without "
            "shared ones), or {otherwise}",
        ),
        Kind(
            "contradiction",
            "router.{name}[{index}] is {number:g}, but tokens_per_expert[{index}] gives "
            "{given:.5g}: write that of the same step, or leave it out",
        ),
        Kind("null", "{key} is null: write a number for every expert"),
        Kind("fractions", "{key} {why}"),
        Kind(
            "sum of shares",
            "{key} sums to {total:.0f}, expected {expected:.0f} for shares: scale the fractions to "
            "it and give what rounding leaves to the largest",
        ),
        Kind(
            "sum of a rank",
            "{key} sums to {total:.0f}, above tokens x top_k = {expected:.0f} of the global batch: "
            "count the pairs of one rank once, and all ranks in tokens",
        ),
        Kind(
            "sum",
            "{key} sums to {total:.0f}, expected tokens x top_k = {expected:.0f}: {times}count "
            "every selected pair once, of real tokens, all k choices, before any drop, over all "
            "ranks (not again in recomputed activations, not in evaluation)",
        ),
    )
}


class Problem(msgspec.Struct, frozen=True):
    """One problem of one line; an ``error`` breaks the format, a ``hint`` does not."""

    line: int
    severity: Severity
    code: str
    """The same mistake has the same code."""
    count: int
    """Number of problems that this one represents."""
    reason: str


class Problems:
    """Collects the problems of one line after the other."""

    def __init__(self) -> None:
        self.line = 0
        """The current line; new problems are of it."""
        self.found: list[Problem] = []
        """Those that are reported in full."""
        self._counted: Counter[str] = Counter()  # by code, as the next
        self._last: dict[str, Problem] = {}

    def say(self, name: str, code: str = "", /, **values: Any) -> None:
        """Add a problem of a kind of ``KINDS``; ``code`` if this kind has several."""
        kind = KINDS[name]
        if "value" in values:
            values["value"] = shown(values["value"])
        reason = kind.words.format(**values)
        problem = Problem(self.line, kind.severity, code or name, 1, reason)
        self._counted[problem.code] += 1
        if self._counted[problem.code] <= SAID_IN_FULL:
            self.found.append(problem)
        else:
            self._last[problem.code] = problem

    def expected(self, code: str, key: str, value: Any, expected: str) -> None:
        """Add that the format does not allow ``value``."""
        self.say("expected", code, key=key, value=value, expected=expected)

    def rest(self) -> Iterator[Problem]:
        """One summary for each code with more problems than are reported in full."""
        for code, last in self._last.items():
            more = self._counted[code] - SAID_IN_FULL
            reason = f"{more:,} more like the first {SAID_IN_FULL}; the last one: {last.reason}"
            yield replace(last, reason=reason, count=more)


def shown(value: Any) -> str:
    """A value from a log for a message: small ones as JSON, others by their kind."""
    if isinstance(value, list):
        return f"a list of {len(value):,}"
    if isinstance(value, dict):
        return "an object"
    return safe_text(json.dumps(value, ensure_ascii=False), 40)
