"""From a row of JSON or text to named numbers, steps and times.

Nested objects and lists are flattened: ``{"moe": {"load": [1, 2]}}`` holds ``moe/load/0`` and
``moe/load/1``. Only values whose key has a target are turned into numbers.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import compress
from pathlib import Path

import msgspec

from microscope_tui.runlog import open_regular_file
from microscope_tui.sources.keys import MAX_EXPERTS, Keys, Target

HEAD_BYTES = 64 << 10
"""A file is recognised by this much of its beginning."""
MAX_ROW_BYTES = 8 << 20
"""A row of 94 layers × 512 experts with shares and biases has 4 MB; 8 MB of ``{},`` become 200 MB
of objects."""
MAX_DEPTH = 8
"""Deeper objects are skipped: no logger nests its numbers further."""
MAX_OUTER_CHARACTERS = 128
"""Longest name of an object with numbers: it is copied into the key of each."""
MAX_STEP = 2**62
STEP_NAMES = (
    "step",
    "_step",
    "global_step",
    "train/global_step",
    "trainer/global_step",
    "iteration",
)
TIME_NAMES = ("time", "timestamp", "_timestamp", "wall_time")
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_CONTAINERS = {dict, list}
_MILLISECONDS = 1e11
"""As seconds this is the year 5138: larger times are in milliseconds."""


def head_of(path: Path) -> bytes:
    """The first ``HEAD_BYTES`` of a regular file.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    file = open_regular_file(path)
    try:
        return os.pread(file, HEAD_BYTES, 0)
    finally:
        os.close(file)


def decode_object(data: bytes) -> dict[str, object] | None:
    """The JSON object in ``data``, bare ``NaN`` allowed; ``None`` if it is anything else."""
    try:
        value = decode_json(data)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def decode_json(data: bytes) -> object:
    """What ``data`` holds; bare ``NaN`` and ``Infinity`` are allowed, as Python writes them.

    Raises:
        ValueError: it is not JSON, nested too deeply, or longer than ``MAX_ROW_BYTES``.
    """
    if len(data) > MAX_ROW_BYTES:
        raise ValueError(f"longer than {MAX_ROW_BYTES >> 20} MB")
    try:
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass  # the standard library takes NaN, and bytes that are not UTF-8 in a text
    try:
        return json.loads(data.decode("utf-8", "replace"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def matched(
    fields: Mapping[str, object], keys: Keys, depth: int = 0
) -> Iterator[tuple[Target, float]]:
    """The numbers in ``fields`` whose key has a target.

    Most keys have none: they cost a look-up and no line of Python.
    """
    values = fields.values()
    targets = list(map(keys.__getitem__, fields))
    for target, value in compress(zip(targets, values, strict=True), targets):
        assert target is not None
        number = value if type(value) is float else as_number(value)
        if number is not None:
            yield target, number
    if depth == MAX_DEPTH or _CONTAINERS.isdisjoint(map(type, values)):
        return
    for name, value in fields.items():
        if isinstance(value, list):
            value = dict(zip(map(str, range(MAX_EXPERTS)), value, strict=False))
        if isinstance(value, dict) and len(name) <= MAX_OUTER_CHARACTERS:
            inner = {f"{name}/{key}": item for key, item in value.items()}
            yield from matched(inner, keys, depth + 1)


def as_number(value: object) -> float | None:
    """A number of JSON, or the name of one that JSON cannot hold."""
    if isinstance(value, str):
        return _NON_FINITE.get(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def as_step(value: object) -> int | None:
    """A step: a whole number from 0, also written as ``10.0`` or ``"10"``."""
    if isinstance(value, str):
        value = parse_number(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    is_step = type(value) is int and 0 <= value < MAX_STEP
    return value if is_step else None  # type: ignore[return-value]


def as_time(value: object) -> float | None:
    """Unix seconds of a number (seconds or milliseconds) or of an ISO 8601 text (UTC if bare)."""
    if isinstance(value, str):
        if (number := parse_number(value)) is not None:
            return as_time(number)
        try:
            moment = datetime.fromisoformat(value[:64])
            return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
        except (ValueError, OverflowError):
            return None
    seconds = as_number(value)
    if seconds is None or not 0 <= seconds < _MILLISECONDS * 1000:
        return None
    return seconds / 1000 if seconds >= _MILLISECONDS else seconds


def parse_number(text: str) -> float | None:
    """The number that a text spells, also ``nan`` and ``inf``."""
    try:
        return float(text) if len(text) <= 64 else None
    except ValueError:
        return None


def first_of(fields: Mapping[str, object], names: tuple[str, ...]) -> object:
    """The value of the first of ``names`` that ``fields`` holds, or ``None``."""
    return next((fields[name] for name in names if name in fields), None)
