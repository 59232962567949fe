"""``checkpoint.json``: what a checkpoint is, in JSON that vouches for itself.

Its ``sha256`` is that of all its other entries as
JSON in ASCII with sorted keys and no spaces. So it may be laid out anew, but what it says cannot
change unnoticed. One without (older, or made by hand) is read as it stands. None of this is a
signature: every value is checked as if a stranger wrote it.
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
"""Of ``checkpoint.json``: its largest part by far is a vocabulary of characters."""

UNREADABLE = (
    ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError, OSError,
)  # fmt: skip
"""What reading may make of a file that anybody may have written."""


class CheckpointError(ValueError):
    """A folder that is no checkpoint, or a damaged one; the message says which and what to do."""


def read_plain_description(folder: Path) -> dict[str, Any]:
    """What ``checkpoint.json`` in ``folder`` says, without a look at the files it lists.

    Raises:
        CheckpointError: If there is none, it was changed, or it is of something else.
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
        raise ValueError(f"it is no file of up to {MOST_BYTES} bytes")
    text = path.read_bytes().decode("utf-8")
    plain = json.loads(text, parse_float=_finite, parse_constant=_finite)
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        raise ValueError(f"it does not say format={FORMAT!r}")
    version = plain["format_version"]
    if type(version) is not int or version != FORMAT_VERSION:
        raise ValueError(f"format_version={shown(version)}, known is {FORMAT_VERSION}")
    digest = digest_of(plain)
    if plain.get("sha256", digest) != digest:
        raise ValueError("it is damaged: what it says is not what was written")
    count("step", plain["step"])
    return plain


def _finite(number: str) -> float:
    """``ValueError`` for what Python reads and JSON does not know: NaN, Infinity, 1e999."""
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number[:20]} is not a finite number")
    return value


def digest_of(description: dict[str, Any]) -> str:
    rest = {name: value for name, value in description.items() if name != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()
