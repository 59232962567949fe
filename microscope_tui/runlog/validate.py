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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from microscope_tui import measures
from microscope_tui.runlog.problems import (
    Problem,
    Problems,
    checked,
    checked_fields,
    per_router,
    strict_object,
)
from microscope_tui.runlog.records import (
    ANY,
    BALANCE,
    COUNT,
    END_REASONS,
    EVENT,
    FORMAT_VERSION,
    MATRICES,
    MAX_ROUTERS,
    MODEL,
    NATS,
    POSITIVE,
    RUN,
    SLACK,
    SOURCE,
    TIME,
    RouterSummary,
    Rule,
    StepRecord,
    numbers_of,
)
from microscope_tui.runlog.safe_text import safe_text
from microscope_tui.runlog.tail import MAX_LINE_BYTES

SUM_OF_SHARES = 1_000_000
_KINDS = ("run", "step", "event")
_CLOCK_SLACK_S = 1.0  # times are rounded, and clocks are set
_ENTROPY_SLACK = 5e-3  # relative: bf16 has eight bits
_ZERO_SLACK = 1e-6
_NAME_CELLS = 12  # longest layer name that screens show
_SUMMARIES = numbers_of(RouterSummary)
_NUMBERS = {name: rule for name, rule in numbers_of(StepRecord).items() if name != "step"}
STEP: dict[str, Rule] = {
    **dict.fromkeys(("kind", "step", *MATRICES)),
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


def problems_in(lines: Iterable[tuple[int, bytes]]) -> Iterator[Problem]:
    """The problems of a log given as (line number from 1, line without its newline).

    In order of the lines; at the end one summary for each class with more than twenty.
    """
    validator = LogValidator()
    for line_number, line in lines:
        yield from validator.check(line_number, line)
    yield from validator.finish()


@dataclass(frozen=True, slots=True)
class _Promise:
    """What the run record declares about the steps after it; ``None`` if it does not."""

    routers: int | None = None
    num_experts: Sequence[int | None] = ()
    top_k: Sequence[int | None] = ()
    counts: str | None = None
    has_capacity: bool | None = None
    planned_steps: int | None = None


class LogValidator:
    """Checks one line after the other, with the state that later lines are checked against."""

    def __init__(self) -> None:
        self.records: Counter[str] = Counter()
        """Records by kind; those of unknown kinds together as ``other``."""
        self.problems = Problems()
        self._promise = _Promise()
        self._seen_run = self._said_no_run = False
        self._last_step: int | None = None
        self._resumed: tuple[int, int] | None = None  # first step to come, line that says so
        self._last_time: float | None = None  # of a step since the last run record
        self._ended_at: int | None = None  # line of an ``end`` that nothing may follow
        self._measured = False

    def check(self, line_number: int, line: bytes) -> list[Problem]:
        """The problems of this line."""
        problems = self.problems
        problems.line = line_number
        if len(line) > MAX_LINE_BYTES:
            self.overlong()
        elif (record := strict_object(problems, line)) is not None:
            self._record(record)
        return problems.new()

    def overlong(self) -> None:
        """The line at ``problems.line`` is longer than any reader takes."""
        self.problems.say("overlong", limit=MAX_LINE_BYTES >> 20)

    def finish(self) -> list[Problem]:
        """Problems that are known only at the end of the log, and the summaries."""
        if self.records["step"] and not self._measured:
            self.problems.say("no load")
        return [*self.problems.new(), *self.problems.rest()]

    def _record(self, record: dict[str, Any]) -> None:
        kind, problems = record.get("kind"), self.problems
        self.records[kind if isinstance(kind, str) and kind in _KINDS else "other"] += 1
        known = ", ".join(_KINDS)
        if not isinstance(kind, str):
            problems.say("kind", value=kind, kinds=known)
        elif kind not in _KINDS:
            problems.say("unknown kind", value=kind, kinds=known)
        elif kind == "run":
            self._run(record)
        else:
            if not self._seen_run and not self._said_no_run:
                self._said_no_run = True
                problems.say("no run", kind=kind, version=FORMAT_VERSION)
            if kind == "step":
                self._step(record)
            elif _check_event(problems, record) == "end":
                self._ended_at = problems.line

    def _run(self, record: dict[str, Any]) -> None:
        before, self._promise = self._promise, _check_run(self.problems, record)
        first = record.get("resumed_at_step")
        if self._seen_run and first is None:
            self.problems.say("no resumed_at_step")
        shapes = [(one.routers, one.num_experts, one.top_k) for one in (before, self._promise)]
        if before.routers is not None and shapes[0] != shapes[1]:
            self.problems.say("another model")
        if first is not None:
            self._last_step = None
            self._resumed = (first, self.problems.line) if POSITIVE.fits(first) else None
        self._seen_run = True
        self._last_time = self._ended_at = None

    def _step(self, record: dict[str, Any]) -> None:
        step, problems = record.get("step"), self.problems
        if step is None:
            problems.say("step")
        known = checked(problems, "step", step, COUNT)
        if known == 0:
            problems.say("step 0")
        if known is not None:
            self._check_order(known)
        self._check_time(record.get("time"))
        if self._ended_at is not None:
            problems.say("after end", line=self._ended_at)
        self._measured |= _check_step(problems, record, self._promise)

    def _check_order(self, step: int) -> None:
        problems, last, planned = self.problems, self._last_step, self._promise.planned_steps
        if self._resumed is not None and step < self._resumed[0]:
            problems.say("before resumed", step=step, first=self._resumed[0], line=self._resumed[1])
        elif last is not None and step == last:
            problems.say("twice", step=step)
        elif last is not None and step < last:
            problems.say("backwards", step=step, last=last)
        if planned is not None and step > planned:
            problems.say("beyond planned", step=step, planned=planned)
        self._last_step, self._resumed = step, None

    def _check_time(self, time: Any) -> None:
        if not TIME.fits(time):
            return
        if self._last_time is not None and time < self._last_time - _CLOCK_SLACK_S:
            self.problems.say("clock", time=time, back=self._last_time - time)
        self._last_time = time


def _check_event(problems: Problems, record: dict[str, Any]) -> str:
    """Check an event and return its name, empty where it has none."""
    said = checked_fields(problems, "", record, EVENT)
    for key in said["values"] or ():
        checked(problems, "a key of values", key, str)
    if record.get("event") is None:
        problems.say("event")
    if said["event"] == "end" and said["reason"] not in END_REASONS:
        problems.say("reason", value=said["reason"], known=", ".join(END_REASONS))
    return said["event"] or ""


def _check_run(problems: Problems, record: dict[str, Any]) -> _Promise:
    """Check a ``run`` record and return what it declares."""
    version, model = record.get("format_version"), record.get("model")
    if type(version) is not int or version != FORMAT_VERSION:
        problems.say("format_version", value=version, version=FORMAT_VERSION)
    said = checked_fields(problems, "", record, RUN)
    checked_fields(problems, "balance.", said["balance"] or {}, BALANCE)
    counts = checked_fields(problems, "source.", said["source"] or {}, SOURCE)["counts"] or "exact"
    if not isinstance(model, dict):
        expected = "an object with layers, num_experts and top_k"
        problems.say("type", "type model", key="model", value=model, expected=expected)
        return _Promise(counts=counts, planned_steps=said["planned_steps"])
    of_model = checked_fields(problems, "model.", model, MODEL)
    routers = _check_layers(problems, model)
    experts = _per_router_integer(problems, model, "num_experts", routers)
    top_k = _per_router_integer(problems, model, "top_k", routers)
    for index, (e, k) in enumerate(zip(experts, top_k, strict=True)):
        if e is not None and k is not None and k > e:
            problems.say("top_k above num_experts", k=k, e=e, index=index)
    if counts == "top1" and any(k not in (1, None) for k in top_k):
        problems.say("top1")
    has_capacity = of_model["capacity_factor"] is not None
    return _Promise(routers, experts, top_k, counts, has_capacity, said["planned_steps"])


def _check_layers(problems: Problems, model: dict[str, Any]) -> int | None:
    """Check depths, names and score functions; the number of routers, ``None`` if unknown."""
    layers, routers = model.get("layers"), None
    if not isinstance(layers, list) or not 0 < len(layers) <= MAX_ROUTERS:
        problems.say("model.layers", value=layers, most=MAX_ROUTERS)
    else:
        routers = len(layers)
        for index, depth in enumerate(layers):
            if depth is None:
                problems.say("model.layers[]", index=index)
            checked(problems, f"model.layers[{index}]", depth, COUNT, "model.layers[]")
    names = per_router(problems, "model.layer_names", model.get("layer_names"), routers) or []
    for index, name in enumerate(names):
        text = checked(problems, "model.layer_names", name, str) or ""
        if safe_text(text, _NAME_CELLS) != safe_text(text, _NAME_CELLS + 1):
            problems.say("long name", index=index, value=name, cells=_NAME_CELLS)
    twice = [n for n, times in Counter(map(str, names)).items() if times > 1]
    if twice and None not in names:
        problems.say("same name", value=twice[0])
    functions = model.get("score_function")
    if isinstance(functions, list):
        functions = per_router(problems, "model.score_function", functions, routers) or []
    for function in functions if isinstance(functions, list) else [functions]:
        checked(problems, "model.score_function", function, str)
    return routers


def _per_router_integer(
    problems: Problems, model: dict[str, Any], key: str, routers: int | None
) -> list[int | None]:
    """``num_experts`` or ``top_k``, which may be one number or one per router.

    An explicit null is valid, and 0 experts: other tools do not always log them.
    """
    name, value, length = f"model.{key}", model.get(key), routers or 0
    unknown = (None, 0) if key == "num_experts" else (None,)

    def known(entry: Any) -> int | None:
        is_unknown = entry is None or (type(entry) is int and entry in unknown)
        return None if is_unknown else checked(problems, name, entry, POSITIVE)

    if isinstance(value, list):
        entries = per_router(problems, name, value, routers) or [None] * length
        if any(entry is None or (type(entry) is int and entry in unknown) for entry in value):
            problems.say(
                "unknown", f"unknown {name}", key=name, where=" for a router", lost=_LOST[key]
            )
        return [known(entry) for entry in entries][:length]
    if key not in model:
        problems.say("missing", f"missing {name}", key=name, expected=POSITIVE.what)
    elif value is None or (type(value) is int and value in unknown):
        problems.say("unknown", f"unknown {name}", key=name, where="", lost=_LOST[key])
    return [known(value)] * length


def _check_step(problems: Problems, record: dict[str, Any], promise: _Promise) -> bool:
    """Check everything of a step but its place in the run; true if it measures any load."""
    _check_key_order(problems, record)
    said = checked_fields(problems, "", record, STEP)
    for name, value in (said["losses"] or {}).items():
        checked(problems, "a key of losses", name, str)
        checked(problems, "a value of losses", value, NATS)
    summaries = _summaries(problems, said["router"] or {}, promise)
    for name in ("mean_weight", "mean_output_norm", "expert_bias"):
        value = record.get(name)
        if value == [] and name == "expert_bias":
            continue  # no router has one
        rows = per_router(problems, name, value, promise.routers)
        for _, key, row in _rows(problems, name, rows, promise):
            if set(map(type, row)) <= {int, float}:  # at C speed: they are most of a line
                continue
            for expert, value in enumerate(row):
                place = f"{key}[{expert}]"
                if value is None and name == "expert_bias":
                    instead = "write a number for every expert, or [] for the row"
                    problems.say("null", f"null in {name}", key=place, instead=instead)
                    break
                checked(problems, place, value, ANY, name)
    _check_counts(problems, record.get("tokens_per_expert"), promise, said["tokens"], summaries)
    return record.get("tokens_per_expert") is not None or "effective_experts" in summaries


def _check_key_order(problems: Problems, record: dict[str, Any]) -> None:
    keys = list(record)
    if keys[0] != "kind":
        problems.say("kind first")
    present = [key for key in MATRICES if key in record]
    if present and keys[-len(present) :] != present:
        problems.say("key order", keys=" and ".join(present))


def _summaries(problems: Problems, router: dict[str, Any], promise: _Promise) -> Summaries:
    """The usable summaries by name."""
    checked_fields(problems, "router.", router, dict.fromkeys(_SUMMARIES))
    summaries: Summaries = {}
    for name, rule in _SUMMARIES.items():
        key = f"router.{name}"
        values = per_router(problems, key, router.get(name), promise.routers)
        if values is not None:
            summaries[name] = [
                checked(problems, f"{key}[{index}]", value, rule, key)
                for index, value in enumerate(values)
            ]
    if promise.has_capacity is False and any(v is not None for v in summaries.get("drop_rate", ())):
        problems.say("drop_rate")
    for place in _above(summaries, promise, ("entropy", "mean_entropy"), math.log):
        problems.say("above ln E", f"range router.{place['name']}", **place)
    for index, (low, high) in _both(summaries, "entropy", "mean_entropy"):
        if low > high + _ENTROPY_SLACK * max(high, 0.1):
            problems.say("entropy above mean_entropy", index=index, mean=high, entropy=low)
    for place in _above(summaries, promise, _OF_EXPERTS, float):
        expected = _SUMMARIES[place["name"]].what
        problems.say("above E", f"range router.{place['name']}", expected=expected, **place)
    for index, (none, few) in _both(summaries, "dead_experts", "starved_experts"):
        if few < none:
            problems.say("starved below dead", index=index, few=few, none=none)
    return summaries


def _above(
    summaries: Summaries,
    promise: _Promise,
    names: Sequence[str],
    limit_of: Callable[[int], float],
) -> Iterator[dict[str, Any]]:
    """What is above a limit that follows from the number of experts of its router."""
    slack = _ENTROPY_SLACK if limit_of is math.log else SLACK
    for name in names:
        for index, number in enumerate(summaries.get(name, ())):
            experts = _at(promise.num_experts, index)
            if number is None or experts is None:
                continue
            if number > (limit := limit_of(experts)) * (1 + slack) + _ZERO_SLACK:
                yield dict(name=name, index=index, number=number, experts=experts, limit=limit)


def _both(
    summaries: Summaries, first: str, second: str
) -> Iterator[tuple[int, tuple[float, float]]]:
    """Index and values of the routers that have both."""
    pairs = zip(summaries.get(first, ()), summaries.get(second, ()), strict=False)
    for index, (one, two) in enumerate(pairs):
        if one is not None and two is not None:
            yield index, (one, two)


def _rows(
    problems: Problems, name: str, rows: list[Any] | None, promise: _Promise
) -> Iterator[tuple[int, str, list[Any]]]:
    """Index, name and entries of every row of a matrix that has the right width."""
    what, otherwise = _ROWS[name]
    for index, row in enumerate(rows or ()):
        key, experts = f"{name}[{index}]", _at(promise.num_experts, index)
        if row is None or (row == [] and "[]" in otherwise):
            continue
        if not isinstance(row, list):
            problems.say("type", f"type {name}", key=key, value=row, expected=f"a list of {what}")
        elif not row or experts not in (None, len(row)):
            expected = "at least one" if experts is None else f"num_experts = {experts:,}"
            said = {"entries": len(row), "expected": expected, "otherwise": otherwise}
            problems.say("width", f"width {name}", key=key, **said)
        else:
            yield index, key, row


def _check_counts(
    problems: Problems,
    value: Any,
    promise: _Promise,
    tokens: int | None,
    summaries: Summaries,
) -> None:
    """Check ``tokens_per_expert``, and what summaries say about the same rows."""
    name = "tokens_per_expert"
    rows = per_router(problems, name, value, promise.routers)
    own, unrouted = summaries.get("tokens", ()), summaries.get("unrouted", ())
    if rows is not None and promise.counts == "none":
        problems.say("counts of none")
    if rows is not None and tokens is None and not own and promise.counts != "shares":
        problems.say("no tokens")
    for index, key, row in _rows(problems, name, rows, promise):
        if set(map(type, row)) != {int} or min(row) < 0 or max(row) > COUNT.high:
            expert = next(e for e, n in enumerate(row) if type(n) is not int or not COUNT.fits(n))
            place, instead = f"{key}[{expert}]", "write a count, 0 for none"
            if row[expert] is None:
                problems.say("null", "null in counts", key=place, instead=instead)
            checked(problems, place, row[expert], COUNT, name)
            continue
        here = _at(own, index)
        here = tokens if here is None else here
        _check_sum(problems, index, row, promise, here, int(_at(unrouted, index) or 0))
        if promise.counts in ("exact", "top1", "shares") and any(row):
            _compare(problems, summaries, index, row, promise.counts)


def _check_sum(
    problems: Problems,
    index: int,
    row: list[int],
    promise: _Promise,
    tokens: float | None,
    unrouted: int,
) -> None:
    key, total = f"tokens_per_expert[{index}]", sum(row) + unrouted
    if promise.counts == "shares":
        if total != SUM_OF_SHARES:
            problems.say("sum of shares", key=key, total=total, expected=SUM_OF_SHARES)
        return
    top_k = _at(promise.top_k, index)
    if promise.counts not in ("exact", "top1", "local_rank") or top_k is None or tokens is None:
        return
    expected = int(tokens) * top_k
    if promise.counts == "local_rank":
        if total > expected:
            problems.say("sum of a rank", key=key, total=total, expected=expected)
    elif total != expected:
        named = f"{key} + router.unrouted[{index}]" if unrouted else key
        advice = "count every selected pair once, all k choices, before any drop, over all ranks"
        if expected and total and total % expected == 0:
            advice = (
                f"{total // expected} times as many, count every selected pair once "
                "(not again in recomputed activations, not in evaluation)"
            )
        elif total > expected:
            advice = "count every selected pair once, real tokens only (no padding)"
        problems.say("sum", key=named, total=total, expected=expected, advice=advice)
    if max(row) > tokens:
        expert = row.index(max(row))
        problems.say("above tokens", key=f"{key}[{expert}]", count=row[expert], tokens=int(tokens))


def _compare(
    problems: Problems, summaries: Summaries, index: int, row: list[int], source: str | None
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
        if value is None or expected is None or abs(value - expected) <= SLACK * max(1.0, expected):
            continue
        problems.say(
            "contradiction",
            f"contradiction router.{name}",
            name=name,
            index=index,
            number=value,
            expected=expected,
            formula=formula,
        )


def _at(values: Sequence[T], index: int) -> T | None:
    return values[index] if index < len(values) else None
