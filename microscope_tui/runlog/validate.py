"""Validates a log against the format; strict where the reader is tolerant.

The validator reports line by line what breaks the format: every field, in one walk over the tables
of ``records``, the order of the steps, and the counts. A trainer that counts twice, counts after
the drop or computes a summary from another step writes valid JSON: a row of counts has to sum to
tokens × k, and summaries can be recomputed from counts.

A writer with one mistake makes it on every line: the first twenty problems of each code are
reported in full, and the rest as one line with their number.
"""

import json
from collections import Counter
from collections.abc import Mapping
from operator import attrgetter
from typing import Any, cast

import msgspec
from msgspec.structs import replace

from microscope_tui import measures
from microscope_tui.runlog import records as form
from microscope_tui.runlog.decode import decode_line, pair_of
from microscope_tui.runlog.reader import StepEntry
from microscope_tui.runlog.records import (
    Each,
    Number,
    PerExpert,
    PerRouter,
    RouterSummary,
    Rule,
    RunRecord,
    StepRecord,
)
from microscope_tui.runlog.safe_text import REPLACEMENT, safe_text

SUM_OF_SHARES = 1_000_000
_KINDS = ("run", "step", "event")
SAID_IN_FULL = 20
_SUMMARIES = form.numbers_of(form.RouterSummary)
STEP: dict[str, Rule] = {
    "kind": None,
    **form.numbers_of(form.StepRecord),
    "incomplete": str,
    "losses": Each(form.NATS, named=True),
    "router": {name: PerRouter(rule) for name, rule in _SUMMARIES.items()},
    **dict.fromkeys(form.MATRICES[:2], PerRouter(PerExpert(form.ANY))),
    "expert_bias": PerRouter(PerExpert(form.ANY, null="null in expert_bias")),
    "tokens_per_expert": PerRouter(PerExpert(form.COUNT, "null", "null in counts")),
}
_TYPES: dict[Any, str] = {dict: "an object", bool: "true or false", str: "a string"}


class Problem(msgspec.Struct, frozen=True):
    """One problem of one line."""

    line: int
    code: str
    """The same mistake has the same code."""
    count: int
    """Number of problems that this one represents."""
    reason: str
    """What is wrong, and after the colon what to write instead."""


class LogValidator:
    """Checks one line after the other, with the state that later lines are checked against."""

    def __init__(self) -> None:
        self.line = 0
        """The current line; new problems are of it."""
        self.records: Counter[str] = Counter()
        """Records by kind; those of unknown kinds together as ``other``."""
        self.found: list[Problem] = []
        """Those that are reported in full."""
        self._counted: Counter[str] = Counter()  # by code, as the next
        self._last: dict[str, Problem] = {}
        self._header: RunRecord | None = None
        """The last run record; ``None`` where a reader cannot use it."""
        self._resumed_at = -1
        """The lowest number of the next step, if a run record gives one."""
        self._last_step = -1

    def say(self, code: str, reason: str) -> None:
        """Add a problem of the current line."""
        problem = Problem(self.line, code, 1, reason)
        self._counted[code] += 1
        if self._counted[code] <= SAID_IN_FULL:
            self.found.append(problem)
        else:
            self._last[code] = problem

    def expected(self, code: str, key: str, value: Any, expected: str) -> None:
        """Add that the format does not allow ``value``."""
        self.say(code, f"{key} is {_shown(value)}, expected {expected}")

    def finish(self) -> list[Problem]:
        """All problems in the order of the lines, then a summary of each code with more."""
        found = sorted(self.found, key=attrgetter("line"))
        for code, last in self._last.items():
            more = self._counted[code] - SAID_IN_FULL
            reason = f"{more:,} more like the first {SAID_IN_FULL}; the last one: {last.reason}"
            found.append(replace(last, reason=reason, count=more))
        return found

    def check(self, line_number: int, line: bytes) -> None:
        """Add the problems of the next line; call it for every line of the log, in order."""
        self.line = line_number
        if not line.strip() or (fields := self._object_of(line)) is None:
            return
        kind = fields.get("kind")
        name = "other"
        if isinstance(kind, str) and kind in _KINDS:
            name = kind
        if name in ("step", "event") and not self.records.keys() & _KINDS:
            self.say(
                "no run",
                f"a {kind} before any run record: write the run record first, with format_version "
                "and model.layers, num_experts and top_k",
            )
        self.records[name] += 1
        match name:
            case "run":
                self._run(fields, line)
            case "step":
                self._step(fields, line)
            case "event":
                self._fields("", fields, form.EVENT)
                if fields.get("event") is None:
                    self.say(
                        "event",
                        'an event without a name: write "event": "eval", "checkpoint" …',
                    )
            case _ if not isinstance(kind, str):
                known = ", ".join(_KINDS)
                self.expected("kind", "kind", kind, f"one of {known}: every record names its kind")

    def _object_of(self, line: bytes) -> dict[str, Any] | None:
        """The object in a line; the reader tolerates some of what is reported here."""
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            byte, at = line[error.start], error.start + 1
            self.say(
                "utf-8", f"not UTF-8: byte {byte:#04x} at byte {at:,}: write the file as UTF-8"
            )
            text = line.decode(errors="replace")
        bare: list[str] = []
        try:
            value = msgspec.json.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as refusal:
            try:
                value = json.loads(text, parse_constant=bare.append)
            except RecursionError:
                reason = "nested too deeply to be a record: write flat lists and objects"
                self.say("depth", reason)
                return None
            except ValueError as error:
                why = safe_text(error).replace("line 1 ", "")
                self.say("json", f"not JSON: {why}: write one whole JSON object a line")
                return None
            if bare:
                number = f"{len(bare)} bare {bare[0]}"
                self.say("bare", f'{number}, which is not JSON: write the string "{bare[0]}"')
            elif isinstance(refusal, msgspec.MsgspecError):
                self.say(
                    "json",
                    f"a strict JSON reader refuses this line ({safe_text(refusal)}): write finite "
                    "numbers of usual size, and text without lone surrogates",
                )
        if isinstance(value, dict):
            return value
        self.say("object", f"{_shown(value)}, not an object: write one JSON object a line")
        return None

    def _run(self, fields: dict[str, Any], line: bytes) -> None:
        model = fields.get("model")
        self._header = None
        try:
            record = decode_line(line)
            if isinstance(record, RunRecord):  # and not a step whose kind is written twice
                self._header = record
        except form.UnknownFormat as error:
            self.say("format_version", str(error))
        except form.BadLine as error:
            code = "type model"
            if isinstance(model, dict):
                code = "model.layers"
            self.say(code, str(error))
        self._fields("", fields, form.RUN)
        training = fields.get("training")
        if isinstance(training, dict):
            self._training(training)
        if isinstance(model, dict):
            self._model(model)
        if self._header is not None and self._header.resumed_at_step is not None:
            self._resumed_at = self._header.resumed_at_step
            self._last_step = -1

    def _training(self, training: dict[str, Any]) -> None:
        for name in form.PAIRS:
            key = f"training.{name}"
            pair = training.get(name)
            if pair is not None and pair_of(pair) is None:
                self.expected(key, key, pair, "[trained, all], numbers of tensors")
        key = "training.missing_targets"
        missing = training.get("missing_targets") or []
        if not isinstance(missing, list):
            self.expected(key, key, missing, "a list of names")

    def _model(self, model: dict[str, Any]) -> None:
        self._fields("model.", model, form.MODEL)
        for name in ("num_experts", "top_k"):
            if name not in model:
                key = f"model.{name}"
                self.say(f"missing {key}", f"{key} is missing: write a number, or null")
        if self._header is None:
            return
        for index, router in enumerate(self._header.routers):
            key = f"model.layers[{index}]"
            depth = model["layers"][index]
            if depth is None:
                self.expected("model.layers[]", key, depth, "a depth")
            self._field(key, depth, form.COUNT, "model.layers[]")
            if 0 < router.num_experts < router.top_k:
                self.say(
                    "top_k above num_experts",
                    f"top_k {router.top_k:,} of router {index} is above its num_experts "
                    f"{router.num_experts:,}: write how many different experts a token chooses",
                )

    def _step(self, fields: dict[str, Any], line: bytes) -> None:
        self._fields("", fields, STEP)
        if fields.get("step") is None:
            expected = "the number of optimizer steps completed, from 1"
            self.say("step", f"step is missing: write {expected}")
        try:
            record = cast(StepRecord, decode_line(line))
        except form.BadLine:
            return  # its number is missing or a problem
        step = record.step
        if step < self._resumed_at:
            self.say(
                "before resumed",
                f"step {step:,} is below resumed_at_step {self._resumed_at:,}, which is the first "
                "step that is written again",
            )
        elif step == self._last_step:
            reason = f"step {step:,} twice in a row: write each step once, from one process"
            self.say("twice", reason)
        elif step < self._last_step:
            self.say(
                "backwards",
                f"step {step:,} after step {self._last_step:,}: write a run record with "
                f"resumed_at_step {step:,} before it if the run was resumed",
            )
        self._last_step = step
        self._resumed_at = -1
        if (header := self._header) is not None:
            rows = StepEntry(record, line, len(header.routers)).matrices().tokens_per_expert
            for index, row in enumerate(rows):
                if row is not None:
                    self._check_sum(header, index, row, record)
                    if header.counts in ("exact", "top1", "shares") and any(row):
                        self._compare(header.counts, index, row, record.router)

    def _check_sum(self, header: RunRecord, index: int, row: list[int], step: StepRecord) -> None:
        """Compare the sum of a row of counts with what its source promises."""
        top_k = header.routers[index].top_k
        tokens = _at(step.router.tokens, index)
        if tokens is None:
            tokens = step.tokens
        expected = float(SUM_OF_SHARES)
        if header.counts != "shares":
            if header.counts == "none" or not top_k or tokens is None:
                return
            expected = tokens * top_k
        key = f"tokens_per_expert[{index}]"
        total: float = sum(row)
        if unrouted := _at(step.router.unrouted, index):
            key += f" + router.unrouted[{index}]"
            total += unrouted
        if total == expected or (header.counts == "local_rank" and total < expected):
            return
        summed = f"{key} sums to {total:.0f}"
        if header.counts == "shares":
            self.say(
                "sum of shares",
                f"{summed}, expected {expected:.0f} for shares: scale the fractions to it and give "
                "what rounding leaves to the largest",
            )
        elif header.counts == "local_rank":
            self.say(
                "sum of a rank",
                f"{summed}, above tokens x top_k = {expected:.0f} of the global batch: count the "
                "pairs of one rank once, and all ranks in tokens",
            )
        else:
            times = ""
            if expected and total and total % expected == 0:
                times = f"{total / expected:.0f} times as many, "
            self.say(
                "sum",
                f"{summed}, expected tokens x top_k = {expected:.0f}: {times}count every selected "
                "pair once, of real tokens, all k choices, before any drop, over all ranks (not "
                "again in recomputed activations, not in evaluation)",
            )

    def _compare(self, counts: str, index: int, row: list[int], summaries: RouterSummary) -> None:
        """Compare the summaries of a router with its counts: readers take the summaries."""
        for name in ("effective_experts", "max_load", "dead_experts"):
            number = _at(getattr(summaries, name), index)
            given = measures.DERIVED[name](row)
            if number is None or given is None:
                continue
            if counts == "shares" and name == "dead_experts":
                continue  # a share may round to zero
            if abs(number - given) > form.SLACK * max(1.0, given):
                self.say(
                    f"contradiction router.{name}",
                    f"router.{name}[{index}] is {number:g}, but tokens_per_expert[{index}] gives "
                    f"{given:.5g}: write that of the same step, or leave it out",
                )

    def _fields(self, inside: str, record: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
        """Check the known keys of an object; ``inside``: its path, with its dot."""
        for name, rule in rules.items():
            self._field(inside + name, record.get(name), rule)

    def _field(self, key: str, value: Any, rule: Rule, code: str = "", experts: int = 0) -> None:
        """Check a value and all that it holds.

        Args:
            key: Where it is, as shown.
            value: As decoded from JSON; ``None`` is never a problem.
            rule: What the format allows there.
            code: Of the problem where ``key`` holds an index, so that there are not too many.
            experts: Of the router that the value is of; 0 if unknown.
        """
        code = code or key
        if value is None or rule is None:
            return
        if isinstance(rule, Number):
            self._number(key, value, rule, code, experts)
        elif isinstance(rule, PerRouter):
            self._entries(key, value, rule)
        elif isinstance(rule, PerExpert):
            self._row(key, value, rule, code, experts)
        elif isinstance(rule, Each | Mapping):
            self._object(key, value, rule)
        else:
            self._text(key, value, rule, code)

    def _object(self, key: str, value: Any, rule: Each | Mapping[str, Rule]) -> None:
        if not isinstance(value, dict):
            self._text(key, value, dict, key)
        elif not isinstance(rule, Each):
            self._fields(f"{key}.", value, rule)
        else:
            for name, inner in value.items():
                if rule.named:
                    self._text(f"a key of {key}", name, str, key)
                self._field(f"a {rule.noun} of {key}", inner, rule.value)

    def _text(self, key: str, value: Any, rule: Any, code: str) -> None:
        """Check a text, or a value of which only the type is checked."""
        kind: type = rule if isinstance(rule, type) else str
        if not isinstance(value, kind):
            self.expected(f"type {code}", key, value, _TYPES[kind])
        elif isinstance(value, str) and not value.isprintable() and _is_cleaned(value):
            self.say(
                "unprintable",
                f"{key} is {_shown(value)} with control characters: write plain text, screens do "
                "not show them",
            )
        elif isinstance(rule, tuple) and value not in rule:
            self.expected(f"choice {code}", key, value, f"one of {', '.join(rule)}")

    def _number(self, key: str, value: Any, rule: Number, code: str, experts: int) -> None:
        named = isinstance(value, str) and value in form.NON_FINITE
        if named and rule.non_finite:
            return
        if rule.fits(value):
            if experts and rule.most is not None and value > rule.most(experts):
                self.expected(f"range {code}", key, value, f"{rule.what} (E = {experts})")
        elif named or type(value) is int or (type(value) is float and not rule.integer):
            self.expected(f"range {code}", key, value, rule.what)
        else:
            self.expected(f"type {code}", key, value, f"{rule.what}, or null")

    def _entries(self, key: str, value: Any, rule: PerRouter) -> None:
        """Check a list with one entry per router."""
        if rule.shared and not isinstance(value, list):
            self._field(key, value, rule.rule)
        elif value == [] and key == "expert_bias":
            pass  # no router has one
        elif not isinstance(value, list):
            expected = "a list with one entry per router of model.layers"
            self.expected(f"type {key}", key, value, expected)
        else:
            experts = [0] * len(value)
            if self._header is not None:
                experts = [router.num_experts for router in self._header.routers]
            if len(experts) != len(value):
                self.say(
                    f"length {key}",
                    f"{key} has {len(value):,} entries for {len(experts):,} routers: write one for "
                    "each entry of model.layers, and null for a router without a value",
                )
                return
            for index, entry in enumerate(value):
                self._field(f"{key}[{index}]", entry, rule.rule, key, experts[index])

    def _row(self, key: str, row: Any, rule: PerExpert, code: str, experts: int) -> None:
        """Check a row of a matrix."""
        if row == [] and rule.otherwise == "[]":
            return
        if not isinstance(row, list):
            self.expected(f"type {code}", key, row, f"a list, or {rule.otherwise}")
        elif not row or (experts and len(row) != experts):
            self.say(
                f"width {code}",
                f"{key} has {len(row):,} entries, expected one per routed expert (num_experts, "
                f"without shared ones), or {rule.otherwise}",
            )
        elif rule.rule.fits_all(row):
            pass  # nearly always
        elif rule.rule.integer and form.holds_fractions(row):
            self.say("fractions", f"{key} {form.FRACTIONS}")
        else:
            for expert, value in enumerate(row):
                place = f"{key}[{expert}]"
                if value is None and rule.null:
                    self.say(rule.null, f"{place} is null: write a number for every expert")
                self._field(place, value, rule.rule, code)


def _shown(value: Any) -> str:
    """A value from a log for a message: small ones as JSON, others by their kind."""
    if isinstance(value, list):
        return f"a list of {len(value):,}"
    if isinstance(value, dict):
        return "an object"
    return safe_text(json.dumps(value, ensure_ascii=False), 40)


def _is_cleaned(text: str) -> bool:
    """Whether readers replace characters of it."""
    return REPLACEMENT in safe_text(text, 2 * len(text))


def _at(values: form.Values | None, index: int) -> float | None:
    """The entry of a router; ``None`` where there is none."""
    return values[index] if values and index < len(values) else None
