"""The events of TensorBoard: a step, a time and named numbers.

Most writers put one number into an event. All bytes of such an event but step, time and number are
the same each time, so they are looked up as a whole. All other layouts are decoded field by field.
"""

import struct
from collections.abc import Sequence

import msgspec

from microscope_tui.sources.keys import Keys, Target
from microscope_tui.sources.protobuf import (
    BadMessage,
    as_bytes,
    as_number,
    fields,
    varint,
)
from microscope_tui.sources.reader import Row

MAX_STEP = 2**53
MAX_HEADS = 1 << 18
"""Keys that are recognised by their bytes: 512 experts in 128 layers, four times. Further ones take
the slow way."""
MAX_CONFIG_BYTES = 1 << 20
CONFIG_TAGS = ("model_config/text_summary", "model_config")
"""Where the Hugging Face Trainer writes the configuration of the model, as JSON."""
FILE_VERSION = b"brain.Event:"
_WALL_TIME, _STEP, _FILE_VERSION, _SUMMARY = 1, 2, 3, 5  # of Event
_VALUE = 1  # of Summary
_TAG, _SIMPLE_VALUE, _TENSOR = 1, 2, 8  # of Summary.Value
_DTYPE, _CONTENT, _FLOATS, _DOUBLES, _STRINGS = 1, 4, 5, 6, 8  # of TensorProto
_DT_FLOAT, _DT_DOUBLE = 1, 2
_MAX_HEAD_BYTES = 600  # a key of 512 characters, and what is around it
_DOUBLE, _FLOAT = struct.Struct("<d"), struct.Struct("<f")
_SLOW = "slow"
_Head = Target | str | None


class EventRows:
    """Turns the events of a run into rows; those of one step that follow each other are one row."""

    def __init__(self, keys: Keys) -> None:
        self.config: dict[str, object] = {}
        self._keys = keys
        self._heads = _Heads(keys)

    def rows(self, events: Sequence[bytes]) -> tuple[list[Row], BadMessage | None]:
        """The rows of some events, and why the next one cannot be decoded, if so."""
        rows: list[Row] = []
        last = Row(-1, None)
        heads, unpack_double, unpack_float = self._heads, _DOUBLE.unpack_from, _FLOAT.unpack
        try:
            for event in events:
                head: _Head = _SLOW
                if event[:1] == b"\x09" and event[9:10] == b"\x10":
                    step, at = event[10], 11
                    if step > 127:
                        step, at = varint(event, 10)
                    head = heads[event[at:-4]]
                    if head is None:
                        continue
                if type(head) is Target:
                    number = unpack_float(event[-4:])[0]
                    if step == last.step:
                        last.values.append((head, number))
                        continue
                    wall, values = unpack_double(event, 1)[0], [(head, number)]
                else:
                    step, wall, values = self._slow(event)
                if step == last.step:
                    last.values += values
                elif values and step < MAX_STEP:
                    last = Row(step, wall if 0 <= wall < MAX_STEP else None, values)
                    rows.append(last)
        except BadMessage as why:
            return rows, why
        except IndexError:
            return rows, BadMessage("it is cut off")
        return rows, None

    def _slow(self, event: bytes) -> tuple[int, float, list[tuple[Target, float]]]:
        step, wall = 0, -1.0
        values: list[tuple[Target, float]] = []
        for number, value in fields(event):
            if number == _WALL_TIME and len(as_bytes(value)) == 8:
                wall = _DOUBLE.unpack(as_bytes(value))[0]
            elif number == _STEP:
                step = as_number(value)
            elif number == _SUMMARY:
                for inner, part in fields(as_bytes(value)):
                    if inner == _VALUE and (found := self._value(as_bytes(part))) is not None:
                        values.append(found)
        return step, wall, values

    def _value(self, message: bytes) -> tuple[Target, float] | None:
        tag, number_read, tensor = "", None, b""
        for number, value in fields(message):
            if number == _TAG:
                tag = as_bytes(value).decode("utf-8", "replace")
            elif number == _SIMPLE_VALUE and len(as_bytes(value)) == 4:
                number_read = _FLOAT.unpack(as_bytes(value))[0]
            elif number == _TENSOR:
                tensor = as_bytes(value)
        if tag in CONFIG_TAGS and tensor:
            self._take_config(tensor)
        target = self._keys[tag]
        if target is None:
            return None
        if number_read is None and tensor:
            number_read = scalar(tensor)
        return None if number_read is None else (target, number_read)

    def _take_config(self, tensor: bytes) -> None:
        text = next((as_bytes(v) for n, v in fields(tensor) if n == _STRINGS), b"")
        if len(text) > MAX_CONFIG_BYTES:
            return
        try:
            found = msgspec.json.decode(text)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return  # some other text under that name: without it E and k are asked for
        if isinstance(found, dict):
            self.config.update(found)


class _Heads(dict[bytes, _Head]):
    """What an event is, by its bytes between step and number."""

    def __init__(self, keys: Keys) -> None:
        super().__init__()
        self._keys = keys

    def __missing__(self, head: bytes) -> _Head:
        if len(head) > _MAX_HEAD_BYTES:
            return _SLOW
        found = self._find(head)
        if len(self) < MAX_HEADS:
            self[head] = found
        return found

    def _find(self, head: bytes) -> _Head:
        """``summary { value { tag simple_value } }`` without the number, and nothing else."""
        if not head.endswith(b"\x15"):
            return _SLOW
        try:
            name, at = b"", 0
            for tag, after in ((b"\x2a", 4), (b"\x0a", 4), (b"\x0a", -1)):
                if head[at : at + 1] != tag:
                    return _SLOW
                length, at = varint(head, at + 1)
                if at + length != len(head) + after:
                    return _SLOW
            name = head[at:-1]
        except BadMessage:
            return _SLOW
        return self._keys[name.decode("utf-8", "replace")]


def scalar(tensor: bytes) -> float | None:
    """The number in a ``TensorProto`` that holds exactly one of type float or double."""
    found: dict[int, int | bytes] = dict(fields(tensor))
    layout, listed = {
        _DT_FLOAT: (_FLOAT, _FLOATS),
        _DT_DOUBLE: (_DOUBLE, _DOUBLES),
    }.get(as_number(found.get(_DTYPE, 0)), (_FLOAT, 0))
    data = found.get(_CONTENT) or found.get(listed) if listed else None
    if not isinstance(data, bytes) or len(data) != layout.size:
        return None
    number: float = layout.unpack(data)[0]
    return number


def is_first_event(event: bytes) -> bool:
    """Whether it is the event with which every event file begins."""
    try:
        found = dict(fields(event))
    except BadMessage:
        return False
    version = found.get(_FILE_VERSION)
    return isinstance(version, bytes) and version.startswith(FILE_VERSION)
