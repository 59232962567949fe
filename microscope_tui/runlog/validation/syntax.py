"""Parses one line of bytes to one JSON object, strictly.

The reader tolerates bare ``NaN``, holes of NUL bytes and broken UTF-8. Here each is reported, and
what can be read after it is returned, so that one mistake does not hide others.
"""

import json
import math
import re
from typing import Any

import msgspec

from microscope_tui.runlog.safe_text import safe_text
from microscope_tui.runlog.validation.problems import Problems, shown

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_STRING_OR_BARE = re.compile(r'"(?:[^"\\]|\\.)*"|-?Infinity|NaN')
_BARE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_EXCERPT = 16


def strict_object(problems: Problems, line: bytes) -> dict[str, Any] | None:
    """The object of the line; ``None`` if there is none, which is reported."""
    line = _without_strange_bytes(problems, line)
    if not line.strip():
        problems.hint("empty", "an empty line: write one record a line and nothing between them")
        return None
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        problems.error(
            "utf-8",
            f"not UTF-8: byte {line[error.start]:#04x} at byte {error.start + 1:,}: "
            "write the file as UTF-8",
        )
        text = line.decode("utf-8", "replace")
    value = _value(problems, line, text)
    if value is not None and not isinstance(value, dict):
        problems.error("object", f"{shown(value)}, not an object: write one JSON object a line")
        return None
    return value


def _without_strange_bytes(problems: Problems, line: bytes) -> bytes:
    if problems.line == 1 and line.startswith(_BYTE_ORDER_MARK):
        byte_order_mark(problems)
        line = line.removeprefix(_BYTE_ORDER_MARK)
    if b"\0" in line:
        hole(problems, line.count(b"\0"))
        line = line.strip(b"\0")
    return line


def byte_order_mark(problems: Problems) -> None:
    """The file starts with U+FEFF."""
    problems.hint("bom", "the file starts with a byte order mark: write plain UTF-8 without one")


def hole(problems: Problems, size: int) -> None:
    """``size`` NUL bytes are in the file."""
    problems.error(
        "nul",
        f"{size:,} NUL bytes: a hole that a crash or two writers left; records may be lost here, "
        "write each record with one write to a file opened for append",
    )


def _value(problems: Problems, line: bytes, text: str) -> Any:
    """The JSON value; ``None`` (not a record either) after the reason was reported."""
    try:
        value = msgspec.json.decode(line)
    except RecursionError:
        problems.error("depth", "nested too deeply to be a record: write flat lists and objects")
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError) as refusal:
        return _by_the_standard_library(problems, text, refusal)
    if value is None:
        problems.error("object", "null, not an object: write one JSON object a line")
    return value


def _by_the_standard_library(problems: Problems, text: str, refusal: Exception) -> Any:
    """Values that msgspec refuses: reported with the place of the mistake, or tolerated."""
    bare: list[str] = []

    def keep(name: str) -> float:
        bare.append(name)
        return _BARE[name]

    try:
        value = json.loads(text, parse_constant=keep)
    except json.JSONDecodeError as error:
        near = safe_text(text[max(0, error.pos - _EXCERPT) : error.pos + _EXCERPT], 2 * _EXCERPT)
        problems.error(
            "json",
            f"not JSON: {safe_text(error.msg)} at character {error.pos + 1:,}, near {near!r}: "
            "write one whole JSON object a line",
        )
        return None
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, deep nesting
        problems.error("json", f"not a record: {safe_text(error)}: write plain numbers and lists")
        return None
    if bare:
        name, place = _first_bare(text)
        problems.error(
            "bare",
            f"{len(bare)} bare {name} (at character {place:,}), which is not JSON: "
            f'write the string "{name}"',
        )
    elif isinstance(refusal, msgspec.MsgspecError):
        problems.error(
            "json",
            f"a strict JSON reader refuses this line ({safe_text(refusal)}): "
            "write finite numbers of usual size, and text without lone surrogates",
        )
    return value


def _first_bare(text: str) -> tuple[str, int]:
    for match in _STRING_OR_BARE.finditer(text):
        if not match.group().startswith('"'):
            return match.group(), match.start() + 1
    raise AssertionError("the parser met a bare name outside of every string")
