"""The history records of W&B: rows of key and JSON text, a few thousand in one record.

Most of the time is spent here. The common layout of an item (one key, every length below 128) is
recognised by its bytes before the value, with one lookup; the value is parsed only if the key has a
target. W&B writes the items of every record in another order, so every key must be looked at. All
other layouts are decoded field by field.
"""

from microscope_tui.sources.keys import Keys, Target
from microscope_tui.sources.protobuf import (
    BadMessage,
    as_bytes,
    as_number,
    field,
    fields,
    signed,
)
from microscope_tui.sources.reader import Row

MAX_NUMBER_BYTES = 64
"""Longer JSON texts are no numbers: the longest float has 24 characters."""
MAX_HEADS = 1 << 18
"""Keys that are recognised by their bytes: 512 experts in 128 layers, four times. Further ones take
the slow way."""
MAX_STEP = 2**53
_ITEM_TAG, _SHORT = 0x0A, 128
_ITEM, _STEP_FIELD = 1, 2  # of HistoryRecord
_KEY, _NESTED_KEY, _VALUE_JSON = 1, 2, 16  # of HistoryItem and ConfigItem
_VALUE_TAG = b"\x82\x01"
_STEP, _TIME, _SLOW = "_step", "_timestamp", "slow"
_OF_THE_ROW = {name: name for name in (_STEP, _TIME)}
_Head = Target | str | None


class HistoryRows:
    """Turns history records into rows."""

    def __init__(self, heads: "Heads") -> None:
        self._heads = heads
        self._last_step = -1

    def row(self, record: bytes) -> Row | None:
        """The row of one ``HistoryRecord``; ``None`` if nothing in it matches.

        Raises:
            BadMessage: the bytes are no such record.
        """
        try:
            return self._row(record)
        except IndexError:
            raise BadMessage("an item is cut off") from None

    def _row(self, record: bytes) -> Row | None:
        heads, at, end = self._heads, 0, len(record)
        step: int | None = None
        row = Row(0, None)
        values = row.values
        of_the_row: dict[str, float] = {}
        while at < end:
            size = record[at + 1]
            if size < _SHORT and record[at] == _ITEM_TAG:
                value_at = at + 6 + record[at + 3]
                head = heads[record[at + 2 : value_at]]
                if head is None:
                    at += 2 + size
                    continue
                if head is not _SLOW:
                    at += 2 + size
                    if record[value_at] != at - value_at - 1:
                        raise BadMessage("the length of a value is not that of its item")
                    text = record[value_at + 1 : at]
                    try:
                        number: float | None = float(text)
                    except ValueError:
                        number = json_number(text)
                    if type(head) is Target and number is not None:
                        values.append((head, number))
                    else:
                        _take(head, number, values, of_the_row)
                    continue
            kind, value, at = field(record, at)
            if kind == _ITEM:
                name, text = named_value(as_bytes(value))
                _take(heads.of_name(name), json_number(text), values, of_the_row)
            elif kind == _STEP_FIELD:
                step = _step_of(as_bytes(value))
        if at != end:
            raise BadMessage("an item is longer than its record")
        row.time = of_the_row.get(_TIME)
        if step is None:
            step = int(of_the_row.get(_STEP, self._last_step + 1))
        row.step = self._last_step = step
        return row if values and 0 <= step < MAX_STEP else None


def _take(
    head: _Head,
    number: float | None,
    values: list[tuple[Target, float]],
    of_the_row: dict[str, float],
) -> None:
    """Put the number of an item where it belongs; one without a target is dropped."""
    if number is None or head is None:
        return
    if type(head) is Target:
        values.append((head, number))
    elif abs(number) < MAX_STEP:
        of_the_row.setdefault(str(head), number)


class Heads(dict[bytes, _Head]):
    """What an item is, by its bytes up to the value: a key of the mapping, another key, or slow."""

    def __init__(self, keys: Keys) -> None:
        super().__init__()
        self._keys = keys

    def __missing__(self, head: bytes) -> _Head:
        found = self._find(head)
        if len(self) < MAX_HEADS:
            self[head] = found
        return found

    def _find(self, head: bytes) -> _Head:
        plain = len(head) > 4 and head[0] in (_KEY << 3 | 2, _NESTED_KEY << 3 | 2)
        if not plain or head[1] != len(head) - 4 or not head.endswith(_VALUE_TAG):
            return _SLOW
        return self.of_name(head[2:-2].decode("utf-8", "replace"))

    def of_name(self, name: str) -> _Head:
        """What a key is."""
        return _OF_THE_ROW.get(name) or self._keys[name]


def named_value(item: bytes) -> tuple[str, bytes]:
    """Name and JSON text of a ``HistoryItem`` or ``ConfigItem``; nested names joined by dots.

    Raises:
        BadMessage: it is no such item.
    """
    parts: list[bytes] = []
    text = b""
    for number, value in fields(item):
        if number in (_KEY, _NESTED_KEY):
            parts.append(as_bytes(value))
        elif number == _VALUE_JSON:
            text = as_bytes(value)
    return b".".join(part for part in parts if part).decode("utf-8", "replace"), text


def json_number(text: bytes) -> float | None:
    """The number that a JSON text is; ``"NaN"`` and the infinities with and without quotes."""
    if len(text) > MAX_NUMBER_BYTES:
        return None
    try:
        return float(text)
    except ValueError:
        if text[:1] == b'"' and text.strip(b'"') in (b"NaN", b"Infinity", b"-Infinity"):
            return float(text.strip(b'"'))
        return None


def _step_of(message: bytes) -> int:
    """``HistoryStep``: protobuf omits a zero."""
    step = 0
    for number, value in fields(message):
        if number == 1:
            step = signed(as_number(value))
    return step
