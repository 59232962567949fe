"""One line of a run log becomes one record.

Two paths. The fast one decodes a step with a typed struct that does not declare the matrices, so
that msgspec skips them at disk speed. Whatever it refuses (bare ``NaN``, a string for a number,
deep nesting, a key of the wrong type) goes through the careful one, field by field: a bad key
costs that key, never the record, and never the reader.
"""

import json
from typing import Any

import msgspec

from microscope_tui.runlog.decode_header import MAX_ROUTERS, decode_run
from microscope_tui.runlog.json_values import (
    MAX_INTEGER,
    counts_of,
    floats_of,
    integer,
    number,
    rows_of,
    values_of,
)
from microscope_tui.runlog.records import (
    BadLine,
    EventRecord,
    Matrices,
    Record,
    RouterInfo,
    RouterSummary,
    RunRecord,
    StepRecord,
)
from microscope_tui.runlog.safe_text import safe_text

_MAX_OBJECT_BYTES = 8 << 20
"""Longer lines are not decoded as a whole: 60 MB of ``{},`` would become 1.6 GB of objects."""
_MAX_DIGITS = 4000  # Python refuses to parse longer integers, and with them the whole line

_step_decoder = msgspec.json.Decoder(StepRecord)
_STEP_PREFIXES = (b'{"kind":"step"', b'{"kind": "step"')
_MATRIX_KEYS = (
    b'"mean_weight":',
    b'"mean_output_norm":',
    b'"expert_bias":',
    b'"tokens_per_expert":',
)


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
    fields = _object(stripped)
    match fields.get("kind"):
        case "step":
            return _step(fields)
        case "run":
            return decode_run(fields)
        case "event":
            return _event(fields)
        case str():
            return None
    raise BadLine("no \"kind\": every record names its kind ('run', 'step' or 'event')")


def _without_matrices(line: bytes) -> bytes:
    """The line up to its matrices, if only those four are at its end; else the line.

    A few searches for single bytes decide at many GB/s, without parsing a number: the quotes of
    their keys must be the only ones there, without a hole of NULs.
    """
    found = sorted((at, key) for key in _MATRIX_KEYS if (at := line.find(key)) >= 0)
    if not found or not line.endswith(b"]}"):
        return line
    ends = [at for at, _ in found[1:]] + [-1]
    if any(
        line.find(b'"', at + len(key)) != end for (at, key), end in zip(found, ends, strict=True)
    ):
        return line
    cut = found[0][0]
    if line.find(b"\0", cut) >= 0:
        return line
    return line[:cut].rstrip(b", ") + b"}"


def decode_matrices(line: bytes, routers: int) -> Matrices:
    """Decode the matrices of a step line; rows that are not lists of counts become ``None``."""
    fields = _object(line)
    return Matrices(
        [counts_of(row) for row in rows_of(fields.get("tokens_per_expert"), routers)],
        [floats_of(row) for row in rows_of(fields.get("expert_bias"), routers)],
    )


def infer_run(line: bytes, name: str) -> RunRecord | None:
    """A default header from the first step of a log without one; ``None`` without counts."""
    fields = _object(line)
    rows = fields.get("tokens_per_expert")
    if not isinstance(rows, list) or not 0 < len(rows) <= MAX_ROUTERS:
        return None
    tokens = number(fields.get("tokens"))
    routers = []
    for index, row in enumerate(rows):
        counts = counts_of(row) or []
        top_k = 0
        if tokens is not None and tokens >= 1:
            top_k = max(1, min(round(sum(counts) / tokens), len(counts)))
        routers.append(RouterInfo(f"L{index}", index, len(counts), top_k))
    return RunRecord(run=safe_text(name), routers=tuple(routers), inferred=True)


def _object(line: bytes) -> dict[str, Any]:
    """The line as a dict: msgspec first, the standard library for what msgspec refuses."""
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


def _parsed_int(digits: str) -> int | None:
    return int(digits) if len(digits) < _MAX_DIGITS else None


def _step(fields: dict[str, Any]) -> StepRecord:
    step = integer(fields.get("step"))
    if step is None or not 0 <= step < MAX_INTEGER:
        raise BadLine(f"step is {safe_text(repr(fields.get('step')), 30)}, not a step number")
    router = fields.get("router")
    router = router if isinstance(router, dict) else {}
    losses = fields.get("losses")
    losses = losses if isinstance(losses, dict) else {}
    numbers = {
        name: number(fields.get(name))
        for name in StepRecord.__struct_fields__
        if name not in ("step", "losses", "router")
    }
    return StepRecord(
        step=step,
        losses={name: number(value) for name, value in losses.items()},
        router=RouterSummary(
            **{name: values_of(router.get(name)) for name in RouterSummary.__struct_fields__}
        ),
        **numbers,
    )


def _event(fields: dict[str, Any]) -> EventRecord:
    values = fields.get("values")
    values = values if isinstance(values, dict) else {}
    numbers = {safe_text(key, 40): number(value) for key, value in values.items()}
    return EventRecord(
        event=safe_text(fields.get("event") or "", 30),
        step=integer(fields.get("step")),
        time=number(fields.get("time")),
        reason=safe_text(fields.get("reason") or "", 60),
        values={key: value for key, value in numbers.items() if value is not None},
    )
