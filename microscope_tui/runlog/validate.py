"""Validates a log against the format; strict where the reader is tolerant.

The validator reports line by line what breaks the format (``error``) and what is valid but probably
not intended (``hint``): first every field, in one walk over the tables of ``records``, then the
parts of a step against each other. A trainer that counts twice, counts after the drop or computes a
summary from another step writes valid JSON: a row of counts has to sum to tokens × k, and summaries
can be recomputed from counts.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from microscope_tui import measures
from microscope_tui.runlog import records as form
from microscope_tui.runlog.decode import pair_of
from microscope_tui.runlog.problems import Problem, Problems

SUM_OF_SHARES = 1_000_000
_KINDS = ("run", "step", "event")
_CLOCK_SLACK_S = 1.0  # times are rounded, and clocks are set
_ENTROPY_SLACK = 5e-3  # relative: bf16 has eight bits
_ZERO_SLACK = 1e-6
_SUMMARIES = form.numbers_of(form.RouterSummary)
_NUMBERS = {name: rule for name, rule in form.numbers_of(form.StepRecord).items() if name != "step"}
STEP: dict[str, form.Rule] = {
    **dict.fromkeys(("kind", "step", *form.MATRICES)),
    **_NUMBERS,
    "incomplete": str,
    "losses": form.Each(form.NATS, named=True),
    "router": {name: form.PerRouter(rule) for name, rule in _SUMMARIES.items()},
}
_LIMITS: dict[str, Callable[[int], float]] = {
    **dict.fromkeys(("entropy", "mean_entropy"), math.log),
    **dict.fromkeys(("effective_experts", "max_load", "dead_experts", "starved_experts"), float),
}
"""How high a summary can be, from the number of experts of its router."""
_IN_NATS = "write nats, and divide sigmoid scores by their sum"
_NOT_LOOKED_AT = ": count only tensors that were looked at"
_PARTS = {
    ("entropy", "mean_entropy"): (
        "entropy above mean_entropy",
        ", which is impossible: mean_entropy is the entropy of the mean probability, entropy the "
        "mean of the tokens' entropies",
    ),
    ("dead_experts", "starved_experts"): (
        "starved below dead",
        ": count the dead ones among the starved",
    ),
    ("still_tensors", "looked_tensors"): ("looked below still_tensors", _NOT_LOOKED_AT),
    ("unchanged_tensors", "looked_tensors"): ("looked below unchanged_tensors", _NOT_LOOKED_AT),
}
"""A summary that is a part of another one: the class of the problem, and what to do."""
_FORMULAS = {
    "effective_experts": "exp(entropy of the counts)",
    "max_load": "max ÷ mean of the counts",
    "dead_experts": "the number of zero counts",
}
"""What follows from the counts of the same line, in words."""
_ROWS = {
    **dict.fromkeys(form.MATRICES[:2], ("means", "write [] where not measured")),
    "expert_bias": ("biases", "write [] for a router without one"),
    "tokens_per_expert": ("counts, or null where there are none", "write null where not counted"),
}
"""What a row holds, and what to write instead of one."""
T = TypeVar("T")
Summaries = dict[str, list[float | None]]
"""The sound values of each summary that the step has, one per router."""


class _Promise(NamedTuple):
    """What the run record declares about the steps after it; ``None`` if it does not."""

    num_experts: Sequence[int | None] = ()
    top_k: Sequence[int | None] = ()
    counts: str | None = None


class LogValidator(Problems):
    """Checks one line after the other, with the state that later lines are checked against."""

    def __init__(self) -> None:
        super().__init__()
        self.records: Counter[str] = Counter()
        """Records by kind; those of unknown kinds together as ``other``."""
        self._promise = _Promise()
        self._last_step: int | None = None
        self._resumed: tuple[int, int] | None = None  # first step to come, line of its record
        self._last_time: float | None = None  # of a step since the last run record
        self._ended_at: int | None = None  # line of an ``end`` that nothing may follow
        self._measured = False

    def check(self, line_number: int, line: bytes) -> None:
        """Add the problems of the next line; call it for every line of the log, in order."""
        self.line = line_number
        if (record := self.strict_object(line)) is not None:
            self._record(record)

    def finish(self) -> list[Problem]:
        """All problems in the order of the lines, then those that are known only at the end."""
        self.found.sort(key=lambda problem: problem.line)
        if self.records["step"] and not self._measured:
            self.say("no load")
        return [*self.found, *self.rest()]

    def _record(self, record: dict[str, Any]) -> None:
        kind = record.get("kind")
        known = ", ".join(_KINDS)
        name = kind if isinstance(kind, str) and kind in _KINDS else "other"
        self.records[name] += 1
        is_first = self.records["step"] + self.records["event"] == 1
        if is_first and name in ("step", "event") and not self.records["run"]:
            self.say("no run", kind=kind, version=form.FORMAT_VERSION)
        match kind:
            case "run":
                self._run(record)
            case "step":
                self._step(record)
            case "event":
                self._event(record)
            case str():
                self.say("unknown kind", value=kind, kinds=known)
            case _:
                expected = f"one of {known}: every record names its kind"
                self.unexpected("kind", "kind", kind, expected)

    def _run(self, record: dict[str, Any]) -> None:
        version = record.get("format_version")
        if type(version) is not int or version != form.FORMAT_VERSION:
            expected = f"{form.FORMAT_VERSION}: readers refuse the whole log otherwise"
            self.unexpected("format_version", "format_version", version, expected)
        said = self.checked_fields("", record, form.RUN)
        self._training(said["training"] or {})
        routers, before = self.routers, self._promise
        self._promise = self._model(record.get("model"), said["source"] or {})
        first = record.get("resumed_at_step")
        if self.records["run"] > 1 and first is None:
            self.say("no resumed_at_step")
        shape = (self.routers, *self._promise[:2])
        if routers is not None and (routers, *before[:2]) != shape:
            self.say("another model")
        if first is not None:
            self._last_step = None
            self._resumed = (first, self.line) if form.POSITIVE.fits(first) else None
        self._last_time = self._ended_at = None

    def _training(self, training: dict[str, Any]) -> None:
        for name in form.PAIRS:
            key, pair = f"training.{name}", training.get(name)
            if pair is not None and pair_of(pair) is None:
                self.unexpected(key, key, pair, "[trained, all], numbers of tensors")
        if not isinstance(missing := training.get("missing_targets") or [], list):
            key = "training.missing_targets"
            self.unexpected(key, key, missing, "a list of names")

    def _model(self, model: Any, source: dict[str, Any]) -> _Promise:
        counts = source.get("counts") or "exact"
        if not isinstance(model, dict):
            self.routers = None
            expected = "an object with layers, num_experts and top_k"
            self.unexpected("type model", "model", model, expected)
            return _Promise(counts=counts)
        self.routers = self._depths(model.get("layers"))
        said = self.checked_fields("model.", model, form.MODEL)
        experts = self._sizes(model, said, "num_experts")
        top_k = self._sizes(model, said, "top_k")
        for index, (e, k) in enumerate(zip(experts, top_k, strict=True)):
            if e is not None and k is not None and k > e:
                self.say("top_k above num_experts", k=k, e=e, index=index)
        if counts == "top1" and not {1, None}.issuperset(top_k):
            self.say("top1")
        return _Promise(experts, top_k, counts)

    def _depths(self, layers: Any) -> int | None:
        """Check the depths; the number of routers, ``None`` if unknown."""
        if not isinstance(layers, list) or len(layers) > form.MAX_ROUTERS:
            expected = f"a list of at most {form.MAX_ROUTERS:,} depths: one entry per router, "
            expected += "in forward order, 0-based, dense layers left out"
            self.unexpected("model.layers", "model.layers", layers, expected)
            return None
        for index, depth in enumerate(layers):
            key = f"model.layers[{index}]"
            if depth is None:
                self.unexpected("model.layers[]", key, depth, "a depth")
            self.checked(key, depth, form.COUNT, "model.layers[]")
        return len(layers)

    def _sizes(self, model: dict[str, Any], said: dict[str, Any], key: str) -> list[int | None]:
        """``num_experts`` or ``top_k`` of every router.

        An explicit null is valid, and 0 experts: other tools do not always log them.
        """
        value, routers = model.get(key), self.routers or 0
        if key not in model:
            expected = f"{form.POSITIVE.what}, or null"
            self.say("missing", f"missing model.{key}", key=f"model.{key}", expected=expected)
            return [None] * routers
        entries = value if isinstance(value, list) else [value]
        whole = [entry for entry in entries if type(entry) is int]
        if None in entries or (key == "num_experts" and 0 in whole):
            where = " for a router" if isinstance(value, list) else ""
            self.say("unknown", f"unknown model.{key}", key=f"model.{key}", where=where)
        known = [size or None for size in said[key] or ()] or [None]
        return known * routers if len(known) == 1 else known[:routers]

    def _step(self, record: dict[str, Any]) -> None:
        step: Any = record.get("step")
        time: Any = record.get("time")
        if step is None:
            expected = "the number of optimizer steps completed, from 1"
            self.say("missing", "step", key="step", expected=expected)
        if self.checked("step", step, form.COUNT) is not None:
            self._order(step)
        if form.TIME.fits(time):
            if self._last_time is not None and time < self._last_time - _CLOCK_SLACK_S:
                self.say("clock", time=time, back=self._last_time - time)
            self._last_time = time
        if self._ended_at is not None:
            self.say("after end", line=self._ended_at)
        self._contents(record)

    def _order(self, step: int) -> None:
        last = step if self._last_step is None else self._last_step
        if self._resumed is not None and step < self._resumed[0]:
            self.say("before resumed", step=step, first=self._resumed[0], line=self._resumed[1])
        elif step == self._last_step:
            self.say("twice", step=step)
        elif step < last:
            self.say("backwards", step=step, last=last)
        self._last_step = step
        self._resumed = None

    def _event(self, record: dict[str, Any]) -> None:
        said = self.checked_fields("", record, form.EVENT)
        if record.get("event") is None:
            self.say("event")
        if said["event"] == "end":
            self._ended_at = self.line
            if said["reason"] not in form.END_REASONS:
                self.say("reason", value=said["reason"], known=", ".join(form.END_REASONS))

    def _contents(self, record: dict[str, Any]) -> None:
        keys = list(record)
        present = [key for key in form.MATRICES if key in record]
        if keys[0] != "kind" or keys[len(keys) - len(present) :] != present:
            self.say("key order", keys=" and ".join(present) or "the matrices")
        said = self.checked_fields("", record, STEP)
        router = (said["router"] or {}).items()
        summaries = {name: values for name, values in router if values is not None}
        self._compare_limits(summaries)
        self._compare_parts(summaries)
        for name in form.MATRICES[:3]:
            for _, key, row in self._rows(name, record.get(name)):
                if not set(map(type, row)) <= {int, float}:  # at C speed: most of a line
                    self._measurements(name, key, row)
        counts = record.get("tokens_per_expert")
        self._counts(counts, said["tokens"], summaries)
        self._measured |= counts is not None or "effective_experts" in summaries

    def _measurements(self, name: str, key: str, row: list[Any]) -> None:
        for expert, value in enumerate(row):
            place = f"{key}[{expert}]"
            if value is None and name == "expert_bias":
                instead = "write a number for every expert, or [] for the row"
                self.say("null", f"null in {name}", key=place, instead=instead)
                return
            self.checked(place, value, form.ANY, name)

    def _compare_limits(self, summaries: Summaries) -> None:
        for name, limit_of in _LIMITS.items():
            slack = _ENTROPY_SLACK if limit_of is math.log else form.SLACK
            pairs = zip(summaries.get(name, ()), self._promise.num_experts, strict=False)
            for index, (number, experts) in enumerate(pairs):
                if number is None or experts is None:
                    continue
                limit = limit_of(experts)
                if number <= limit * (1 + slack) + _ZERO_SLACK:
                    continue
                above = f"above num_experts {experts}: expected {_SUMMARIES[name].what}"
                if limit_of is math.log:
                    above = f"above ln {experts} = {limit:.4g}: {_IN_NATS}"
                self._of_router(f"range router.{name}", name, index, number, above)

    def _compare_parts(self, summaries: Summaries) -> None:
        for (part, whole), (code, words) in _PARTS.items():
            slack = _ENTROPY_SLACK if whole == "mean_entropy" else 0.0
            pairs = zip(summaries.get(part, ()), summaries.get(whole, ()), strict=False)
            for index, (least, number) in enumerate(pairs):
                if least is None or number is None:
                    continue
                if least > number + slack * max(number, 0.1):
                    below = f"below router.{part}[{index}] = {least:g}{words}"
                    self._of_router(code, whole, index, number, below)

    def _of_router(self, code: str, name: str, index: int, number: float, limit: str) -> None:
        self.say("router", code, name=name, index=index, number=number, limit=limit)

    def _rows(self, name: str, value: Any) -> Iterator[tuple[int, str, list[Any]]]:
        """Index, name and entries of every row that has the right width."""
        what, otherwise = _ROWS[name]
        if value == [] and name == "expert_bias":
            return  # no router has one
        for index, row in enumerate(self.per_router(name, value) or ()):
            key = f"{name}[{index}]"
            experts = _at(self._promise.num_experts, index)
            if row is None or (row == [] and "[]" in otherwise):
                continue
            if not isinstance(row, list):
                self.unexpected(f"type {name}", key, row, f"a list of {what}")
            elif not row or experts not in (None, len(row)):
                expected = "at least one" if experts is None else f"num_experts = {experts:,}"
                said = {"entries": len(row), "expected": expected, "otherwise": otherwise}
                self.say("width", f"width {name}", key=key, **said)
            else:
                yield index, key, row

    def _counts(self, value: Any, tokens: int | None, summaries: Summaries) -> None:
        """Also checks the summaries of the same rows."""
        counts = self._promise.counts
        own, unrouted = (summaries.get(name, ()) for name in ("tokens", "unrouted"))
        if isinstance(value, list) and tokens is None and not own and counts != "shares":
            self.say("no tokens")
        for index, key, row in self._rows("tokens_per_expert", value):
            if set(map(type, row)) != {int} or min(row) < 0 or max(row) > form.COUNT.high:
                self._not_counts(key, row)
                continue
            here = _at(own, index)
            here = tokens if here is None else here
            self._check_sum(index, row, here, int(_at(unrouted, index) or 0))
            if counts in ("exact", "top1", "shares") and any(row):
                self._compare(summaries, index, row)

    def _not_counts(self, key: str, row: list[Any]) -> None:
        if form.holds_fractions(row):
            self.say("fractions", key=key, why=form.FRACTIONS)
            return
        expert = next(e for e, n in enumerate(row) if not form.COUNT.fits(n))
        place = f"{key}[{expert}]"
        if row[expert] is None:
            self.say("null", "null in counts", key=place, instead="write a count, 0 for none")
        self.checked(place, row[expert], form.COUNT, "tokens_per_expert")

    def _check_sum(self, index: int, row: list[int], tokens: float | None, unrouted: int) -> None:
        key = f"tokens_per_expert[{index}]"
        total = sum(row) + unrouted
        counts = self._promise.counts
        top_k = _at(self._promise.top_k, index)
        if counts == "shares":
            if total != SUM_OF_SHARES:
                self.say("sum of shares", key=key, total=total, expected=SUM_OF_SHARES)
            return
        if counts in (None, "none") or top_k is None or tokens is None:
            return
        expected = int(tokens) * top_k
        if counts == "local_rank":
            if total > expected:
                self.say("sum of a rank", key=key, total=total, expected=expected)
        elif total != expected:
            advice = (
                "count every selected pair once, all k choices, before any drop, over all ranks"
            )
            if expected and total and total % expected == 0:
                advice = (
                    f"{total // expected} times as many, count every selected pair once "
                    "(not again in recomputed activations, not in evaluation)"
                )
            elif total > expected:
                advice = "count every selected pair once, real tokens only (no padding)"
            named = f"{key} + router.unrouted[{index}]" if unrouted else key
            self.say("sum", key=named, total=total, expected=expected, advice=advice)
        if max(row) > tokens:
            expert = row.index(max(row))
            self.say("above tokens", key=f"{key}[{expert}]", count=row[expert], tokens=int(tokens))

    def _compare(self, summaries: Summaries, index: int, row: list[int]) -> None:
        for name, formula in _FORMULAS.items():
            value = _at(summaries.get(name, ()), index)
            expected = measures.DERIVED[name](row)
            if value is None or expected is None:
                continue
            if name == "dead_experts" and self._promise.counts == "shares":
                continue  # a share may round to zero
            if abs(value - expected) > form.SLACK * max(1.0, expected):
                limit = f"but tokens_per_expert[{index}] gives {expected:.5g}: write {formula} "
                limit += "of the same step, or leave it out"
                self._of_router(f"contradiction router.{name}", name, index, value, limit)


def _at(values: Sequence[T], index: int) -> T | None:
    return values[index] if index < len(values) else None
