"""``checkpoint.json``: the description of a checkpoint, with its own checksum.

Its ``sha256`` covers all other entries, serialised as ASCII JSON with sorted keys and no spaces, so
that reformatting is allowed and changes are detected. A file without it (older, or hand-made) is
accepted. The checksum is not a signature: every value is validated as untrusted input.
"""

from __future__ import annotations

import hashlib
import json
import math
import stat
from pathlib import Path
from typing import Any

from moe_model.json_types import count, shown

FORMAT = "moe-microscope checkpoint"
FORMAT_VERSION = 1
DESCRIPTION = "checkpoint.json"
MOST_BYTES = 16 * 2**20
"""Size limit of ``checkpoint.json``; its largest part by far is a vocabulary of characters."""

UNREADABLE = (
    ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError, OSError,
)  # fmt: skip
"""Errors that reading an untrusted file can raise."""


class CheckpointError(ValueError):
    """The folder is not a checkpoint, or is damaged; the message says which and what to do."""


def read_plain_description(folder: Path) -> dict[str, Any]:
    """Read ``checkpoint.json`` in ``folder`` without checking the files it lists.

    Raises:
        CheckpointError: If it is missing, was changed, or describes something else.
    """
    path = folder / DESCRIPTION
    try:
        return read_plain(path)
    except UNREADABLE as error:
        raise no_description(path, error) from error


def no_description(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a description of a checkpoint ({reason(error)}): use another checkpoint."
    )


def reason(error: Exception) -> str:
    return f"{shown(error.args[0])} is missing" if isinstance(error, KeyError) else str(error)


def read_plain(path: Path) -> dict[str, Any]:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_BYTES:
        raise ValueError(f"it is not a file of at most {MOST_BYTES} bytes")
    text = path.read_bytes().decode("utf-8")
    plain = json.loads(text, parse_float=_finite, parse_constant=_finite)
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        raise ValueError(f"it lacks format={FORMAT!r}")
    version = plain["format_version"]
    if type(version) is not int or version != FORMAT_VERSION:
        raise ValueError(f"format_version={shown(version)}, but only {FORMAT_VERSION} is supported")
    digest = digest_of(plain)
    if plain.get("sha256", digest) != digest:
        raise ValueError("it is damaged: its checksum does not match")
    count("step", plain["step"])
    return plain


def _finite(number: str) -> float:
    """Raise ``ValueError`` for numbers that Python accepts but JSON does not: NaN, Infinity,
    1e999."""
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number[:20]} is not a finite number")
    return value


def digest_of(description: dict[str, Any]) -> str:
    rest = {name: value for name, value in description.items() if name != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()
