"""JSON lines: one object with a step and named numbers per line.

prime-rl writes ``monitors/file/metrics.jsonl`` (``{"step", "time", **metrics}``, several rows per
step, values that are not finite are left out), AutoModel ``training.jsonl``; any file of such lines
can be read with a mapping. A line that has a ``kind`` of the run log makes the file a run log.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from microscope_tui.runlog import BadLine
from microscope_tui.sources.keys import Keys, Rule
from microscope_tui.sources.line_rows import LineRows
from microscope_tui.sources.named_numbers import (
    HEAD_BYTES,
    STEP_NAMES,
    TIME_NAMES,
    as_step,
    as_time,
    decode_object,
    first_of,
    head_of,
    matched,
)
from microscope_tui.sources.reader import Row

_KINDS = ("run", "step", "event")
_KEY = re.compile(rb'"([^"\\]{1,512})"\s*:')


def recognises(path: Path, own: Sequence[Rule] = ()) -> bool:
    """Whether the file begins with JSON lines that have a step and a reading of a router.

    Args:
        path: of a file.
        own: rules of the user; what they map counts as a reading too.

    Raises:
        OSError: the file cannot be read.
    """
    head = head_of(path).removeprefix(b"\xef\xbb\xbf")
    keys = Keys(own)
    if not head.lstrip().startswith(b"{"):
        return False
    lines = head.split(b"\n")
    torn = lines.pop() if len(head) >= HEAD_BYTES else b""
    if not lines:  # the first row is longer: its keys must do
        names = {key.decode("utf-8", "replace") for key in _KEY.findall(torn)}
        return _is_source(dict.fromkeys(names, 1.0), keys)
    rows = [fields for line in lines if (fields := decode_object(line)) is not None]
    if any(fields.get("kind") in _KINDS for fields in rows):
        return False
    return any(_is_source(fields, keys) for fields in rows)


def _is_source(fields: dict[str, object], keys: Keys) -> bool:
    has_step = as_step(first_of(fields, STEP_NAMES)) is not None
    return has_step and any(target.of_router for target, _ in matched(fields, keys))


class JsonlReader(LineRows):
    """The rows of a file of JSON lines."""

    kind = "JSON object with a step"

    def _row(self, line: bytes) -> Row | None:
        stripped = line.strip()
        if not stripped:
            return None
        fields = decode_object(stripped)
        if fields is None:
            raise BadLine("not a JSON object")
        step = as_step(first_of(fields, STEP_NAMES))
        if step is None:
            raise BadLine("without a step from 0")
        time = as_time(first_of(fields, TIME_NAMES))
        return Row(step, time, list(matched(fields, self.keys)))
