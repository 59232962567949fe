"""Validates a log against the format; strict where the reader is tolerant.

The validator reports line by line what breaks the format (``error``) and what a reader leaves out
although it is valid (``hint``): every field, in one walk over the tables of ``records``, the order
of the steps, and the counts. A trainer that counts twice, counts after the drop or computes a
summary from another step writes valid JSON: a row of counts has to sum to tokens × k, and summaries
can be recomputed from counts.
"""

import json
from collections import Counter
from collections.abc import Mapping
from difflib import get_close_matches
from functools import lru_cache
from itertools import islice
from typing import Any, cast

import msgspec

from microscope_tui import measures
from microscope_tui.runlog import records as form
from microscope_tui.runlog.decode import decode_line, pair_of
from microscope_tui.runlog.problems import Problem, Problems
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
_MAX_UNKNOWN_KEYS = 100
_MAX_KEY_LENGTH = 64
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
_SUMS = {"shares": "sum of shares", "local_rank": "sum of a rank"}
"""The kind of problem, for sources other than ``exact`` and ``top1``."""
_TYPES: dict[Any, str] = {dict: "an object", bool: "true or false", str: "a string"}


class LogValidator(Problems):
    """Checks one line after the other, with the state that later lines are checked against."""

    def __init__(self) -> None:
        super().__init__()
        self.records: Counter[str] = Counter()
        """Records by kind; those of unknown kinds together as ``other``."""
        self._header: RunRecord | None = None
        """The last run record; ``None`` where a reader cannot use it."""
        self._resumed_at = -1
        """The lowest number of the next step, if a run record gives one."""
        self._last_step = -1

    def check(self, line_number: int, line: bytes) -> None:
        """Add the problems of the next line; call it for every line of the log, in order."""
        self.line = line_number
        if not line.strip() or (fields := self._object_of(line)) is None:
            return
        kind = fields.get("kind")
        known = ", ".join(_KINDS)
        name = "other"
        if isinstance(kind, str) and kind in _KINDS:
            name = kind
        if name in ("step", "event") and not self.records.keys() & _KINDS:
            self.say("no run", kind=kind)
        self.records[name] += 1
        match name:
            case "run":
                self._run(fields, line)
            case "step":
                self._step(fields, line)
            case "event":
                self._fields("", fields, form.EVENT)
                if fields.get("event") is None:
                    self.say("event")
            case _ if isinstance(kind, str):
                self.say("unknown kind", value=kind, kinds=known)
            case _:
                self.expected("kind", "kind", kind, f"one of {known}: every record names its kind")

    def finish(self) -> list[Problem]:
        """All problems in the order of the lines, then a summary of each code with more."""
        return [*sorted(self.found, key=lambda problem: problem.line), *self.rest()]

    def _object_of(self, line: bytes) -> dict[str, Any] | None:
        """The object in a line; the reader tolerates some of what is reported here."""
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            self.say("utf-8", byte=line[error.start], at=error.start + 1)
            text = line.decode(errors="replace")
        bare: list[str] = []
        try:
            value = msgspec.json.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as refusal:
            try:
                value = json.loads(text, parse_constant=bare.append)
            except RecursionError:
                self.say("depth")
                return None
            except ValueError as error:
                self.say("json", why=safe_text(error).replace("line 1 ", ""))
                return None
            if bare:
                self.say("bare", count=len(bare), name=bare[0])
            elif isinstance(refusal, msgspec.MsgspecError):
                self.say("refused", "json", why=safe_text(refusal))
        if isinstance(value, dict):
            return value
        self.say("object", value=value)
        return None

    def _run(self, fields: dict[str, Any], line: bytes) -> None:
        model = fields.get("model")
        self._header = None
        try:
            record = decode_line(line)
            if isinstance(record, RunRecord):  # and not a step whose kind is written twice
                self._header = record
        except form.UnknownFormat as error:
            self.say("unusable", "format_version", why=error)
        except form.BadLine as error:
            code = "type model"
            if isinstance(model, dict):
                code = "model.layers"
            self.say("unusable", code, why=error)
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
                self.say("missing", f"missing {key}", key=key, expected="a number, or null")
        if self._header is None:
            return
        for index, router in enumerate(self._header.routers):
            key = f"model.layers[{index}]"
            depth = model["layers"][index]
            if depth is None:
                self.expected("model.layers[]", key, depth, "a depth")
            self._field(key, depth, form.COUNT, "model.layers[]")
            if 0 < router.num_experts < router.top_k:
                self.say("top_k above num_experts", router=router, index=index)

    def _step(self, fields: dict[str, Any], line: bytes) -> None:
        self._fields("", fields, STEP)
        if fields.get("step") is None:
            expected = "the number of optimizer steps completed, from 1"
            self.say("missing", "step", key="step", expected=expected)
        try:
            record = cast(StepRecord, decode_line(line))
        except form.BadLine:
            return  # its number is missing or a problem
        step = record.step
        if step < self._resumed_at:
            self.say("before resumed", step=step, first=self._resumed_at)
        elif step == self._last_step:
            self.say("twice", step=step)
        elif step < self._last_step:
            self.say("backwards", step=step, last=self._last_step)
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
        times = ""
        if expected and total and total % expected == 0:
            times = f"{total / expected:.0f} times as many, "
        name = _SUMS.get(header.counts, "sum")
        self.say(name, key=key, total=total, expected=expected, times=times)

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
                said = {"index": index, "number": number, "given": given}
                self.say("contradiction", f"contradiction router.{name}", name=name, **said)

    def _fields(self, inside: str, record: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
        """Check an object; unknown keys that look misspelt are reported.

        ``inside``: the path of the object, with its dot.
        """
        for name, rule in rules.items():
            self._field(inside + name, record.get(name), rule)
        for key in islice((key for key in record if key not in rules), _MAX_UNKNOWN_KEYS):
            close = _close_to(key[:_MAX_KEY_LENGTH].lower(), tuple(rules))
            for likely in [name for name in close if name not in record][:1]:
                code = f"misspelt {inside}{likely}"
                self.say("misspelt", code, key=inside + safe_text(key, 40), likely=likely)

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
            self.say("unprintable", key=key, value=value)
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
                said = {"entries": len(value), "routers": len(experts)}
                self.say("length", f"length {key}", key=key, **said)
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
            said = {"entries": len(row), "otherwise": rule.otherwise}
            self.say("width", f"width {code}", key=key, **said)
        elif rule.rule.fits_all(row):
            pass  # nearly always
        elif rule.rule.integer and form.holds_fractions(row):
            self.say("fractions", key=key, why=form.FRACTIONS)
        else:
            for expert, value in enumerate(row):
                place = f"{key}[{expert}]"
                if value is None and rule.null:
                    self.say("null", rule.null, key=place)
                self._field(place, value, rule.rule, code)


@lru_cache(maxsize=1024)
def _close_to(key: str, known: tuple[str, ...]) -> list[str]:
    return get_close_matches(key, known, 3, 0.8)  # takes longer than all else of a line


def _is_cleaned(text: str) -> bool:
    """Whether readers replace characters of it."""
    return REPLACEMENT in safe_text(text, 2 * len(text))


def _at(values: form.Values | None, index: int) -> float | None:
    """The entry of a router; ``None`` where there is none."""
    return values[index] if values and index < len(values) else None
