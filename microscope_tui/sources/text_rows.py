"""Rows of named numbers from a file of lines that may still grow: JSON lines and CSV.

A line that holds no row (a writer was killed within it) is counted as a defect and skipped; a file
that begins with many of them is refused.
"""

import csv
import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from microscope_tui.runlog import BadLine, LineSplitter, Tail, safe_text
from microscope_tui.sources.keys import (
    MAX_ROW_BYTES,
    STEP_NAMES,
    TIME_NAMES,
    Keys,
    Rule,
    Target,
    as_step,
    as_time,
    decode_object,
    first_of,
    matched,
    parse_number,
)
from microscope_tui.sources.reader import HEAD_BYTES, Row, RowReader, Rows, Unreadable, whole_steps

FOREIGN_BYTES = 1 << 20
"""A file whose first megabyte holds no row at all is refused."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_KINDS = ("run", "step", "event")
_KEY = re.compile(rb'"([^"\\]{1,512})"\s*:')
_KEY_NAMES = ("key", "metric", "name", "tag")


class LineRows(RowReader):
    """Follows the lines of ``path``; a torn last line waits for its end."""

    kind = ""
    """What a line should be, for messages."""

    def __init__(self, path: Path, keys: Keys, run: str = "") -> None:
        super().__init__(path, keys, run)
        self._tail = Tail(path, MAX_ROW_BYTES)
        self._begin()

    def _begin(self) -> None:
        self._has_rows = False

    @abstractmethod
    def _row(self, line: bytes) -> Row | None:
        """The row of a line; ``None`` for one without any.

        Raises:
            BadLine: the line is skipped for this reason.
            Unreadable: nothing that follows can be read either.
        """

    def read(self, max_bytes: int = 1 << 20) -> Rows:
        """The rows of the next whole lines; lines that cannot be read count as defects.

        ``Unreadable``: as ``_row``, or the file has begun with ``FOREIGN_BYTES`` without any row.
        """
        tail = self._tail
        found = tail.read_lines(max_bytes)
        if found.restarted:
            self._begin()
        rows = []
        for number, line in found.lines:
            try:
                row = self._row(line)
            except BadLine as error:
                tail.defects.add(number, str(error))
                continue
            self._has_rows = True
            if row is not None and row.targets:
                rows.append(row)
        self.report(tail)
        self.defects = tail.defects
        if not self._has_rows and self.defects.count and self.offset >= FOREIGN_BYTES:
            raise Unreadable(
                f"{safe_text(self.path.name)}: {self.offset:,} bytes hold no {self.kind} "
                f"({self.defects.first[0]}); give another --source"
            )
        return Rows(rows, found.restarted)

    def sample(self, count: int) -> list[Row]:
        tail, reader = self._tail, type(self)(self.path, self.keys)  # with a state of its own

        def rows_of(start: int, end: int) -> Iterator[Row]:
            data = tail.pread(min(end - start, MAX_ROW_BYTES), start)
            begin = data.find(b"\n") + 1 if start else 0
            for _, line in LineSplitter(MAX_ROW_BYTES).feed(data[begin:]):
                with suppress(BadLine):  # reading the whole file counts it
                    if (row := reader._row(line)) is not None:
                        yield row

        tail.pread(0, 0)
        with suppress(Unreadable):  # reading the whole file gives the reason
            return whole_steps(rows_of, 0, tail.size, count, 2048)
        return []


class JsonlReader(LineRows):
    """JSON lines: one object with a step and named numbers per line.

    prime-rl writes ``monitors/file/metrics.jsonl`` (``{"step", "time", **metrics}``, several rows
    per step, values that are not finite are left out), AutoModel ``training.jsonl``. A line that
    has a ``kind`` of the run log makes the file a run log.
    """

    kind = "JSON object with a step"

    @classmethod
    def begins(cls, head: bytes, own: Sequence[Rule]) -> bool:
        """There must be a step and a reading of a router."""
        text = head.removeprefix(_BYTE_ORDER_MARK)
        if not text.lstrip().startswith(b"{"):
            return False
        keys = Keys(own)
        lines = text.split(b"\n")
        torn = lines.pop() if len(head) >= HEAD_BYTES else b""
        if not lines:  # the first row is longer: its keys must do
            names = {key.decode("utf-8", "replace") for key in _KEY.findall(torn)}
            return _has_routers({n + end: 1.0 for n in names for end in ("", "/0/0")}, keys)
        rows = [_flat(fields) for line in lines if (fields := decode_object(line)) is not None]
        if any(fields.get("kind") in _KINDS for fields in rows):
            return False
        return any(_has_routers(fields, keys) for fields in rows)

    def _row(self, line: bytes) -> Row | None:
        stripped = line.strip()
        if not stripped:
            return None
        fields = decode_object(stripped)
        if fields is None:
            raise BadLine("not a JSON object")
        fields = _flat(fields)
        step = as_step(first_of(fields, STEP_NAMES))
        if step is None:
            raise BadLine("without a step from 0")
        time = as_time(first_of(fields, TIME_NAMES))
        return Row(step, time, list(matched(fields, self.keys)))


def _flat(fields: dict[str, object]) -> dict[str, object]:
    """verl's numbers are in ``data``, those of an event of miles in ``metrics``."""
    data, metrics = fields.get("data"), fields.get("metrics")
    if isinstance(data, dict) and fields.keys() == {"step", "data"}:
        return data | {"step": fields["step"]}
    if isinstance(metrics, dict) and fields.get("type") == "metric":
        return metrics | {"step": fields.get("rollout_id"), "time": fields.get("timestamp")}
    return fields


def _has_routers(fields: dict[str, object], keys: Keys) -> bool:
    has_step = as_step(first_of(fields, STEP_NAMES)) is not None
    read = any(target.of_router for target, _ in matched(fields, keys))
    return has_step and (read or keys.has_routers)


class CsvReader(LineRows):
    """CSV: a wide table (``step,key1,key2,…``) or a long one (``step,key,value``).

    The first line names the columns. Separators are ``,``, ``;`` or a tab. A row is one line:
    quoted line breaks are not read. The last row counts once its line break is written, because a
    number that is cut off is a number too.
    """

    kind = "row of a table with a step"

    @classmethod
    def begins(cls, head: bytes, own: Sequence[Rule]) -> bool:
        """There must be a step and a reading of a router."""
        text = head.removeprefix(_BYTE_ORDER_MARK)
        lines = text.split(b"\n")
        if b"\0" in head or len(lines) < 2 or text.lstrip()[:1] in (b"{", b"["):
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

    def _begin(self) -> None:
        super()._begin()
        self._columns: _Columns | None = None
        self._last_step = 0
        self._stretch: set[Target] = set()  # what the rows since the last step back hold
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
            if len(self._stretch) == 1 and target not in self._seen:
                raise Unreadable("the rows are sorted by key; sort them by step, then key")
            self._stretch = set()
        self._last_step = step
        self._stretch.add(target)
        self._seen.add(target)


class _Columns:
    def __init__(self, line: bytes, keys: Keys) -> None:
        """Raises ``BadLine`` if the line does not name a column for the step."""
        text = line.decode("utf-8", "replace")
        self.separator = max(",;\t", key=text.count)
        self.names = _keys_of([name.strip() for name in _fields(text, self.separator)])
        self.step, self.time = self._find(STEP_NAMES), self._find(TIME_NAMES)
        self.key, self.value = self._find(_KEY_NAMES), self._find(("value",))
        self.long = self.key >= 0 and self.value >= 0
        if self.step < 0:
            raise BadLine(f"no column for the step: one of {', '.join(STEP_NAMES)}")
        others = enumerate(self.names) if not self.long else ()
        places = [(at, keys[name]) for at, name in others if at not in (self.step, self.time)]
        self.targets = [(at, target) for at, target in places if target is not None]

    def _find(self, names: tuple[str, ...]) -> int:
        spelt = [name.lower().replace(" ", "_") for name in self.names]
        return next((spelt.index(name) for name in names if name in spelt), -1)


def _keys_of(columns: list[str]) -> list[str]:
    """The names of columns; W&B exports ``RUN - KEY``, ``RUN - KEY__MIN``, ``RUN - KEY__MAX``."""
    if not any(name.endswith("__MIN") for name in columns):
        return columns
    parts = [name.rpartition(" - ") for name in columns]
    runs = sorted({run for run, _, _ in parts if run})
    if len(runs) > 1:
        raise BadLine(f"columns of several runs: {safe_text(', '.join(runs), 99)}; keep one")
    keys = []
    for _, _, key in parts:
        if key.endswith(("__MIN", "__MAX")):
            key = ""  # beside the column of the value itself
        keys.append(key)
    return keys


def _fields(text: str, separator: str) -> list[str]:
    if '"' not in text:
        return text.rstrip("\r").split(separator)
    try:
        return next(csv.reader([text], delimiter=separator), [])
    except csv.Error as error:  # a field above 128 kB, a stray carriage return
        raise BadLine(f"not a row of CSV: {error}") from error
