"""Runs of Weights & Biases, from the ``.wandb`` file that a run writes, online or offline.

From the file to the row: the blocks of a LevelDB log (``RecordSplitter``) hold records, those of
the history hold rows of key and JSON text (``HistoryRows``). The messages are those of
``wandb_internal.proto`` in wandb 0.31. A file holds the history, a summary after every step (as
large as the history) and the console; only the records of history, run, configuration and exit are
collected.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from operator import itemgetter
from pathlib import Path

import msgspec

from microscope_tui.runlog import Tail, safe_text
from microscope_tui.sources.keys import NUM_EXPERTS, TOP_K, Keys, Rule, Target, decode_json, matched
from microscope_tui.sources.protobuf import (
    MAX_STEP,
    BadMessage,
    Head,
    PrefixTargets,
    as_bytes,
    as_number,
    field,
    fields,
    signed,
    varint,
)
from microscope_tui.sources.reader import (
    HEAD_BYTES,
    Row,
    RowReader,
    Rows,
    Unreadable,
    coarse_to_fine,
)

BLOCK_BYTES = 32 * 1024
MAX_RECORD_BYTES = 64 * 1024 * 1024
"""As a line of a run log. 100,000 numbers of one step are 8 MB."""
MAX_NUMBER_BYTES = 64
"""Longer JSON texts are not numbers: the longest float has 24 characters."""
MAX_CONFIG_BYTES = 1 << 20
"""A configuration that is searched for the number of experts; further values are ignored."""
MAX_SAMPLED_BYTES = 20 << 20
"""What ``sample`` reads at most: half a second if all of it is numbers that match."""
_MOST_BLOCKS = (8 << 20) // BLOCK_BYTES  # for one place: three records of 40,000 numbers
_LAST_BLOCKS = (2 << 20) // BLOCK_BYTES  # where the last row is looked for
_FILE_HEADER = struct.Struct("<4sHB")
_MAGIC = (b":W&B", 0xBEE1)
_VERSION = 0
_CHUNK = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_SEEDS = [zlib.crc32(bytes([kind])) for kind in range(5)]
_HISTORY, _CONFIG, _RUN, _EXIT = 2, 5, 17, 18  # of Record
_WANTED = {_HISTORY, _CONFIG, _RUN, _EXIT}
_BEFORE_THE_TYPE = {1, 16, 19, 200}  # num, control, uuid, _info
_RUN_ID, _PROJECT, _RUN_CONFIG, _GROUP, _DISPLAY_NAME = 1, 3, 4, 6, 8  # of RunRecord
_EXIT_CODE, _NOT_COMPLETE = 1, 3  # of RunExitRecord
_UPDATE = 1  # of ConfigRecord
_ITEM, _STEP_FIELD = 1, 2  # of HistoryRecord
_KEY, _NESTED_KEY, _VALUE_JSON = 1, 2, 16  # of HistoryItem and ConfigItem
_FLOATS = msgspec.json.Decoder(list[float])
_ITEM_TAG, _SHORT = 0x0A, 128
_VALUE_TAG = b"\x82\x01"
_PADDING = bytes(262)  # behind a record: the place of a value may seem to be behind its end
_OF_THE_ROW = ("_step", "_timestamp")
_OBJECTS = (b'"histogram"', b'"table-file"')
_Inside = Callable[[Mapping[str, Mapping[str, bytes]]], Iterable[tuple[Target, float]]]
_OF_EXPERTS = re.compile("|".join((*NUM_EXPERTS, *TOP_K)).replace("_", "[-_]").encode())


class WandbReader(RowReader):
    @classmethod
    def begins(cls, head: bytes, own: Sequence[Rule]) -> bool:
        """Of any version."""
        return len(head) >= _FILE_HEADER.size and _FILE_HEADER.unpack_from(head)[:2] == _MAGIC

    @classmethod
    def about(cls, path: Path) -> Mapping[str, str]:
        reader = cls(path, Keys())
        with suppress(OSError):
            reader.read(HEAD_BYTES)
        return reader.labels

    def __init__(self, path: Path, keys: Keys, run: str = "") -> None:
        super().__init__(path, keys, run)
        self._file = Tail(path, None)
        self._start()

    def _start(self) -> None:
        self._splitter = RecordSplitter(_is_wanted)
        self._heads = PrefixTargets(self._what)
        self._history = HistoryRows(self._heads, self._inside)
        self._damage: Unreadable | None = None
        self._config: dict[str, object] = {}
        self._config_bytes = 0
        self._ended = ""
        self.config, self.name = self._config, ""
        self.labels: dict[str, str] = {}

    def _what(self, head: bytes) -> Head:
        """What an item is, by the bytes before its value."""
        name = _name_of(head)
        return name if name in _OF_THE_ROW else self.keys[name]

    def _inside(self, found: Mapping[str, Mapping[str, bytes]]) -> Iterator[tuple[Target, float]]:
        """The numbers of histograms, by name and part, and of lists, which have one."""
        fields: dict[str, object] = {}
        for name, texts in found.items():
            if "" in texts and not (self.keys[f"{name}/0"] or self.keys[f"{name}/0/0"]):
                self.keys.sees(name, "list")
                continue
            with suppress(ValueError):
                value = {part: decode_json(text) for part, text in texts.items()}
                fields[name] = value.get("", value)
        return matched(fields, self.keys)

    def read(self, max_bytes: int = 1 << 20) -> Rows:
        chunk = self._file.read(max_bytes)
        if chunk.restarted:
            self._start()
        rows = list(self._rows(chunk.data))
        self.report(self._file)
        self._damage = self._damage or self._splitter.damage
        if self._damage is not None and not rows and not chunk.restarted:
            raise self._damage
        return Rows(rows, chunk.restarted, self._ended if self.exhausted else "")

    def sample(self, count: int) -> list[Row]:
        """Rows from about ``count`` places of the file, in its order; the rest is not read.

        The first place is the start, with the name and the configuration of the run. A place gives
        the first row with a reading of a router from a block of 32 KiB on, the end of the file its
        last one. Where ``MAX_SAMPLED_BYTES`` are not enough, fewer places are read.

        Raises:
            OSError: the file cannot be read.
            Unreadable: it is not a ``.wandb`` file, or one of a newer version.
        """
        self._file.pread(0, 0)
        blocks = max(1, self._file.size // BLOCK_BYTES)
        left = MAX_SAMPLED_BYTES // BLOCK_BYTES - _LAST_BLOCKS
        rows: dict[tuple[int, int], Row] = {}
        for place in coarse_to_fine(max(1, min(count, blocks))):
            start = int(place * blocks)
            found, end = self._first_of_routers(start, min(left, _MOST_BLOCKS))
            rows |= found  # places within one record find the same row
            left -= end - start + 1
            if left <= 0:
                break
        at_end = self._rows_from(max(0, blocks - _LAST_BLOCKS + 1), _LAST_BLOCKS)
        of_routers = [(row, block) for row, block in at_end if row is not None and row.of_router]
        rows |= {(block, row.step): row for row, block in of_routers[-1:]}
        return [rows[at] for at in sorted(rows)]

    def _first_of_routers(self, start: int, most: int) -> tuple[dict[tuple[int, int], Row], int]:
        """One row by block and step: the first of routers, else the first; and the last block."""
        found: dict[tuple[int, int], Row] = {}
        block = start
        for row, block in self._rows_from(start, most):
            if row is not None and (row.of_router or not found):
                found = {(block, row.step): row}
                if row.of_router:
                    break
        return found, block

    def _rows_from(self, start: int, most: int) -> Iterator[tuple[Row | None, int]]:
        """The rows of at most ``most`` blocks, each with the block where it ended."""
        splitter = RecordSplitter(_is_wanted, start * BLOCK_BYTES)
        # Of its own: a row without a step follows no other.
        history = HistoryRows(self._heads, self._inside)
        for block in range(start, start + most):
            data = self._file.pread(BLOCK_BYTES, block * BLOCK_BYTES)
            for record in splitter.feed(data):
                with suppress(BadMessage):  # reading the whole file reports it
                    yield self._take(record, history), block
            if splitter.damage is not None and block == 0:
                raise splitter.damage
            yield None, block
            if splitter.damage is not None or len(data) < BLOCK_BYTES:
                return

    def _rows(self, data: bytes) -> Iterator[Row]:
        for record in self._splitter.feed(data):
            try:
                row = self._take(record, self._history)
            except BadMessage as why:
                self._damage = Unreadable(
                    f"a record of the .wandb file cannot be decoded ({why}) shortly before byte "
                    f"{self._file.offset:,}: copy the file again. What comes before is shown"
                )
                return
            if row is not None:
                yield row

    def _take(self, record: bytes, history: "HistoryRows") -> Row | None:
        for number, value in fields(record):
            if number == _HISTORY:
                return history.row(as_bytes(value))
            if number == _CONFIG:
                self._take_config(as_bytes(value))
            elif number == _RUN:
                self._take_run(as_bytes(value))
            elif number == _EXIT:
                found = dict(fields(as_bytes(value)))
                if not found.get(_NOT_COMPLETE):
                    code = signed(as_number(found.get(_EXIT_CODE, 0)))
                    self._ended = "failed" if code else "finished"
        return None

    def _take_run(self, message: bytes) -> None:
        texts = dict.fromkeys((_RUN_ID, _PROJECT, _GROUP, _DISPLAY_NAME), "")
        for number, value in fields(message):
            if number in texts:
                texts[number] = safe_text(as_bytes(value).decode("utf-8", "replace"), 120)
            elif number == _RUN_CONFIG:
                self._take_config(as_bytes(value))
        self.name = texts[_DISPLAY_NAME] or texts[_RUN_ID] or self.name
        shown = f"{texts[_DISPLAY_NAME]} ({texts[_RUN_ID]})" if texts[_DISPLAY_NAME] else ""
        self.labels = {"name": shown, "project": texts[_PROJECT], "group": texts[_GROUP]}

    def _take_config(self, message: bytes) -> None:
        """Keep what may hold the number of experts; the rest of a configuration is private."""
        for number, value in fields(message):
            if number != _UPDATE or not _OF_EXPERTS.search(as_bytes(value)):
                continue
            name, text = _named_value(as_bytes(value))
            self._config_bytes += len(text)
            if self._config_bytes > MAX_CONFIG_BYTES:
                return
            # Not JSON, or nested too deep: without it the user gives E and k.
            with suppress(ValueError):
                self._config[name] = decode_json(text)


def _is_wanted(chunk: bytes) -> bool:
    """Whether a record is of a kind that is read, by its first chunk."""
    at = 0
    try:
        while at < len(chunk):
            tag, _ = varint(chunk, at)
            if tag >> 3 not in _BEFORE_THE_TYPE:
                return tag >> 3 in _WANTED
            _, _, at = field(chunk, at)
    except BadMessage:
        return True  # decoding reports it
    return False


class RecordSplitter:
    """Splits a byte stream into records; keeps what is torn for the next bytes.

    Seven bytes of header, then blocks of 32 KiB. A record is one chunk, or several where it crosses
    the end of a block: FIRST, MIDDLE …, LAST. No chunk does, so a reader can start at any block.
    The checksum is zlib's crc32 over type and data; LevelDB itself uses a masked crc32c.
    """

    def __init__(self, keep: Callable[[bytes], bool], start: int = 0) -> None:
        """``start``: 0, or a multiple of 32 KiB from which the first whole record is taken.

        ``keep`` gets the first chunk of a record; false skips the record without collecting it.
        """
        self.damage: Unreadable | None = None
        """Why nothing follows the records that were returned."""
        self._keep = keep
        self._at = start  # offset in the file of the first byte of ``_rest``
        self._rest = b""
        self._parts: list[bytes] | None = None  # of the open record; none if it is skipped
        self._size = 0
        self._open = start > 0  # the chunks until the next record belong to one that is skipped

    def feed(self, data: bytes) -> list[bytes]:
        """The records that ``data``, the bytes that follow those of the last call, completes.

        Never raises: at damage, ``damage`` is set, what came before it is returned, and later calls
        return nothing.
        """
        records: list[bytes] = []
        if self.damage is None:
            data = self._rest + data
            try:
                used = self._split(data, records)
            except Unreadable as damage:
                self.damage, used = damage, len(data)
            self._at, self._rest = self._at + used, data[used:]
        return records

    def _split(self, data: bytes, records: list[bytes]) -> int:
        at, end, base = 0, len(data), self._at
        if base == 0:
            if end < _FILE_HEADER.size:
                return 0
            _check_file_header(data)
            at = _FILE_HEADER.size
        while True:
            left = BLOCK_BYTES - (base + at) % BLOCK_BYTES
            body = at + _CHUNK.size
            if left >= _CHUNK.size:
                if body > end:
                    return at
                checksum, length, kind = _CHUNK.unpack_from(data, at)
            # The end of a block is filled up, and a crash leaves a hole of zeros.
            if left < _CHUNK.size or not (checksum or length or kind):
                if at + left > end:
                    return at
                at += left
                continue
            if not _FULL <= kind <= _LAST or length > left - _CHUNK.size:
                raise _damaged(base + at, f"its type is {kind}, its length {length}")
            if body + length > end:
                return at
            chunk = data[body : body + length]
            if (found := zlib.crc32(chunk, _SEEDS[kind])) != checksum:
                raise _damaged(base + at, f"its checksum is {found:08x}, not {checksum:08x}")
            self._take(kind, chunk, records, base + at)
            at = body + length

    def _take(self, kind: int, chunk: bytes, records: list[bytes], at: int) -> None:
        if kind in (_FULL, _FIRST):  # a record before it that has no end is dropped
            keeps, self._open = self._keep(chunk), kind == _FIRST
            self._parts, self._size = [chunk] if keeps and self._open else None, len(chunk)
            if keeps and kind == _FULL:
                records.append(chunk)
            return
        if not self._open:
            raise _damaged(at, "it continues a record that has no beginning")
        if self._parts is not None:
            self._size += len(chunk)
            if self._size > MAX_RECORD_BYTES:
                raise _damaged(at, f"its record is longer than {MAX_RECORD_BYTES:,} bytes")
            self._parts.append(chunk)
            if kind == _LAST:
                records.append(b"".join(self._parts))
        if kind == _LAST:
            self._parts, self._open = None, False


def _check_file_header(data: bytes) -> None:
    ident, magic, version = _FILE_HEADER.unpack_from(data)
    if (ident, magic) != _MAGIC:
        raise Unreadable("not a .wandb file: its first seven bytes are not the header of W&B")
    if version != _VERSION:
        raise Unreadable(
            f"a .wandb file of version {version}, this reads version {_VERSION}: update "
            "moe-microscope, or export the run from W&B as CSV"
        )


def _damaged(at: int, why: str) -> Unreadable:
    return Unreadable(
        f"the .wandb file is damaged at byte {at:,} ({why}): copy it again. "
        "What comes before is shown"
    )


class HistoryRows:
    """Turns history records into rows.

    Most of the time is spent here. The common layout of an item is recognised by its lengths; the
    bytes around its value are the same in every record, and looked up as a whole. W&B writes the
    items of every record in another order: they are put into one order, and the numbers are decoded
    together. Other layouts are decoded field by field.
    """

    def __init__(self, heads: PrefixTargets, inside: _Inside) -> None:
        """``heads``: what an item is, by the bytes before its value, or by its name; ``inside``:
        the numbers of objects."""
        self._heads = heads
        self._inside = inside
        self._objects: dict[str, dict[str, bytes]] = {}  # of the last record: parts and their heads
        self._last_step = -1
        self._known: list[Head] = []  # of the last record: its targets, and what the row needs
        self._targets: list[Target] = []
        self._ordered: Callable[[dict[bytes, bytes]], Sequence[bytes]]  # their values
        self._count = 0  # of all its items

    def row(self, record: bytes) -> Row | None:
        """The row of one ``HistoryRecord``; ``None`` if nothing in it matches.

        A record without a step is one step after the last.

        Raises:
            BadMessage: the bytes are not such a record.
        """
        found: dict[bytes, bytes] = {}
        step: int | None = None
        at, end = 0, len(record)
        record += _PADDING
        while at < end:
            size, start = record[at + 1], at + 2
            if size < _SHORT and record[at] == _ITEM_TAG:
                value_at, stop = start + 4 + record[at + 3], start + size
                if record[value_at] == stop - value_at - 1 and record[value_at - 2] == 0x82:
                    found[record[start:value_at]] = record[value_at + 1 : stop]
                    at = stop
                    continue
            kind, value, at = field(record, at)
            if kind == _ITEM:
                name, text = _named_value(as_bytes(value))
                found[name.encode()] = text
            elif kind == _STEP_FIELD:  # protobuf omits a zero
                of_step = fields(as_bytes(value))
                numbers = [signed(as_number(n)) for key, n in of_step if key == 1]
                step = numbers[-1] if numbers else 0
        if at != end:
            raise BadMessage("an item is longer than its record")
        row, of_the_row = self._row(found) if found else (Row(0, None), {})
        row.time = of_the_row.get("_timestamp")
        if step is None:
            step = int(of_the_row.get("_step", self._last_step + 1))
        row.step = self._last_step = step
        return row if row.targets and 0 <= step < MAX_STEP else None

    def _row(self, found: dict[bytes, bytes]) -> tuple[Row, dict[Head, float]]:
        try:
            if len(found) != self._count:
                raise KeyError
            texts = self._ordered(found)[: len(self._known)]
        except KeyError:  # most records have the keys of the one before
            self._learn(found)
            texts = self._ordered(found)[: len(self._known)]
        array, row, count = b"[%b,0]" % b",".join(texts), Row(0, None), len(self._targets)
        try:
            numbers = _FLOATS.decode(array)[:-1]
            if b"-0," in array or len(numbers) != len(texts):
                raise ValueError("a sign that would be lost, or no number")
            row.targets, row.numbers = self._targets, numbers[:count]
            others = list(zip(self._known, numbers, strict=True))[count:]
        except (ValueError, msgspec.MsgspecError):
            pairs = zip(self._known, map(json_number, texts), strict=True)
            others = [(what, number) for what, number in pairs if number is not None]
            row.add(Row(0, None, [(x, number) for x, number in others if isinstance(x, Target)]))
        if self._objects:
            objects = {
                name: {part: found[head] for part, head in parts.items()}
                for name, parts in self._objects.items()
            }
            row = Row(0, None, [*row.values, *self._inside(objects)])
        return row, {what: number for what, number in others if abs(number) < MAX_STEP}

    def _learn(self, found: dict[bytes, bytes]) -> None:
        """Which items are needed: those with a target, then those that the row itself needs."""
        heads = {head: self._heads[head] for head in found}
        targets = {head: what for head, what in heads.items() if isinstance(what, Target)}
        known = targets | {head: what for head, what in heads.items() if isinstance(what, str)}
        self._targets, self._known = [*targets.values()], [*known.values()]
        # Of two keys of one number the later one counts: then the order of each record matters.
        is_once = len({target.final for target in self._targets}) == len(targets)
        self._count = len(found) if is_once else 0
        self._ordered = itemgetter(*(known | heads), *[*heads][:1])
        self._objects = _objects(found)


def _objects(found: Mapping[bytes, bytes]) -> dict[str, dict[str, bytes]]:
    texts = {_name_of(head): head for head, text in found.items() if text[:1] in (b"[", b'"')}
    objects: dict[str, dict[str, bytes]] = {}
    for name, head in texts.items():
        outer, _, part = name.rpartition(".")
        if found[texts.get(f"{outer}._type", head)] in _OBJECTS:
            objects.setdefault(outer, {})[part] = head
        elif found[head][:1] == b"[":
            objects[name] = {"": head}
    return objects


def _name_of(head: bytes) -> str:
    """The key of an item, from the bytes before its value: with tag and length, or alone."""
    if head[:1] in (b"\x0a", b"\x12") and head.endswith(_VALUE_TAG):
        head = head[2:-2]
    return head.decode("utf-8", "replace")


def _named_value(item: bytes) -> tuple[str, bytes]:
    """Name and JSON text of a ``HistoryItem`` or ``ConfigItem``; nested names joined by dots."""
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
