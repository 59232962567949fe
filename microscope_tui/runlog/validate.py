"""Validates a log against the format; strict where the reader is tolerant.

The reader saves what it can, which is right for monitoring and wrong while a writer is being
developed. The validator reports line by line what breaks the format (``error``) and what is valid
but probably not intended (``hint``): first every field by the tables of ``records``, then what the
parts of a step say about each other. A trainer that counts twice, counts after the drop or computes
a summary from another step writes valid JSON. Such mistakes are found because a row of counts has
to sum to tokens × k and because summaries can be recomputed from counts.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from microscope_tui import measures
from microscope_tui.runlog import records as form
from microscope_tui.runlog.problems import (
    Problem,
    Problems,
)
from microscope_tui.runlog.safe_text import safe_text
from microscope_tui.runlog.tail import MAX_LINE_BYTES

SUM_OF_SHARES = 1_000_000
_KINDS = ("run", "step", "event")
_CLOCK_SLACK_S = 1.0  # times are rounded, and clocks are set
_ENTROPY_SLACK = 5e-3  # relative: bf16 has eight bits
_ZERO_SLACK = 1e-6
_NAME_CELLS = 12  # longest layer name that screens show
_SUMMARIES = form.numbers_of(form.RouterSummary)
_NUMBERS = {name: rule for name, rule in form.numbers_of(form.StepRecord).items() if name != "step"}
STEP: dict[str, form.Rule] = {
    **dict.fromkeys(("kind", "step", *form.MATRICES)),
    **_NUMBERS,
    **dict.fromkeys(("losses", "router"), dict),
    "incomplete": str,
}
_OF_EXPERTS = ("effective_experts", "max_load", "dead_experts", "starved_experts")
_LOST = {
    "num_experts": "there is no balance and its routers are not judged, write it if you can",
    "top_k": "there is no balance and no verdict on a collapse, write it if you can",
}
"""What is lost where it is unknown."""
_ROWS = {
    "mean_weight": ("means", "write [] where not measured"),
    "mean_output_norm": ("means", "write [] where not measured"),
    "expert_bias": ("biases", "write [] for a router without one"),
    "tokens_per_expert": (
        "counts, or null where there are none",
        "write null where not counted",
    ),
}
"""What a row holds, and what to write instead of one."""
T = TypeVar("T")
Summaries = dict[str, list[float | None]]


@dataclass(frozen=True, slots=True)
class _Promise:
    """What the run record declares about the steps after it; ``None`` if it does not."""

    routers: int | None = None
    num_experts: Sequence[int | None] = ()
    top_k: Sequence[int | None] = ()
    counts: str | None = None
    has_capacity: bool | None = None
    planned_steps: int | None = None


class LogValidator(Problems):
    """Checks one line after the other, with the state that later lines are checked against."""

    def __init__(self) -> None:
        super().__init__()
        self.records: Counter[str] = Counter()
        """Records by kind; those of unknown kinds together as ``other``."""
        self._promise = _Promise()
        self._seen_run = self._said_no_run = False
        self._last_step: int | None = None
        self._resumed: tuple[int, int] | None = None  # first step to come, line that says so
        self._last_time: float | None = None  # of a step since the last run record
        self._ended_at: int | None = None  # line of an ``end`` that nothing may follow
        self._measured = False

    def check(self, line_number: int, line: bytes) -> list[Problem]:
        """The problems of this line."""
        self.line = line_number
        if len(line) > MAX_LINE_BYTES:
            self.overlong()
        elif (record := self.strict_object(line)) is not None:
            self._record(record)
        return self.new()

    def overlong(self) -> None:
        """The line at ``line`` is longer than any reader takes."""
        self.say("overlong", limit=MAX_LINE_BYTES >> 20)

    def finish(self) -> list[Problem]:
        """Problems that are known only at the end of the log, and the summaries."""
        if self.records["step"] and not self._measured:
            self.say("no load")
        return [*self.new(), *self.rest()]

    def _record(self, record: dict[str, Any]) -> None:
        kind = record.get("kind")
        self.records[kind if isinstance(kind, str) and kind in _KINDS else "other"] += 1
        known = ", ".join(_KINDS)
        if not isinstance(kind, str):
            self.say("kind", value=kind, kinds=known)
        elif kind not in _KINDS:
            self.say("unknown kind", value=kind, kinds=known)
        elif kind == "run":
            self._run(record)
        else:
            if not self._seen_run and not self._said_no_run:
                self._said_no_run = True
                self.say("no run", kind=kind, version=form.FORMAT_VERSION)
            if kind == "step":
                self._step(record)
            elif self._check_event(record) == "end":
                self._ended_at = self.line

    def _run(self, record: dict[str, Any]) -> None:
        before, self._promise = self._promise, self._check_run(record)
        first = record.get("resumed_at_step")
        if self._seen_run and first is None:
            self.say("no resumed_at_step")
        shapes = [(one.routers, one.num_experts, one.top_k) for one in (before, self._promise)]
        if before.routers is not None and shapes[0] != shapes[1]:
            self.say("another model")
        if first is not None:
            self._last_step = None
            self._resumed = (first, self.line) if form.POSITIVE.fits(first) else None
        self._seen_run = True
        self._last_time = self._ended_at = None

    def _step(self, record: dict[str, Any]) -> None:
        step = record.get("step")
        if step is None:
            self.say("step")
        known = self.checked("step", step, form.COUNT)
        if known == 0:
            self.say("step 0")
        if known is not None:
            self._check_order(known)
        self._check_time(record.get("time"))
        if self._ended_at is not None:
            self.say("after end", line=self._ended_at)
        self._measured |= self._check_step(record)

    def _check_order(self, step: int) -> None:
        last, planned = self._last_step, self._promise.planned_steps
        if self._resumed is not None and step < self._resumed[0]:
            self.say("before resumed", step=step, first=self._resumed[0], line=self._resumed[1])
        elif last is not None and step == last:
            self.say("twice", step=step)
        elif last is not None and step < last:
            self.say("backwards", step=step, last=last)
        if planned is not None and step > planned:
            self.say("beyond planned", step=step, planned=planned)
        self._last_step, self._resumed = step, None

    def _check_time(self, time: Any) -> None:
        if not form.TIME.fits(time):
            return
        if self._last_time is not None and time < self._last_time - _CLOCK_SLACK_S:
            self.say("clock", time=time, back=self._last_time - time)
        self._last_time = time

    def _check_event(self, record: dict[str, Any]) -> str:
        """Check an event and return its name, empty where it has none."""
        said = self.checked_fields("", record, form.EVENT)
        for key in said["values"] or ():
            self.checked("a key of values", key, str)
        if record.get("event") is None:
            self.say("event")
        if said["event"] == "end" and said["reason"] not in form.END_REASONS:
            self.say("reason", value=said["reason"], known=", ".join(form.END_REASONS))
        return said["event"] or ""

    def _check_run(self, record: dict[str, Any]) -> _Promise:
        """Check a ``run`` record and return what it declares."""
        version, model = record.get("format_version"), record.get("model")
        if type(version) is not int or version != form.FORMAT_VERSION:
            self.say("format_version", value=version, version=form.FORMAT_VERSION)
        said = self.checked_fields("", record, form.RUN)
        self.checked_fields("balance.", said["balance"] or {}, form.BALANCE)
        counts = (
            self.checked_fields("source.", said["source"] or {}, form.SOURCE)["counts"] or "exact"
        )
        if not isinstance(model, dict):
            expected = "an object with layers, num_experts and top_k"
            self.say("type", "type model", key="model", value=model, expected=expected)
            return _Promise(counts=counts, planned_steps=said["planned_steps"])
        of_model = self.checked_fields("model.", model, form.MODEL)
        routers = self._check_layers(model)
        experts = self._per_router_integer(model, "num_experts", routers)
        top_k = self._per_router_integer(model, "top_k", routers)
        for index, (e, k) in enumerate(zip(experts, top_k, strict=True)):
            if e is not None and k is not None and k > e:
                self.say("top_k above num_experts", k=k, e=e, index=index)
        if counts == "top1" and any(k not in (1, None) for k in top_k):
            self.say("top1")
        has_capacity = of_model["capacity_factor"] is not None
        return _Promise(routers, experts, top_k, counts, has_capacity, said["planned_steps"])

    def _check_layers(self, model: dict[str, Any]) -> int | None:
        """Check depths, names and score functions; the number of routers, ``None`` if unknown."""
        layers, routers = model.get("layers"), None
        if not isinstance(layers, list) or not 0 < len(layers) <= form.MAX_ROUTERS:
            self.say("model.layers", value=layers, most=form.MAX_ROUTERS)
        else:
            routers = len(layers)
            for index, depth in enumerate(layers):
                if depth is None:
                    self.say("model.layers[]", index=index)
                self.checked(f"model.layers[{index}]", depth, form.COUNT, "model.layers[]")
        names = self.per_router("model.layer_names", model.get("layer_names"), routers) or []
        for index, name in enumerate(names):
            text = self.checked("model.layer_names", name, str) or ""
            if safe_text(text, _NAME_CELLS) != safe_text(text, _NAME_CELLS + 1):
                self.say("long name", index=index, value=name, cells=_NAME_CELLS)
        twice = [n for n, times in Counter(map(str, names)).items() if times > 1]
        if twice and None not in names:
            self.say("same name", value=twice[0])
        functions = model.get("score_function")
        if isinstance(functions, list):
            functions = self.per_router("model.score_function", functions, routers) or []
        for function in functions if isinstance(functions, list) else [functions]:
            self.checked("model.score_function", function, str)
        return routers

    def _per_router_integer(
        self, model: dict[str, Any], key: str, routers: int | None
    ) -> list[int | None]:
        """``num_experts`` or ``top_k``, which may be one number or one per router.

        An explicit null is valid, and 0 experts: other tools do not always log them.
        """
        name, value, length = f"model.{key}", model.get(key), routers or 0
        unknown = (None, 0) if key == "num_experts" else (None,)

        def known(entry: Any) -> int | None:
            is_unknown = entry is None or (type(entry) is int and entry in unknown)
            return None if is_unknown else self.checked(name, entry, form.POSITIVE)

        if isinstance(value, list):
            entries = self.per_router(name, value, routers) or [None] * length
            if any(entry is None or (type(entry) is int and entry in unknown) for entry in value):
                self.say(
                    "unknown", f"unknown {name}", key=name, where=" for a router", lost=_LOST[key]
                )
            return [known(entry) for entry in entries][:length]
        if key not in model:
            self.say("missing", f"missing {name}", key=name, expected=form.POSITIVE.what)
        elif value is None or (type(value) is int and value in unknown):
            self.say("unknown", f"unknown {name}", key=name, where="", lost=_LOST[key])
        return [known(value)] * length

    def _check_step(self, record: dict[str, Any]) -> bool:
        """Check everything of a step but its place in the run; true if it measures any load."""
        self._check_key_order(record)
        said = self.checked_fields("", record, STEP)
        for name, value in (said["losses"] or {}).items():
            self.checked("a key of losses", name, str)
            self.checked("a value of losses", value, form.NATS)
        summaries = self._summaries(said["router"] or {})
        for name in ("mean_weight", "mean_output_norm", "expert_bias"):
            value = record.get(name)
            if value == [] and name == "expert_bias":
                continue  # no router has one
            rows = self.per_router(name, value, self._promise.routers)
            for _, key, row in self._rows(name, rows):
                if set(map(type, row)) <= {int, float}:  # at C speed: they are most of a line
                    continue
                for expert, value in enumerate(row):
                    place = f"{key}[{expert}]"
                    if value is None and name == "expert_bias":
                        instead = "write a number for every expert, or [] for the row"
                        self.say("null", f"null in {name}", key=place, instead=instead)
                        break
                    self.checked(place, value, form.ANY, name)
        self._check_counts(record.get("tokens_per_expert"), said["tokens"], summaries)
        return record.get("tokens_per_expert") is not None or "effective_experts" in summaries

    def _check_key_order(self, record: dict[str, Any]) -> None:
        keys = list(record)
        if keys[0] != "kind":
            self.say("kind first")
        present = [key for key in form.MATRICES if key in record]
        if present and keys[-len(present) :] != present:
            self.say("key order", keys=" and ".join(present))

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
        if self._promise.has_capacity is False and any(
            v is not None for v in summaries.get("drop_rate", ())
        ):
            self.say("drop_rate")
        for place in self._above(summaries, ("entropy", "mean_entropy"), math.log):
            self.say("above ln E", f"range router.{place['name']}", **place)
        for index, (low, high) in _both(summaries, "entropy", "mean_entropy"):
            if low > high + _ENTROPY_SLACK * max(high, 0.1):
                self.say("entropy above mean_entropy", index=index, mean=high, entropy=low)
        for place in self._above(summaries, _OF_EXPERTS, float):
            expected = _SUMMARIES[place["name"]].what
            self.say("above E", f"range router.{place['name']}", expected=expected, **place)
        for index, (none, few) in _both(summaries, "dead_experts", "starved_experts"):
            if few < none:
                self.say("starved below dead", index=index, few=few, none=none)
        return summaries

    def _above(
        self,
        summaries: Summaries,
        names: Sequence[str],
        limit_of: Callable[[int], float],
    ) -> Iterator[dict[str, Any]]:
        """What is above a limit that follows from the number of experts of its router."""
        slack = _ENTROPY_SLACK if limit_of is math.log else form.SLACK
        for name in names:
            for index, number in enumerate(summaries.get(name, ())):
                experts = _at(self._promise.num_experts, index)
                if number is None or experts is None:
                    continue
                if number > (limit := limit_of(experts)) * (1 + slack) + _ZERO_SLACK:
                    yield dict(name=name, index=index, number=number, experts=experts, limit=limit)

    def _rows(self, name: str, rows: list[Any] | None) -> Iterator[tuple[int, str, list[Any]]]:
        """Index, name and entries of every row of a matrix that has the right width."""
        what, otherwise = _ROWS[name]
        for index, row in enumerate(rows or ()):
            key, experts = f"{name}[{index}]", _at(self._promise.num_experts, index)
            if row is None or (row == [] and "[]" in otherwise):
                continue
            if not isinstance(row, list):
                self.say("type", f"type {name}", key=key, value=row, expected=f"a list of {what}")
            elif not row or experts not in (None, len(row)):
                expected = "at least one" if experts is None else f"num_experts = {experts:,}"
                said = {"entries": len(row), "expected": expected, "otherwise": otherwise}
                self.say("width", f"width {name}", key=key, **said)
            else:
                yield index, key, row

    def _check_counts(
        self,
        value: Any,
        tokens: int | None,
        summaries: Summaries,
    ) -> None:
        """Check ``tokens_per_expert``, and what summaries say about the same rows."""
        name = "tokens_per_expert"
        rows = self.per_router(name, value, self._promise.routers)
        own, unrouted = summaries.get("tokens", ()), summaries.get("unrouted", ())
        if rows is not None and self._promise.counts == "none":
            self.say("counts of none")
        if rows is not None and tokens is None and not own and self._promise.counts != "shares":
            self.say("no tokens")
        for index, key, row in self._rows(name, rows):
            if set(map(type, row)) != {int} or min(row) < 0 or max(row) > form.COUNT.high:
                expert = next(
                    e for e, n in enumerate(row) if type(n) is not int or not form.COUNT.fits(n)
                )
                place, instead = f"{key}[{expert}]", "write a count, 0 for none"
                if row[expert] is None:
                    self.say("null", "null in counts", key=place, instead=instead)
                self.checked(place, row[expert], form.COUNT, name)
                continue
            here = _at(own, index)
            here = tokens if here is None else here
            self._check_sum(index, row, here, int(_at(unrouted, index) or 0))
            if self._promise.counts in ("exact", "top1", "shares") and any(row):
                self._compare(summaries, index, row, self._promise.counts)

    def _check_sum(
        self,
        index: int,
        row: list[int],
        tokens: float | None,
        unrouted: int,
    ) -> None:
        key, total = f"tokens_per_expert[{index}]", sum(row) + unrouted
        if self._promise.counts == "shares":
            if total != SUM_OF_SHARES:
                self.say("sum of shares", key=key, total=total, expected=SUM_OF_SHARES)
            return
        top_k = _at(self._promise.top_k, index)
        if (
            self._promise.counts not in ("exact", "top1", "local_rank")
            or top_k is None
            or tokens is None
        ):
            return
        expected = int(tokens) * top_k
        if self._promise.counts == "local_rank":
            if total > expected:
                self.say("sum of a rank", key=key, total=total, expected=expected)
        elif total != expected:
            named = f"{key} + router.unrouted[{index}]" if unrouted else key
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
            self.say("sum", key=named, total=total, expected=expected, advice=advice)
        if max(row) > tokens:
            expert = row.index(max(row))
            self.say("above tokens", key=f"{key}[{expert}]", count=row[expert], tokens=int(tokens))

    def _compare(
        self, summaries: Summaries, index: int, row: list[int], source: str | None
    ) -> None:
        """Summaries that contradict the counts of the same line."""
        derived = {
            "effective_experts": (measures.effective_experts(row), "exp(entropy of the counts)"),
            "max_load": (measures.max_load(row), "max ÷ mean of the counts"),
        }
        if source != "shares":  # a share may round to zero
            derived["dead_experts"] = (measures.dead_experts(row), "the number of zero counts")
        for name, (expected, formula) in derived.items():
            value = _at(summaries.get(name, ()), index)
            if (
                value is None
                or expected is None
                or abs(value - expected) <= form.SLACK * max(1.0, expected)
            ):
                continue
            self.say(
                "contradiction",
                f"contradiction router.{name}",
                name=name,
                index=index,
                number=value,
                expected=expected,
                formula=formula,
            )


def _both(
    summaries: Summaries, first: str, second: str
) -> Iterator[tuple[int, tuple[float, float]]]:
    """Index and values of the routers that have both."""
    pairs = zip(summaries.get(first, ()), summaries.get(second, ()), strict=False)
    for index, (one, two) in enumerate(pairs):
        if one is not None and two is not None:
            yield index, (one, two)


def _at(values: Sequence[T], index: int) -> T | None:
    return values[index] if index < len(values) else None
