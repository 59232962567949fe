"""Runs of Weights & Biases, from the ``.wandb`` file that a run writes, online or offline.

The messages are those of ``wandb_internal.proto`` in wandb 0.31. A file holds the history, a
summary after every step (as large as the history) and the console; only the records of history,
run, configuration and exit are collected. The wandb package is not used: it brings a service of its
own and a hundred megabytes, and reads files only to send them.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from microscope_tui.runlog import safe_text
from microscope_tui.sources.growing import GrowingFile, coarse_to_fine, read_head
from microscope_tui.sources.header import NUM_EXPERTS, TOP_K
from microscope_tui.sources.keys import Keys
from microscope_tui.sources.protobuf import (
    BadMessage,
    as_bytes,
    as_number,
    field,
    fields,
    signed,
    varint,
)
from microscope_tui.sources.reader import Row, RowReader, Rows, Unreadable
from microscope_tui.sources.wandb_blocks import (
    BLOCK_BYTES,
    FILE_HEADER,
    MAGIC,
    RecordSplitter,
)
from microscope_tui.sources.wandb_history import Heads, HistoryRows, named_value

MAX_CONFIG_BYTES = 1 << 20
"""A configuration that is searched for the number of experts; further values are ignored."""
MAX_SAMPLED_BYTES = 20 << 20
"""What ``sample`` reads at most: half a second if all of it is numbers that match."""
_MOST_BLOCKS = (8 << 20) // BLOCK_BYTES  # for one place: three records of 40,000 numbers
_LAST_BLOCKS = (2 << 20) // BLOCK_BYTES  # where the last row is looked for
_HISTORY, _CONFIG, _RUN, _EXIT = 2, 5, 17, 18  # of Record
_WANTED = {_HISTORY, _CONFIG, _RUN, _EXIT}
_BEFORE_THE_TYPE = {1, 16, 19, 200}  # num, control, uuid, _info
_RUN_ID, _RUN_CONFIG, _DISPLAY_NAME = 1, 4, 8  # of RunRecord
_EXIT_CODE, _NOT_COMPLETE = 1, 3  # of RunExitRecord
_UPDATE = 1  # of ConfigRecord
_OF_EXPERTS = re.compile("|".join((*NUM_EXPERTS, *TOP_K)).replace("_", "[-_]").encode())


def recognises(path: Path) -> bool:
    """Whether it is a ``.wandb`` file, of whatever version.

    Raises:
        OSError: it cannot be read.
    """
    if not path.is_file():
        return False
    head = read_head(path, FILE_HEADER.size)
    return len(head) == FILE_HEADER.size and FILE_HEADER.unpack(head)[:2] == MAGIC


class WandbReader(RowReader):
    """The rows of one run, as they are logged."""

    def __init__(self, path: Path, keys: Keys) -> None:
        super().__init__(keys)
        self._file = GrowingFile(path)
        self._start()

    def _start(self) -> None:
        self._splitter = RecordSplitter(_is_wanted)
        self._heads = Heads(self.keys)
        self._history = HistoryRows(self._heads)
        self._damage: Unreadable | None = None
        self._config: dict[str, object] = {}
        self._config_bytes = 0
        self._ended = ""
        self.config, self.name = self._config, ""

    def read(self, max_bytes: int = 1 << 20) -> Rows:
        """See ``RowReader``."""
        data, restarted = self._file.read(max_bytes)
        if restarted:
            self._start()
        file = self._file
        self.offset, self.size, self.modified = file.offset, file.size, file.modified
        self.deleted, self.exhausted = file.deleted, file.exhausted
        rows = list(self._rows(self._splitter.feed(data))) if self._damage is None else []
        self._damage = self._damage or self._splitter.damage
        if self._damage is not None and not rows and not restarted:
            raise self._damage
        return Rows(rows, restarted, self._ended if self.exhausted else "")

    def sample(self, count: int) -> list[Row]:
        """Rows from about ``count`` places of the file, in its order; the rest is not read.

        The first is from the start, with the name and the configuration of the run. A place gives
        the first record of history with a reading of a router that begins in a block of 32 KiB or
        after it, and the end of the file its last one. Where the records are so large, or so rare,
        that ``MAX_SAMPLED_BYTES`` are not enough, fewer places are read.

        Raises:
            OSError: it cannot be read.
            Unreadable: it is no ``.wandb`` file, or one of a newer version.
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
        """The rows from block ``start`` on, each with the block where it ended, and the last block.

        ``most``: how many blocks are read at most.
        """
        splitter = RecordSplitter(_is_wanted, start * BLOCK_BYTES)
        history = HistoryRows(self._heads)  # of its own: a row without a step follows no other
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

    def _rows(self, records: list[bytes]) -> Iterator[Row]:
        for record in records:
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

    def _take(self, record: bytes, history: HistoryRows) -> Row | None:
        for number, value in fields(record):
            if number == _HISTORY:
                return history.row(as_bytes(value))
            if number == _CONFIG:
                self._take_config(as_bytes(value))
            elif number == _RUN:
                self._take_run(as_bytes(value))
            elif number == _EXIT:
                self._take_exit(as_bytes(value))
        return None

    def _take_run(self, message: bytes) -> None:
        names = dict.fromkeys((_RUN_ID, _DISPLAY_NAME), b"")
        for number, value in fields(message):
            if number in names:
                names[number] = as_bytes(value)
            elif number == _RUN_CONFIG:
                self._take_config(as_bytes(value))
        name = names[_DISPLAY_NAME] or names[_RUN_ID]
        self.name = safe_text(name.decode("utf-8", "replace"), 120) or self.name

    def _take_config(self, message: bytes) -> None:
        """Keep what may hold the number of experts; the rest of a configuration is private."""
        for number, value in fields(message):
            if number != _UPDATE or not _OF_EXPERTS.search(as_bytes(value)):
                continue
            name, text = named_value(as_bytes(value))
            self._config_bytes += len(text)
            if self._config_bytes > MAX_CONFIG_BYTES:
                return
            try:
                self._config[name] = msgspec.json.decode(text)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                continue  # not JSON, or nested too deep: without it E and k are asked for

    def _take_exit(self, message: bytes) -> None:
        found = {number: value for number, value in fields(message)}
        if not found.get(_NOT_COMPLETE):
            code = signed(as_number(found.get(_EXIT_CODE, 0)))
            self._ended = "failed" if code else "finished"


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
