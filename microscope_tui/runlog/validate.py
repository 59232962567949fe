"""Validates a log against the format; strict where the reader is tolerant.

The reader saves what it can, which is right for monitoring and wrong while a writer is being
developed. The validator reports line by line what breaks the format (``error``) and what is valid
but probably not intended (``hint``): first every field by the tables of ``records``, then the
parts of a step against each other. A trainer that counts twice, counts after the drop or computes
a summary from another step writes valid JSON. Such mistakes are found because a row of counts has
to sum to tokens × k and because summaries can be recomputed from counts.
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
    **dict.fromkeys(("losses", "router"), dict),
    "incomplete": str,
}
_FORMULAS = {
    "effective_experts": "exp(entropy of the counts)",
    "max_load": "max ÷ mean of the counts",
    "dead_experts": "the number of zero counts",
}
"""What follows from the counts of the same line, in words."""
_ROWS = {
    "mean_weight": ("means", "write [] where not measured"),
    "mean_output_norm": ("means", "write [] where not measured"),
    "expert_bias": ("biases", "write [] for a router without one"),
    "tokens_per_expert": ("counts, or null where there are none", "write null where not counted"),
}
"""What a row holds, and what to write instead of one."""
T = TypeVar("T")
Summaries = dict[str, list[float | None]]


class _Promise(NamedTuple):
    """What the run record declares about the steps after it; ``None`` if it does not."""

    routers: int | None = None
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

    def check(self, line_number: int, line: bytes) -> list[Problem]:
        """The problems of this line."""
        self.line = line_number
        if (record := self.strict_object(line)) is not None:
            self._record(record)
        return self.new()

    def finish(self) -> list[Problem]:
        """Problems that are known only at the end of the log, and the summaries."""
        if self.records["step"] and not self._measured:
            self.say("no load")
        return [*self.new(), *self.rest()]

    def _record(self, record: dict[str, Any]) -> None:
        kind, known = record.get("kind"), ", ".join(_KINDS)
        name = kind if isinstance(kind, str) and kind in _KINDS else "other"
        self.records[name] += 1
        if name == "run":
            self._run(record)
        elif name != "other":
            if not self.records["run"] and self.records["step"] + self.records["event"] == 1:
                self.say("no run", kind=kind, version=form.FORMAT_VERSION)
            self._step(record) if name == "step" else self._event(record)
        elif isinstance(kind, str):
            self.say("unknown kind", value=kind, kinds=known)
        else:
            expected = f"one of {known}: every record names its kind"
            self.unexpected("kind", "kind", kind, expected)

    def _run(self, record: dict[str, Any]) -> None:
        before, self._promise = self._promise, self._check_run(record)
        first = record.get("resumed_at_step")
        if self.records["run"] > 1 and first is None:
            self.say("no resumed_at_step")
        if before.routers is not None and before[:3] != self._promise[:3]:
            self.say("another model")
        if first is not None:
            self._last_step = None
            self._resumed = (first, self.line) if form.POSITIVE.fits(first) else None
        self._last_time = self._ended_at = None

    def _step(self, record: dict[str, Any]) -> None:
        step: Any = record.get("step")
        time: Any = record.get("time")
        if step is None:
            expected = "the number of optimizer steps completed, from 1"
            self.say("missing", "step", key="step", expected=expected)
        if self.checked("step", step, form.COUNT) is not None:
            self._check_order(step)
        if form.TIME.fits(time):
            if self._last_time is not None and time < self._last_time - _CLOCK_SLACK_S:
                self.say("clock", time=time, back=self._last_time - time)
            self._last_time = time
        if self._ended_at is not None:
            self.say("after end", line=self._ended_at)
        self._check_step(record)

    def _check_order(self, step: int) -> None:
        last = step if self._last_step is None else self._last_step
        if self._resumed is not None and step < self._resumed[0]:
            self.say("before resumed", step=step, first=self._resumed[0], line=self._resumed[1])
        elif step == self._last_step:
            self.say("twice", step=step)
        elif step < last:
            self.say("backwards", step=step, last=last)
        self._last_step, self._resumed = step, None

    def _event(self, record: dict[str, Any]) -> None:
        said = self.checked_fields("", record, form.EVENT)
        for key in said["values"] or ():
            self.checked("a key of values", key, str)
        if record.get("event") is None:
            self.say("event")
        if said["event"] == "end":
            self._ended_at = self.line
            if said["reason"] not in form.END_REASONS:
                self.say("reason", value=said["reason"], known=", ".join(form.END_REASONS))

    def _check_run(self, record: dict[str, Any]) -> _Promise:
        """Check a ``run`` record and return what it declares."""
        version, model = record.get("format_version"), record.get("model")
        if type(version) is not int or version != form.FORMAT_VERSION:
            expected = f"{form.FORMAT_VERSION}: readers refuse the whole log otherwise"
            self.unexpected("format_version", "format_version", version, expected)
        said = self.checked_fields("", record, form.RUN)
        balance = self.checked_fields("balance.", said["balance"] or {}, form.BALANCE)
        for name in (balance["names"] or {}).values():
            self.checked("a name of balance.names", name, str)
        training = self.checked_fields("training.", said["training"] or {}, form.TRAINING)
        for key, pair in ((f"training.{name}", training[name]) for name in form.PAIRS):
            if pair is not None and pair_of(pair) is None:
                self.unexpected(key, key, pair, "[trained, all], numbers of tensors")
        for number in (training["adapters"] or {}).values():
            self.checked("a number of training.adapters", number, form.COUNT)
        if not isinstance(missing := training["missing_targets"] or [], list):
            key = "training.missing_targets"
            self.unexpected(key, key, missing, "a list of names")
        source = self.checked_fields("source.", said["source"] or {}, form.SOURCE)
        counts = source["counts"] or "exact"
        if not isinstance(model, dict):
            expected = "an object with layers, num_experts and top_k"
            self.unexpected("type model", "model", model, expected)
            return _Promise(counts=counts)
        self.checked_fields("model.", model, form.MODEL)
        routers = self._check_layers(model)
        experts = self._per_router_integer(model, "num_experts", routers)
        top_k = self._per_router_integer(model, "top_k", routers)
        for index, (e, k) in enumerate(zip(experts, top_k, strict=True)):
            if e is not None and k is not None and k > e:
                self.say("top_k above num_experts", k=k, e=e, index=index)
        if counts == "top1" and any(k not in (1, None) for k in top_k):
            self.say("top1")
        return _Promise(routers, experts, top_k, counts)

    def _check_layers(self, model: dict[str, Any]) -> int | None:
        """Check depths, names and score functions; the number of routers, ``None`` if unknown."""
        layers, routers = model.get("layers"), None
        if not isinstance(layers, list) or not 0 < len(layers) <= form.MAX_ROUTERS:
            expected = f"a list of 1 to {form.MAX_ROUTERS:,} depths: one entry per router, "
            expected += "in forward order, 0-based, dense layers left out"
            self.unexpected("model.layers", "model.layers", layers, expected)
        else:
            routers = len(layers)
            for index, depth in enumerate(layers):
                key = f"model.layers[{index}]"
                if depth is None:
                    self.unexpected("model.layers[]", key, depth, "a depth")
                self.checked(key, depth, form.COUNT, "model.layers[]")
        for key in ("layer_names", "score_function"):
            texts, name = model.get(key), f"model.{key}"
            if isinstance(texts, list) or key == "layer_names":
                texts = self.per_router(name, texts, routers) or []
            for text in texts if isinstance(texts, list) else [texts]:
                self.checked(name, text, str)
        return routers

    def _per_router_integer(
        self, model: dict[str, Any], key: str, routers: int | None
    ) -> list[int | None]:
        """``num_experts`` or ``top_k``, which may be one number or one per router.

        An explicit null is valid, and 0 experts: other tools do not always log them.
        """
        name, value, length = f"model.{key}", model.get(key), routers or 0

        def is_unknown(entry: Any) -> bool:
            none = type(entry) is int and entry == 0 and key == "num_experts"
            return entry is None or none

        if key not in model:
            expected = f"{form.POSITIVE.what}, or null"
            self.say("missing", f"missing {name}", key=name, expected=expected)
            return [None] * length
        each, given = isinstance(value, list), value if isinstance(value, list) else [value]
        if any(map(is_unknown, given)):
            where = " for a router" if each else ""
            self.say("unknown", f"unknown {name}", key=name, where=where)
        entries = self.per_router(name, value, routers) or [None] * length if each else given
        known = [
            None if is_unknown(entry) else self.checked(name, entry, form.POSITIVE)
            for entry in entries
        ]
        return known[:length] if each else known * length

    def _check_step(self, record: dict[str, Any]) -> None:
        """Check everything of a step but its place in the run."""
        keys = list(record)
        present = [key for key in form.MATRICES if key in record]
        if keys[0] != "kind" or keys[len(keys) - len(present) :] != present:
            self.say("key order", keys=" and ".join(present) or "the matrices")
        said = self.checked_fields("", record, STEP)
        for name, value in (said["losses"] or {}).items():
            self.checked("a key of losses", name, str)
            self.checked("a value of losses", value, form.NATS)
        summaries = self._summaries(said["router"] or {})
        for name in ("mean_weight", "mean_output_norm", "expert_bias"):
            for _, key, row in self._rows(name, record.get(name)):
                if set(map(type, row)) <= {int, float}:  # at C speed: they are most of a line
                    continue
                for expert, value in enumerate(row):
                    place = f"{key}[{expert}]"
                    if value is None and name == "expert_bias":
                        instead = "write a number for every expert, or [] for the row"
                        self.say("null", f"null in {name}", key=place, instead=instead)
                        break
                    self.checked(place, value, form.ANY, name)
        counts = record.get("tokens_per_expert")
        self._check_counts(counts, said["tokens"], summaries)
        self._measured |= counts is not None or "effective_experts" in summaries

    def _summaries(self, router: dict[str, Any]) -> Summaries:
        """The usable summaries by name."""
        self.checked_fields("router.", router, dict.fromkeys(_SUMMARIES))
        summaries: Summaries = {}
        for name, rule in _SUMMARIES.items():
            key = f"router.{name}"
            values = self.per_router(key, router.get(name), self._promise.routers)
            if values is not None:
                summaries[name] = [
                    self.checked(f"{key}[{index}]", value, rule, key)
                    for index, value in enumerate(values)
                ]
        entropies = ("entropy", "mean_entropy")
        instead = "write nats, and divide sigmoid scores by their sum"
        self._check_above(summaries, entropies, math.log, f"ln {{0}} = {{1:.4g}}: {instead}")
        instead = "the entropy of the mean probability, entropy the mean of the tokens' entropies"
        instead = f", which is impossible: mean_entropy is {instead}"
        code = "entropy above mean_entropy"
        self._check_pair(summaries, entropies, _ENTROPY_SLACK, code, instead)
        of_experts = ("effective_experts", "max_load", "dead_experts", "starved_experts")
        self._check_above(summaries, of_experts, float, "num_experts {0}: expected {2}")
        instead = ": count the dead ones among the starved"
        self._check_pair(summaries, of_experts[2:], 0.0, "starved below dead", instead)
        for name in ("still_tensors", "unchanged_tensors"):
            pair, instead = (name, "looked_tensors"), ": count only tensors that were looked at"
            self._check_pair(summaries, pair, 0.0, f"looked below {name}", instead)
        return summaries

    def _check_above(
        self, summaries: Summaries, names: Sequence[str], of: Callable[[int], float], words: str
    ) -> None:
        """What is above a limit that follows from the number of experts of its router."""
        slack = _ENTROPY_SLACK if of is math.log else form.SLACK
        for name in names:
            for index, number in enumerate(summaries.get(name, ())):
                experts = _at(self._promise.num_experts, index)
                if number is None or experts is None:
                    continue
                if number > of(experts) * (1 + slack) + _ZERO_SLACK:
                    limit = words.format(experts, of(experts), _SUMMARIES[name].what)
                    self._of_router(f"range router.{name}", name, index, number, f"above {limit}")

    def _check_pair(
        self, summaries: Summaries, names: Sequence[str], slack: float, code: str, words: str
    ) -> None:
        """Where the first of two summaries is above the second, of which it is a part."""
        low, high = names
        for index, least in enumerate(summaries.get(low, ())):
            number = _at(summaries.get(high, ()), index)
            if least is None or number is None or least <= number + slack * max(number, 0.1):
                continue
            limit = f"below router.{low}[{index}] = {least:g}{words}"
            self._of_router(code, high, index, number, limit)

    def _of_router(self, code: str, name: str, index: int, number: float, limit: str) -> None:
        self.say("router", code, name=name, index=index, number=number, limit=limit)

    def _rows(self, name: str, value: Any) -> Iterator[tuple[int, str, list[Any]]]:
        """Index, name and entries of every row of a matrix that has the right width."""
        what, otherwise = _ROWS[name]
        if value == [] and name == "expert_bias":
            return  # no router has one
        for index, row in enumerate(self.per_router(name, value, self._promise.routers) or ()):
            key, experts = f"{name}[{index}]", _at(self._promise.num_experts, index)
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

    def _check_counts(self, value: Any, tokens: int | None, summaries: Summaries) -> None:
        """Check ``tokens_per_expert``, and the summaries of the same rows against it."""
        name, counts = "tokens_per_expert", self._promise.counts
        own, unrouted = summaries.get("tokens", ()), summaries.get("unrouted", ())
        if isinstance(value, list) and tokens is None and not own and counts != "shares":
            self.say("no tokens")
        for index, key, row in self._rows(name, value):
            if set(map(type, row)) != {int} or min(row) < 0 or max(row) > form.COUNT.high:
                expert = next(e for e, n in enumerate(row) if not form.COUNT.fits(n))
                place, instead = f"{key}[{expert}]", "write a count, 0 for none"
                if form.holds_fractions(row):
                    self.say("fractions", key=key, why=form.FRACTIONS)
                    continue
                if row[expert] is None:
                    self.say("null", "null in counts", key=place, instead=instead)
                self.checked(place, row[expert], form.COUNT, name)
                continue
            here = _at(own, index)
            here = tokens if here is None else here
            self._check_sum(index, row, here, int(_at(unrouted, index) or 0))
            if counts in ("exact", "top1", "shares") and any(row):
                self._compare(summaries, index, row)

    def _check_sum(self, index: int, row: list[int], tokens: float | None, unrouted: int) -> None:
        key, total = f"tokens_per_expert[{index}]", sum(row) + unrouted
        counts, top_k = self._promise.counts, _at(self._promise.top_k, index)
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
        """Summaries that contradict the counts of the same line."""
        for name, formula in _FORMULAS.items():
            value, expected = _at(summaries.get(name, ()), index), measures.DERIVED[name](row)
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
