"""One line of a run log becomes one record; its matrices are decoded when they are needed.

The fast path decodes a step with a typed struct that does not declare the matrices, so that msgspec
skips them at disk speed. Whatever it refuses (bare ``NaN``, a string for a number, deep nesting, a
key of the wrong type) is decoded field by field: a bad key costs that key, never the record.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Annotated, Any

import msgspec

from microscope_tui.runlog import records as form
from microscope_tui.runlog.records import (
    FORMAT_VERSION,
    FRACTIONS,
    BadLine,
    EventRecord,
    Matrices,
    Record,
    RouterInfo,
    RouterSummary,
    RunRecord,
    StepRecord,
    UnknownFormat,
    Values,
)
from microscope_tui.runlog.safe_text import safe_text

MAX_INTEGER = 2**62
_MAX_OBJECT_BYTES = 8 << 20
"""Longer lines are not decoded as a whole: 60 MB of ``{},`` would become 1.6 GB of objects."""
_MAX_DIGITS = 4000  # Python refuses to parse longer integers, and with them the whole line


Rows = list[Values | None]
_step_decoder = msgspec.json.Decoder(StepRecord)
_STEP_PREFIXES = (b'{"kind":"step"', b'{"kind": "step"')
_SETTING = re.compile(r"[-\w./]{1,40}", re.ASCII)  # of a framework; shown, so not a sentence
_COUNTS_KEY = b'"tokens_per_expert":'
_MATRIX_KEYS = {f'"{name}":'.encode() for name in form.MATRICES}
_Count = Annotated[int, msgspec.Meta(ge=0, lt=MAX_INTEGER)]
_row_decoder = msgspec.json.Decoder(list[_Count])
_rows_decoder = msgspec.json.Decoder(list[list[_Count]])
_SHORT = 2048  # bytes of a matrix that is decoded in less time than its rows are found


def decode_line(line: bytes) -> Record | None:
    """Decode one complete line.

    Returns ``None`` for an empty line and for a record of an unknown kind (ignored by contract).

    Raises:
        BadLine: the line holds no usable record.
        UnknownFormat: a ``run`` record of another format version.
    """
    if line.startswith(_STEP_PREFIXES):
        try:
            step = _step_decoder.decode(_without_matrices(line))
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            pass  # the slow path below reports the problem, or saves the record
        else:
            if 0 <= step.step < MAX_INTEGER:
                return step
    stripped = line.strip(b" \t\r\n\0")
    if not stripped:
        return None
    fields = object_of(stripped)
    match fields.get("kind"):
        case "step":
            return _step(fields)
        case "run":
            return _run(fields)
        case "event":
            return _event(fields)
        case str():
            return None
    raise BadLine("no \"kind\": every record names its kind ('run', 'step' or 'event')")


def _without_matrices(line: bytes) -> bytes:
    """The line up to its matrices, if only those four are at its end; else the line.

    Searches for single bytes, from the end on, decide at many GB/s: the quotes of their keys must
    be the only ones there, without a hole of NULs.
    """
    cut = len(line)
    left = _MATRIX_KEYS
    key = b""
    while (last := line.rfind(b'"', 0, cut)) >= 0:
        first = line.rfind(b'"', 0, last)
        key = line[first : last + 2]
        if key not in left:
            break
        cut = first
        left = left - {key}
    if left is _MATRIX_KEYS or key in _MATRIX_KEYS or not line.endswith(b"]}"):
        return line
    if line.find(b"\0", cut) >= 0:
        return line
    return line[:cut].rstrip(b", ") + b"}"


def decode_matrices(line: bytes, routers: int) -> Matrices:
    """The matrices of a step's line, a row per router; a row that is not of counts is ``None``.

    ``BadLine``: the line is not a JSON object.
    """
    fields = object_of(line)
    rows = _rows_of(fields.get("tokens_per_expert"), routers)
    counts = [counts_of(row) for row in rows]
    biases = [_floats_of(row) for row in _rows_of(fields.get("expert_bias"), routers)]
    wrong = [i for i, row in enumerate(counts) if row is None and form.holds_fractions(rows[i])]
    if wrong:
        return Matrices(counts, biases, f"tokens_per_expert[{wrong[0]}] {FRACTIONS}")
    return Matrices(counts, biases)


def decode_means(line: bytes, routers: int) -> tuple[Rows, Rows]:
    """Mean weight and mean output norm of every expert; a row per router, ``None`` if absent."""
    try:
        fields = object_of(line)
    except BadLine:  # the typed decoder of the step skipped what the full one rejects
        fields = {}
    weight, norm = (_rows_of(fields.get(name), routers) for name in form.MATRICES[:2])
    return list(map(_finite_of, weight)), list(map(_finite_of, norm))


_NOT_NUMBERS = {"step", "time", *form.MATRICES}
_MOST_NUMBERS = 1000
number_name = lru_cache(4096)(lambda key: safe_text(key, 60))
"""A key of the log as it may be shown."""


def numbers_of(line: bytes) -> dict[str, float | Values]:
    """All numbers of a step but its matrices by name: ``reward``, ``losses.aux``.

    Of ``router.…`` a list, one entry per router. Empty if the line cannot be read.
    """
    try:
        fields = object_of(_without_matrices(line).strip(b"\0 "))
    except BadLine:
        return {}
    known = {name: value for name, value in fields.items() if name not in _NOT_NUMBERS}
    return dict(islice(_leaves(known, ""), _MOST_NUMBERS))


def _leaves(fields: dict[str, Any], outer: str) -> Iterator[tuple[str, float | Values]]:
    for key, value in fields.items():
        name = number_name(outer + key)
        if isinstance(value, dict) and outer.count(".") < 4:
            yield from _leaves(value, f"{name}.")
        elif isinstance(value, list) and outer == "router.":
            yield name, _values_of(value) or []
        elif (number := _number(value)) is not None:
            yield name, number


def short_rows(line: bytes, routers: int) -> Sequence[list[int]]:
    """All rows of counts if they are short and at the end of the line; else none."""
    at = line.rfind(b'"') + 2  # fast to find
    if not line.endswith(_COUNTS_KEY, 0, at) or len(line) > at + _SHORT:
        return ()
    try:
        rows = _rows_decoder.decode(line[at:-1])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return ()
    if len(rows) != routers or not line.endswith(b"}"):
        return ()
    return rows


def row_starts(line: bytes, routers: int) -> list[int]:
    """Offsets of the opening brackets of the rows of counts; empty for an unusual line.

    A rule that suspects one of 58 routers step after step would otherwise decode all of them.
    """
    behind = line.rfind(b'"') + 2  # the last quote is usually that of the key, and fast to find
    if not line.endswith(_COUNTS_KEY, 0, behind):
        behind = line.rfind(_COUNTS_KEY) + len(_COUNTS_KEY)
    at = line.find(b"[", behind) if behind >= len(_COUNTS_KEY) else -1
    if at < 0 or line[at - 1 : at] not in (b":", b" "):
        return []
    starts = list[int]()
    end = at + 1
    between = b""
    try:
        for _ in range(routers):
            at = line.index(b"[", at + 1)
            if line[end:at] != between and line[end:at].translate(None, b" ") != between:
                return []  # not a row, or a nested list
            starts.append(at)
            end = line.index(b"]", at) + 1
            between = b","
    except ValueError:
        return []
    if line.find(b"[", at + 1) >= 0 or line[end:].translate(None, b" ") != b"]}":
        return []  # behind the last row the matrix and the record end
    return starts


def decode_row(line: bytes, start: int) -> list[int] | None:
    """The counts in the list that begins at ``start``, without decoding the rest of the line.

    ``None`` if they are not certain: then the whole line has to be decoded.
    """
    row = line[start : line.find(b"]", start) + 1]
    if b"{" in row:
        return None
    try:
        try:
            return _row_decoder.decode(row) or None
        except msgspec.ValidationError:  # 1.0 is a count too
            return counts_of(msgspec.json.decode(row))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def infer_run(line: bytes, name: str) -> RunRecord | None:
    """A header from the first step of a log without one; ``None`` without counts."""
    fields = object_of(line)
    rows = fields.get("tokens_per_expert")
    if not isinstance(rows, list) or not 0 < len(rows) <= form.MAX_ROUTERS:
        return None
    tokens = _number(fields.get("tokens")) or 0.0
    routers = []
    for index, row in enumerate(rows):
        counts = counts_of(row) or []
        top_k = max(1, min(round(sum(counts) / tokens), len(counts))) if tokens >= 1 else 0
        routers.append(RouterInfo(f"L{index}", index, len(counts), top_k))
    return RunRecord(run=safe_text(name), routers=tuple(routers), inferred=True)


def object_of(line: bytes) -> dict[str, Any]:
    """The JSON object in a line; ``NaN`` and ``Infinity`` are allowed, as Python writes them.

    ``BadLine``: the line is too long, nested too deeply, or holds no JSON object.
    """
    if len(line) > _MAX_OBJECT_BYTES:
        raise BadLine(f"{len(line) >> 20:,} MB in one line, more than any record needs")
    try:
        try:
            value = msgspec.json.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            value = json.loads(line.decode("utf-8", "replace"), parse_int=_parsed_int)
    except RecursionError:
        raise BadLine("nested too deeply to be a record") from None
    except ValueError:
        raise BadLine("not JSON") from None
    if not isinstance(value, dict):
        raise BadLine(f"a {type(value).__name__}, not an object")
    return value


def _mapping(fields: dict[str, Any], key: str) -> dict[str, Any]:
    value = fields.get(key)
    return value if isinstance(value, dict) else {}


def _parsed_int(digits: str) -> int | None:
    return int(digits) if len(digits) < _MAX_DIGITS else None


def _step(fields: dict[str, Any]) -> StepRecord:
    step = _integer(fields.get("step"))
    if step is None or not 0 <= step < MAX_INTEGER:
        raise BadLine(f"step is {safe_text(repr(fields.get('step')), 30)}, not a step number")
    router, losses = _mapping(fields, "router"), _mapping(fields, "losses")
    numbers = {
        name: _number(fields.get(name))
        for name in StepRecord.__struct_fields__
        if name not in ("step", "losses", "router")
    }
    return StepRecord(
        step=step,
        losses={name: _number(value) for name, value in losses.items()},
        router=RouterSummary(
            **{name: _values_of(router.get(name)) for name in RouterSummary.__struct_fields__}
        ),
        **numbers,
    )


def _event(fields: dict[str, Any]) -> EventRecord:
    values = _mapping(fields, "values")
    numbers = {safe_text(key, 40): _number(value) for key, value in values.items()}
    return EventRecord(
        event=safe_text(fields.get("event") or "", 30),
        step=_integer(fields.get("step")),
        time=_number(fields.get("time")),
        reason=safe_text(fields.get("reason") or "", 60),
        values={key: value for key, value in numbers.items() if value is not None},
        slices=_slices(_mapping(fields, "slices")),
    )


def _slices(fields: dict[str, Any]) -> form.SourceCounts | None:
    names, tables, noise = (fields.get(name) for name in ("names", "counts", "noise"))
    if not (isinstance(names, list) and isinstance(tables, list)):
        return None
    counts = [list(map(counts_of, rows)) for rows in tables if isinstance(rows, list)]
    if len(counts) != len(names) or any(row is None for rows in counts for row in rows):
        return None
    levels = list(map(_level, _values_of(noise) or ()))
    return form.SourceCounts([safe_text(name, 40) for name in names], counts, levels)  # type: ignore[arg-type]  # none is None


def _level(noise: float | None) -> float:
    if noise is None:
        return math.inf  # nothing rises above an unknown noise
    return noise


def _run(fields: dict[str, Any]) -> RunRecord:
    version = fields.get("format_version")
    if version != FORMAT_VERSION:
        raise UnknownFormat(
            f"format_version is {safe_text(repr(version), 20)}, this microscope reads "
            f"{FORMAT_VERSION}: update moe-microscope, or write the log with a matching version"
        )
    model = _mapping(fields, "model")
    config = _mapping(fields, "config")
    norm_top_k = model.get("norm_top_k")
    if not isinstance(norm_top_k, bool):
        norm_top_k = None
    return RunRecord(
        run=safe_text(fields.get("run") or "", 120),
        routers=_routers(model),
        part=safe_text(fields.get("part") or "", 40),
        time=_number(fields.get("time")),
        planned_steps=_integer(fields.get("planned_steps")),
        resumed_at_step=_integer(fields.get("resumed_at_step")),
        profile=safe_text(fields.get("profile") or "pretrain", 20),
        model_name=safe_text(model.get("name") or "", 60),
        dtype=safe_text(config.get("dtype") or "", 20),
        sequence_length=_integer(config.get("seq_len")),
        hidden_layers=_integer(model.get("num_hidden_layers")),
        capacity_factor=_number(model.get("capacity_factor")),
        score_function=safe_text(model.get("score_function") or "", 20),
        norm_top_k=norm_top_k,
        balance=_balance(_mapping(fields, "balance")),
        training=_training(_mapping(fields, "training")),
        counts=safe_text(_mapping(fields, "source").get("counts") or "exact", 20),
        unconfirmed=safe_text(_mapping(fields, "source").get("unconfirmed") or "", 300),
        expert_parallel_size=max(1, _integer(fields.get("expert_parallel_size")) or 1),
    )


def _balance(fields: dict[str, Any]) -> dict[str, Any]:
    """The settings that the advice uses: numbers (false is 0), except for these four."""
    known = {safe_text(key, 40): _setting(value) for key, value in fields.items()}
    names = [*_mapping(fields, "names").items()][:40]
    known |= {
        "method": safe_text(fields.get("method") or "", 20),
        "update": None,
        "force_collapse": None,
        "names": {k: v for k, v in names if isinstance(v, str) and _SETTING.fullmatch(v)},
    }
    if fields.get("update") in form.UPDATES:
        known["update"] = fields["update"]
    forced = safe_text(fields.get("force_collapse") or "", 20)
    if re.fullmatch(r"\d+@\d+", forced):
        known["force_collapse"] = forced
    return {key: value for key, value in known.items() if value not in (None, {})}


def _setting(value: Any) -> Any:
    if isinstance(value, bool):
        return float(value)
    return _number(value)


def _training(fields: dict[str, Any]) -> dict[str, Any]:
    adapters = [*_mapping(fields, "adapters").items()][:20]
    share = fields.get("expert_weights")
    if not form.SHARE.fits(share):
        share = None
    names = fields.get("missing_targets")
    if not isinstance(names, list):
        names = []
    found = {name: pair_of(fields.get(name)) for name in form.PAIRS} | {
        "expert_weights": share,
        "adapters": {safe_text(key, 20): n for key, n in adapters if form.COUNT.fits(n)},
        "missing_targets": [safe_text(name) for name in names[:20] if isinstance(name, str)],
    }
    return {key: value for key, value in found.items() if value not in (None, {}, [])}


def _routers(model: dict[str, Any]) -> tuple[RouterInfo, ...]:
    depths = model.get("layers")
    if not isinstance(depths, list) or len(depths) > form.MAX_ROUTERS:
        raise BadLine("model.layers is missing or not a list: it names the depth of every router")
    names = _rows_of(model.get("layer_names"), len(depths))

    def per_router(key: str) -> list[int]:
        """A size of each router: one for all, or a list, which may be short."""
        value = model.get(key)
        if not isinstance(value, list):
            value = [value] * len(depths)
        known = [*value, *[None] * len(depths)][: len(depths)]
        return [min(max(0, _integer(size) or 0), 1_000_000) for size in known]

    routers = []
    columns = (depths, names, per_router("num_experts"), per_router("top_k"))
    for depth, name, experts, top_k in zip(*columns, strict=True):
        number = _integer(depth) or 0
        if name is None:
            name = f"L{number}"
        routers.append(RouterInfo(safe_text(name, 12), number, experts, top_k))
    return tuple(routers)


def _number(value: Any) -> float | None:
    """Of a JSON number or a non-finite name; anything else counts as missing."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        try:
            return float(value)
        except OverflowError:  # 10^400 arrives as an int
            return None
    return form.NON_FINITE.get(value) if isinstance(value, str) else None


def _integer(value: Any) -> int | None:
    known = _number(value)
    if known is None or not math.isfinite(known) or known != int(known):
        return None
    return int(value) if isinstance(value, int) else int(known)


def _values_of(value: Any) -> Values | None:
    return [_number(item) for item in value] if isinstance(value, list) else None


def _finite_of(row: Any) -> Values | None:
    """Values that are not finite become ``None``, and so does an empty row."""
    return list(map(_finite, _values_of(row) or ())) or None


def _finite(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return value


def _rows_of(value: Any, routers: int) -> list[Any]:
    """A row per router, ``None`` in all if there is another number of them."""
    return value if isinstance(value, list) and len(value) == routers else [None] * routers


def counts_of(row: Any) -> list[int] | None:
    """``row`` as counts; ``None`` if it is not a list, is empty, or holds anything else."""
    if not isinstance(row, list) or not row:
        return None
    if set(map(type, row)) == {int}:  # nearly always: avoids checking every count
        counts: list[int | None] = row
        known = row
    else:
        counts = [_integer(item) for item in row]
        known = [count for count in counts if count is not None]
    if len(known) < len(counts) or min(known) < 0 or max(known) >= MAX_INTEGER:
        return None
    return known


def pair_of(value: Any) -> list[int] | None:
    """``[trained, all]``, numbers of tensors; ``None`` if it is something else."""
    pair = counts_of(value)
    if pair is None or len(pair) != 2 or pair[0] > pair[1]:
        return None
    return pair


def _floats_of(row: Any) -> list[float] | None:
    """A row of numbers; ``None`` if one of them is missing."""
    if isinstance(row, list) and set(map(type, row)) == {float}:
        return row
    values = _values_of(row) or []
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return known or None
