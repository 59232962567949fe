"""CSV: a wide table (``step,key1,key2,…``) or a long one (``step,key,value``).

The first line names the columns. Separators are ``,``, ``;`` or a tab. A row is one line: quoted
line breaks are not read. The last row counts once its line break is written, because a number that
is cut off is a number too.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

from microscope_tui.runlog import BadLine
from microscope_tui.sources.keys import Keys, Rule, Target
from microscope_tui.sources.line_rows import LineRows
from microscope_tui.sources.named_numbers import (
    HEAD_BYTES,
    STEP_NAMES,
    TIME_NAMES,
    as_step,
    as_time,
    head_of,
    parse_number,
)
from microscope_tui.sources.reader import Row, Unreadable

KEY_NAMES = ("key", "metric", "name", "tag")
VALUE_NAMES = ("value",)


class _Columns:
    """What each column of the table is."""

    def __init__(self, line: bytes, keys: Keys) -> None:
        """Raises ``BadLine`` if the line does not name a column for the step."""
        text = line.decode("utf-8", "replace")
        self.separator = max(",;\t", key=text.count)
        self.names = [name.strip() for name in _fields(text, self.separator)]
        self.step = self._find(STEP_NAMES)
        self.time = self._find(TIME_NAMES)
        self.key, self.value = self._find(KEY_NAMES), self._find(VALUE_NAMES)
        self.long = self.key >= 0 and self.value >= 0
        if self.step < 0:
            raise BadLine(f"no column for the step (one of {', '.join(STEP_NAMES)})")
        others = enumerate(self.names) if not self.long else ()
        places = [(at, keys[name]) for at, name in others if at not in (self.step, self.time)]
        self.targets = [(at, target) for at, target in places if target is not None]

    def _find(self, names: tuple[str, ...]) -> int:
        return next((self.names.index(name) for name in names if name in self.names), -1)


def _fields(text: str, separator: str) -> list[str]:
    if '"' not in text:
        return text.rstrip("\r").split(separator)
    try:
        return next(csv.reader([text], delimiter=separator), [])
    except csv.Error as error:  # a field above 128 kB, a stray carriage return
        raise BadLine(f"not a row of CSV: {error}") from error


def recognises(path: Path, own: Sequence[Rule] = ()) -> bool:
    """Whether the file begins with a table that has a step and a reading of a router.

    Args:
        path: of a file.
        own: rules of the user; what they map counts as a reading too.

    Raises:
        OSError: the file cannot be read.
    """
    head = head_of(path).removeprefix(b"\xef\xbb\xbf")
    lines = head.split(b"\n")
    if b"\0" in head or len(lines) < 2 or head.lstrip()[:1] in (b"{", b"["):
        return False
    if len(head) >= HEAD_BYTES:
        lines.pop()
    keys = Keys(own)
    try:
        columns = _Columns(lines[0], keys)
        if columns.long:
            for line in lines[1:]:
                fields = _fields(line.decode("utf-8", "replace"), columns.separator)
                if len(fields) == len(columns.names):
                    keys[fields[columns.key]]
    except BadLine:
        return False
    return keys.has_routers


class CsvReader(LineRows):
    """The rows of a table, a long one included: rows of one step are merged later."""

    kind = "row of a table with a step"

    def _begin(self) -> None:
        super()._begin()
        self._columns: _Columns | None = None
        self._last_step = 0
        self._stretch: set[Target] = set()  # what the rows since the last step back hold
        self._stretch_rows = 0
        self._seen: set[Target] = set()

    def _row(self, line: bytes) -> Row | None:
        if not line.strip():
            return None
        if self._columns is None:
            try:
                self._columns = _Columns(line, self.keys)
            except BadLine as error:
                raise Unreadable(f"first line: {error}; name the columns there") from error
            return None
        columns = self._columns
        fields = _fields(line.decode("utf-8", "replace"), columns.separator)
        if len(fields) != len(columns.names):
            raise BadLine(f"{len(fields)} fields for {len(columns.names)} columns")
        step = as_step(fields[columns.step])
        if step is None:
            raise BadLine("without a step from 0")
        time = as_time(fields[columns.time]) if columns.time >= 0 else None
        if not columns.long:
            texts = [(target, fields[at]) for at, target in columns.targets]
        else:
            target = self.keys[fields[columns.key].strip()]
            texts = [(target, fields[columns.value])] if target is not None else []
            if target is not None:
                self._refuse_sorted_by_key(step, target)
        numbers = [(target, parse_number(text)) for target, text in texts]
        return Row(step, time, [(target, x) for target, x in numbers if x is not None])

    def _refuse_sorted_by_key(self, step: int, target: Target) -> None:
        """All steps of one key, then all of the next, would look like a run that restarts."""
        if step < self._last_step:
            only_one = len(self._stretch) == 1 and self._stretch_rows > 1
            if only_one and target not in self._seen:
                raise Unreadable("the rows are sorted by key; sort them by step, then key")
            self._stretch, self._stretch_rows = set(), 0
        self._last_step = step
        self._stretch.add(target)
        self._stretch_rows += 1
        self._seen.add(target)
