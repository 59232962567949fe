"""Runs of TensorBoard: a folder of event files, or one of them.

From the file to the row: a TFRecord file (``RecordSplitter``) holds events, an event holds a step,
a time and named numbers (``EventRows``). A folder is one run. A trainer that resumes starts another
file, and several writers may share a folder, so the rows of all files are merged by their time:
files that follow each other are read one after the other, files that were written at once side by
side. Subfolders are other runs: ``SummaryWriter.add_scalars`` makes one for each of its numbers.
"""

import math
import re
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

from microscope_tui.runlog import Tail, safe_text
from microscope_tui.sources.keys import MAX_EXPERTS, Keys, Rule, Target, decode_object, matched
from microscope_tui.sources.protobuf import (
    MAX_STEP,
    SLOW,
    BadMessage,
    Head,
    PrefixTargets,
    as_bytes,
    as_number,
    fields,
    fixed_numbers,
    varint,
    whole_numbers,
)
from microscope_tui.sources.reader import (
    Pairs,
    Row,
    RowReader,
    Rows,
    Unreadable,
    coarse_to_fine,
    files_of,
    first_of_routers,
)

HEADER_BYTES = 12
OVERHEAD_BYTES = 16
MAX_RECORD_BYTES = 64 * 1024 * 1024
"""Longer records are skipped: they hold pictures or graphs, no scalars."""
MAX_FILES = 256
"""Event files of one run that are followed, the oldest first."""
MAX_SAMPLED_BYTES = 32 << 20
"""What ``sample`` reads at most: about a second."""
MAX_CONFIG_BYTES = 1 << 20
CONFIG_TAGS = ("model_config/text_summary", "model_config")
"""Where the Hugging Face Trainer writes the configuration of the model, as JSON."""
FILE_VERSION = b"brain.Event:"
_LEAST_REPEATED = 8  # events of a step that are read together
_LEAST_OF_A_FILE = 16 * 1024
_SAMPLED_AT_ONCE = 16 * 1024  # a place needs three steps: the first is torn, the third ends it
_MAX_KNOWN_HEADERS = 1 << 16
_HEADER = struct.Struct("<QI")
_POLYNOMIAL = 0x82F63B78
_MASK_DELTA = 0xA282EAD8
_WALL_TIME, _STEP, _FILE_VERSION, _SUMMARY = 1, 2, 3, 5  # of Event
_VALUE = 1  # of Summary
_TAG, _SIMPLE_VALUE, _HISTOGRAM, _TENSOR, _METADATA = 1, 2, 5, 8, 9  # of Summary.Value
_OF_HISTOGRAMS = b"\x0a\x0ahistograms"  # plugin_name of SummaryMetadata
_DTYPE, _SHAPE, _CONTENT, _STRINGS = 1, 2, 4, 8  # of TensorProto
_DIMENSION, _SIZE = 2, 1  # of TensorShapeProto
_LETTERS = {1: "f", 2: "d", 3: "i", 9: "q", 19: "e"}  # of a DataType in struct
_PLACES = {1: 5, 2: 6, 3: 7, 9: 10, 14: 13, 19: 13}  # its field, if the numbers are not bytes
_HALVES = 13
_MOST_BYTES = 2 << 20  # of a histogram or a tensor that is read
_DOUBLE, _FLOAT = struct.Struct("<d"), struct.Struct("<f")


class TensorBoardReader(RowReader):
    names = re.compile(r"events\.out\.tfevents\..+", re.DOTALL)

    @classmethod
    def begins(cls, head: bytes, own: Sequence[Rule]) -> bool:
        length = length_of(head[:HEADER_BYTES]) if len(head) >= HEADER_BYTES else None
        try:
            found = dict(fields(head[HEADER_BYTES : HEADER_BYTES + (length or 0)]))
        except BadMessage:
            return False
        version = found.get(_FILE_VERSION)
        return isinstance(version, bytes) and version.startswith(FILE_VERSION)

    def __init__(self, path: Path, keys: Keys, run: str = "") -> None:
        super().__init__(path, keys, run)
        self._start([])

    def _start(self, paths: Iterable[Path]) -> None:
        self._decoder = EventRows(self.keys)
        self._last: Row | None = None  # of those that were returned
        self._files = {path: _EventFile(path, self._decoder) for path in paths}
        self.config = self._decoder.config

    def read(self, max_bytes: int = 1 << 20) -> Rows:
        self._look()
        files = list(self._files.values())
        starved = [file for file in files if not file.rows]
        for file in starved:
            file.fill(max(_LEAST_OF_A_FILE, max_bytes // len(starved)))
        if any(file.restarted for file in files):
            return self._again()
        rows = list(_by_time(files))
        if rows and self._are_late(rows):
            return self._again()
        self.report(*(file.bytes for file in files))
        self.exhausted = not any(file.rows or file.may_have_more for file in files)
        damage = next((file.damage for file in files if file.damage is not None), None)
        if damage is not None and not rows and self.exhausted:
            raise damage
        return Rows(rows)

    def _are_late(self, rows: Sequence[Row]) -> bool:
        """A writer flushed them when later rows of another were returned."""
        first, last, self._last = rows[0], self._last, rows[-1]
        if last is None or first.step > last.step:
            return False
        return (first.time or 0.0) < (last.time or 0.0)

    def _again(self) -> Rows:
        self._start(self._files)
        self.exhausted = False
        return Rows((), restarted=True)

    def sample(self, count: int) -> list[Row]:
        """The first step at each of about ``count`` places in all files together.

        The rest is not read. Where steps are so large that ``MAX_SAMPLED_BYTES`` are not enough, a
        row has the numbers that come first in its step. ``OSError``: a file cannot be read.
        """
        self._look()
        files = list(self._files.values())
        for file in files:
            file.bytes.pread(0, 0)
        size = sum(file.bytes.size for file in files)
        most = max(_SAMPLED_AT_ONCE, MAX_SAMPLED_BYTES // max(1, count))
        rows: dict[tuple[int, int], Row] = {}
        for place in coarse_to_fine(max(1, count)):
            at = int(place * size)
            for index, file in enumerate(files):
                if at < file.bytes.size:
                    row = file.first_step(at, most)
                    if row is not None:
                        rows[index, row.step] = row
                    break
                at -= file.bytes.size
        return [rows[place] for place in sorted(rows)]

    def _look(self) -> None:
        if found := files_of(self.path, self.names, MAX_FILES) if self.path.exists() else []:
            self._files = {
                path: self._files.get(path) or _EventFile(path, self._decoder) for path in found
            }


class _EventFile:
    def __init__(self, path: Path, decoder: "EventRows") -> None:
        self.bytes = Tail(path, None)
        self.rows: deque[Row] = deque()
        self.damage: Unreadable | None = None
        self.restarted = False
        self._decoder = decoder
        self._splitter = RecordSplitter()

    @property
    def may_have_more(self) -> bool:
        return self.damage is None and not self.bytes.exhausted

    def fill(self, max_bytes: int) -> None:
        chunk = self.bytes.read(max_bytes)
        self.restarted = chunk.restarted
        if self.damage is not None or self.restarted:
            return
        rows, why = self._decoder.rows(self._splitter.feed(chunk.data, self._decoder.layout))
        self.rows += rows
        self.damage = self._splitter.damage
        if why is not None:
            self.damage = Unreadable(
                f"an event of {safe_text(self.bytes.path.name)} before byte {self.bytes.offset:,} "
                f"cannot be decoded ({why}): copy the file again. What comes before is shown"
            )

    def first_step(self, at: int, most: int) -> Row | None:
        """The first matching step in ``most`` bytes from ``at`` on, of routers if there is one."""
        splitter: RecordSplitter | None = None
        rows: list[Row] = []
        for offset in range(at, at + most, _SAMPLED_AT_ONCE):
            data = self.bytes.pread(_SAMPLED_AT_ONCE, offset)
            if splitter is None:
                start = 0 if at == 0 else find_record(data)
                if start is None:
                    continue
                data = data[start:]
                splitter = RecordSplitter(offset + start)
            found, why = self._decoder.rows(splitter.feed(data))
            if rows and found and rows[-1].step == found[0].step:
                rows[-1].add(found.pop(0))
            rows += found
            ended = why is not None or offset + _SAMPLED_AT_ONCE >= self.bytes.size
            if ended or any(row.of_router for row in rows[1:-1]):  # the last may not be complete
                break
        if at > 0 and len(rows) > 1:
            rows = rows[1:]  # the first may have begun before ``at``
        return first_of_routers(rows)


def _by_time(files: list[_EventFile]) -> Iterator[Row]:
    """The rows of all files in the order of their times, as far as that order is known."""
    while any(file.rows for file in files):
        if any(not file.rows and file.may_have_more for file in files):
            return  # the next of this file may come first
        first = min((file for file in files if file.rows), key=lambda file: file.rows[0].time or 0)
        yield first.rows.popleft()


_TABLE = list(range(256))
for _ in range(8):
    _TABLE = [value >> 1 ^ _POLYNOMIAL * (value & 1) for value in _TABLE]


def masked_crc32c(data: bytes) -> int:
    """The checksum of TFRecord files: crc32c, rotated, plus a constant."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 255]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def length_of(header: bytes) -> int | None:
    """The length of the data after a record's first 12 bytes; ``None`` if its checksum is wrong."""
    length, checksum = _HEADER.unpack(header)
    return length if masked_crc32c(header[:8]) == checksum else None


class RecordSplitter:
    """Splits a byte stream into the data of its records; keeps what is torn for the next bytes.

    A record is its length (8 bytes, little endian), a masked crc32c of the length, the data, and
    one of the data. Only the first is verified: crc32c is not in the standard library, and in
    Python takes a hundred times as long as decoding the event.
    https://www.tensorflow.org/tutorials/load_data/tfrecord
    """

    def __init__(self, start: int = 0) -> None:
        """``start``: offset in the file of the first byte, for messages."""
        self.damage: Unreadable | None = None
        """Why nothing follows the records that were returned."""
        self._parts: list[bytes] = []  # what is torn
        self._have = 0
        self._need = HEADER_BYTES  # bytes that the next record needs
        self._skip = 0  # bytes of an overlong record that are still to come
        self._at = start
        self._lengths: dict[bytes, int] = {}  # of headers that were verified

    def feed(self, data: bytes, layout: "StepLayout | None" = None) -> list[bytes | Row]:
        """The records that ``data`` completes; a row in place of those of a step of ``layout``."""
        if self.damage is not None:
            return []
        self._parts.append(data)
        self._have += len(data)
        if self._have < self._need:
            return []
        data = b"".join(self._parts)
        records, used = self._split(data, layout)
        rest = data[used:]
        self._parts, self._have, self._at = [rest], len(rest), self._at + used
        return records

    def _split(self, data: bytes, layout: "StepLayout | None") -> tuple[list[bytes | Row], int]:
        records: list[bytes | Row] = []
        lengths, end = self._lengths, len(data)
        at = min(self._skip, end)
        self._skip -= at
        while not self._skip:
            start = at + HEADER_BYTES
            self._need = HEADER_BYTES
            if start > end:
                break
            header = data[at:start]
            if layout is not None and header == layout.header:
                row = layout.row(data, at)
                if row is not None:
                    records.append(row)
                    at += layout.size
                    continue
            length = lengths.get(header)
            if length is None:
                length = self._verified(header, self._at + at)
                if length is None:
                    break
            stop = start + length
            if length > MAX_RECORD_BYTES:
                at, self._skip = min(end, stop + 4), max(0, stop + 4 - end)
                continue
            if stop + 4 > end:
                self._need = OVERHEAD_BYTES + length
                break
            records.append(data[start:stop])
            at = stop + 4
        return records, at

    def _verified(self, header: bytes, at: int) -> int | None:
        length = length_of(header)
        if length is None:
            hole = " (zeros that a crash left)" if not any(header) else ""
            self.damage = Unreadable(
                f"the event file is damaged at byte {at:,}: the checksum of a length is wrong"
                f"{hole}: copy the file again. What comes before is shown"
            )
        elif len(self._lengths) < _MAX_KNOWN_HEADERS:
            self._lengths[header] = length
        return length


def find_record(data: bytes) -> int | None:
    """Where the first record with a valid length begins in ``data``.

    The upper bytes of a length are zeros, so only few places need their checksum computed; a wrong
    one passes once in four billion.
    """
    at = data.find(b"\0\0\0\0\0", 3)
    while at >= 0 and at + 9 <= len(data):
        if length_of(data[at - 3 : at + 9]) is not None:
            return at - 3
        at = data.find(b"\0\0\0\0\0", at + 1)
    return None


class StepLayout:
    """The events of a step with one number each, which most writers repeat in every step.

    All bytes are the same again but times, steps, numbers and their checksums. So one comparison
    recognises a step of the same layout, and its numbers are unpacked together.
    """

    def __init__(self, events: Sequence[bytes], targets: Sequence[Head]) -> None:
        """``targets``: of the ``events`` of one step; the first has one."""
        self._targets, self._known = targets, [one for one in targets if type(one) is Target]
        fixed, mask, layout = bytearray(), bytearray(), "<"
        for event in events:
            at = varint(event, 10)[1]
            step, tag = at - 10, len(event) - at - 4
            length = struct.pack("<Q", len(event))
            fixed += length + struct.pack("<I", masked_crc32c(length)) + event + bytes(4)
            mask += b"\xff" * 13 + bytes(8) + b"\xff" + bytes(step) + b"\xff" * tag + bytes(8)
            layout += f"22x{step}s{tag}xf4x"
        self.size, self.header = len(fixed), bytes(fixed[:HEADER_BYTES])
        at = varint(events[0], 10)[1]
        self._tag, self._tag_at = events[0][at:-4], HEADER_BYTES + at
        self._mask = int.from_bytes(mask, "little")
        self._fixed = int.from_bytes(fixed, "little") & self._mask
        self._layout = struct.Struct(layout)

    def row(self, data: bytes, at: int) -> Row | None:
        """The step that begins at ``at`` with ``header``; ``None`` if it has another layout."""
        if at + self.size > len(data) or not data.startswith(self._tag, at + self._tag_at):
            return None
        block = data[at : at + self.size]
        if int.from_bytes(block, "little") & self._mask != self._fixed:
            return None
        found = self._layout.unpack(block)
        steps = set(compress(found[::2], self._targets))
        if len(steps) > 1 or found[0][-1] > 127:
            return None
        row = _row_of(varint(found[0], 0)[0], _DOUBLE.unpack_from(block, HEADER_BYTES + 1)[0])
        row.targets, row.numbers = self._known[:], list(compress(found[1::2], self._targets))
        return row


def _row_of(step: int, wall: float, values: Pairs = ()) -> Row:
    return Row(step, wall if 0 <= wall < MAX_STEP else None, values)


class EventRows:
    """Turns the events of a run into rows; those of one step that follow each other are one row.

    Most writers put one number into an event: all bytes but step, time and number are the same each
    time, and looked up as a whole. Other layouts are decoded field by field.
    """

    def __init__(self, keys: Keys) -> None:
        self.config: dict[str, object] = {}
        self.layout: StepLayout | None = None
        """That of the last two steps with the same one."""
        self._keys = keys
        self._heads = PrefixTargets(self._head_of)
        self._lengths, self._tried = list[int](), list[int]()  # of the last step, of ``layout``

    def rows(self, events: Sequence[bytes | Row]) -> tuple[list[Row], BadMessage | None]:
        """The rows of some events, and why the next one cannot be decoded, if so."""
        rows: list[Row] = []
        last = Row(-1, None)
        first: int | None = None  # event of the last row, if that is plain
        step, tag_at, mark = -1, 0, b"\xff" * 9  # of the last plain event; ``mark``: its bytes
        heads, unpack_float = self._heads, _FLOAT.unpack
        try:
            for place, event in enumerate(events):
                head: Head = SLOW
                if isinstance(event, Row):
                    row, first = event, None
                else:
                    if event[:1] == b"\x09" and event[9:10] == b"\x10":
                        if not event.startswith(mark, 10):
                            step, tag_at = varint(event, 10)
                            mark = event[10:tag_at]
                        head = heads[event[tag_at:-4]]
                    if head is None:
                        continue
                    if type(head) is not Target:
                        row = self._slow(event)
                    elif step == last.step:
                        last.targets.append(head)
                        last.numbers += unpack_float(event[-4:])
                        continue
                    else:
                        pair = head, unpack_float(event[-4:])[0]
                        row = _row_of(step, _DOUBLE.unpack_from(event, 1)[0], [pair])
                if row.step == last.step:
                    last.add(row)
                elif row.targets and row.step < MAX_STEP:
                    if first is not None:
                        self._learn(events[first:place])
                    first = place if type(head) is Target else None
                    last = row
                    rows.append(row)
        except BadMessage as why:
            return rows, why
        return rows, None

    def _learn(self, events: Sequence[Any]) -> None:
        """Remember the layout of a step if the one before had the same."""
        before, self._lengths = self._lengths, list(map(len, events))
        if self._lengths == before != self._tried and len(events) >= _LEAST_REPEATED:
            self._tried = before
            if any(event[:1] != b"\x09" or event[9:10] != b"\x10" for event in events):
                return
            heads = [self._heads[event[varint(event, 10)[1] : -4]] for event in events]
            if SLOW not in heads:
                self.layout = StepLayout(events, heads)

    def _head_of(self, head: bytes) -> Head:
        """``summary { value { tag simple_value } }`` without the number, and nothing else."""
        if not head.endswith(b"\x15"):
            return SLOW
        try:
            name, at = b"", 0
            for tag, after in ((b"\x2a", 4), (b"\x0a", 4), (b"\x0a", -1)):
                if head[at : at + 1] != tag:
                    return SLOW
                length, at = varint(head, at + 1)
                if at + length != len(head) + after:
                    return SLOW
            name = head[at:-1]
        except BadMessage:
            return SLOW
        return self._keys[name.decode("utf-8", "replace")]

    def _slow(self, event: bytes) -> Row:
        found = dict(fields(event))
        wall = fixed_numbers(found.get(_WALL_TIME, b""), "d")
        values: list[tuple[Target, float]] = []
        for number, value in fields(as_bytes(found.get(_SUMMARY, b""))):
            if number == _VALUE:
                values += self._value(as_bytes(value))
        return _row_of(as_number(found.get(_STEP, 0)), wall[0] if wall else -1.0, values)

    def _value(self, message: bytes) -> Pairs:
        found = dict(fields(message))
        tag = as_bytes(found.get(_TAG, b"")).decode("utf-8", "replace")
        if _HISTOGRAM in found or _OF_HISTOGRAMS in as_bytes(found.get(_METADATA, b"")):
            self._keys.sees(tag, "histogram")
            return []
        number, tensor = found.get(_SIMPLE_VALUE), as_bytes(found.get(_TENSOR, b""))
        if tag in CONFIG_TAGS and tensor:
            self._take_config(tensor)
        if number is not None:
            return self._numbers(tag, [], fixed_numbers(number, "f"))
        return self._numbers(tag, *_tensor(tensor))

    def _numbers(self, tag: str, shape: Sequence[int], numbers: Sequence[float]) -> Pairs:
        keys = self._keys
        if len(numbers) < 2:
            target = keys[tag]
            return [] if target is None else [(target, number) for number in numbers]
        if keys[tag + "/0" * len(shape)] is None:
            keys.sees(tag, "list")
            return []
        values: Sequence[Any] = numbers
        for size in shape[:0:-1]:
            values = [values[at : at + size] for at in range(0, len(values), size)]
        return matched({tag: values}, keys)

    def _take_config(self, tensor: bytes) -> None:
        text = next((as_bytes(v) for n, v in fields(tensor) if n == _STRINGS), b"")
        if len(text) <= MAX_CONFIG_BYTES:  # without it the user gives E and k
            self.config.update(decode_object(text) or {})


def _tensor(message: bytes) -> tuple[list[int], list[float]]:
    """Shape and numbers of a ``TensorProto``; none if they are of another kind, or too many."""
    parts = _parts(message)
    dimensions = _parts(as_bytes(parts.get(_SHAPE, [b""])[-1])).get(_DIMENSION, [])
    shape = [as_number(dict(fields(as_bytes(one))).get(_SIZE, 0)) for one in dimensions[:5]]
    kind = as_number(parts.get(_DTYPE, [0])[-1])
    letter, place = _LETTERS.get(kind, ""), _PLACES.get(kind, 0)
    content, values = parts.get(_CONTENT), parts.get(place, [])
    if letter and (content or letter in "fd"):
        found = [x for value in content or values for x in fixed_numbers(value, letter)]
    else:
        found = [float(x) for value in values for x in whole_numbers(value)]
        if place == _HALVES:
            found = list(map(_of_half, map(int, found)))
    size = math.prod(shape)
    if not len(found) <= size <= MAX_EXPERTS or len(shape) > 4:
        return shape, []
    return shape, found + found[-1:] * (size - len(found))  # TensorFlow leaves equal ones out


def _of_half(bits: int) -> float:
    """torch writes the bits of a 32-bit float; those of a half, as TensorFlow, are not read."""
    if bits and not bits >> 16:
        return math.nan
    return fixed_numbers(struct.pack("<I", bits & 0xFFFFFFFF), "f")[0]


def _parts(message: bytes) -> dict[int, list[int | bytes]]:
    """The values of a message by the number of the field; none of one that is too long."""
    parts: dict[int, list[int | bytes]] = {}
    for number, value in fields(message) if len(message) <= _MOST_BYTES else ():
        parts.setdefault(number, []).append(value)
    return parts
