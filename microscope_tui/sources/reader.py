"""What every reader of another tool's format offers.

A ``RecordReader`` yields records of the run log as plain dicts, from the start of the source on and
then whatever is appended. A ``RowReader`` is for the formats that hold named numbers (W&B,
TensorBoard, JSONL …): it yields rows of numbers, and ``RowRecords`` makes records of them.
Both are recognised by how their content begins.
"""

import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from microscope_tui.runlog import read_at
from microscope_tui.runlog.tail import Progress
from microscope_tui.sources.keys import Keys, Rule, Target

BUSY_S = 10.0
"""Seconds for which a source that its writer keeps busy is tried again."""
HEAD_BYTES = 64 << 10
"""A file is recognised by this much of its beginning."""
Pairs = Iterable[tuple[Target, float]]
Record = dict[str, Any]
"""One record of the run log, as ``docs/run-log.md`` describes it."""
_SAMPLING_S = 0.3  # processor time of ``whole_steps``, about
_MOST_SAMPLED = 150_000  # numbers: 15 MB


class SourceRequest(msgspec.Struct, frozen=True):
    """What the user specifies about a source; it overrides what the source contains."""

    source: str = ""
    """Name of its format; by default it is recognised."""
    rules: tuple[Rule, ...] = ()
    """Which key is which quantity, before the known ones."""
    confirmed: tuple[Rule, ...] = ()
    """The same after the known ones: proposals that were accepted for a folder of runs."""
    num_experts: int | None = None
    top_k: int | None = None
    profile: str = ""
    pipeline_parallel: int = 1
    """Pipeline stages of a Megatron run."""
    confirmed_top_k: int | None = None
    """Experts per token where the source has none, as given on the screen."""


DEFAULT = SourceRequest()


class Unreadable(OSError):
    """The file is of another kind, damaged or hostile; the message has the place and the reason."""


class Reader(Progress):
    """How a format is recognised, and how far it was read."""

    names: re.Pattern[str] | None = None
    """Files of a folder that is one run; ``None`` where a run is one file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @classmethod
    def recognises(cls, path: Path, own: Sequence[Rule] = ()) -> bool:
        """Whether the file at ``path``, or one of the first in a folder, is of this format.

        Args:
            path: Of a file or a folder.
            own: Rules of the user; what they map counts as a reading of a router too.

        Raises:
            OSError: it cannot be read, or is not a regular file.
        """
        files = files_of(path, cls.names)
        return any(cls.begins(read_at(file, 0, HEAD_BYTES), own) for file in files)

    @classmethod
    def begins(cls, head: bytes, own: Sequence[Rule]) -> bool:
        """Whether a file of this format begins with the bytes ``head``; ``own``: rules of the
        user.
        """
        return False

    @classmethod
    def runs(cls, path: Path, own: Sequence[Rule] = ()) -> Sequence[str]:
        """Names of the runs in a file that may hold several; else one empty name.

        ``OSError``: it cannot be read.
        """
        return [""]

    @classmethod
    def about(cls, path: Path) -> Mapping[str, str]:
        """``name``, ``project`` and ``group`` of the run, as far as its tool has them."""
        return {}


def files_of(path: Path, names: re.Pattern[str] | None, most: int = 8) -> list[Path]:
    """The file itself, or the first files in a folder whose names match; links are not followed."""
    if not path.is_dir():
        return [path]
    if names is None:
        return []
    with os.scandir(path) as entries:
        found = [
            entry.name
            for entry in entries
            if names.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
        ]
    return [path / name for name in sorted(found)[:most]]


class Batch(msgspec.Struct, frozen=True):
    """Of one read, in the order of the steps."""

    records: Sequence[Record] = ()
    restarted: bool = False
    """The source was truncated or replaced: everything read before is gone."""


class RecordReader(Reader, ABC):
    """Reads records from a source that may still grow."""

    def __init__(self, path: Path, name: str, request: SourceRequest) -> None:
        """``name``: of the run, if the source has none."""
        super().__init__(path)
        self._name, self._request = name, request
        self.proposed: SourceRequest | None = None
        """How unknown keys can be read, if nothing is known as a reading of a router."""

    def sample(self, count: int) -> Sequence[Record]:
        """A header and about ``count`` steps of the whole run; empty if the format has no sample.

        Raises:
            OSError: as ``read``.
            Unreadable: as ``read``.
        """
        return ()

    @abstractmethod
    def read(self, max_bytes: int = 1 << 20) -> Batch:
        """The next records, from about ``max_bytes`` of the source; never waits for a writer.

        The first record is a ``run`` record. A record that is torn stays for the next call.

        Raises:
            OSError: the source cannot be read now; a later call may succeed.
            Unreadable: what follows is damaged or not allowed; everything before was returned.
        """


class Row:
    """Numbers of one step that matched the mapping: ``numbers[i]`` belongs to ``targets[i]``."""

    def __init__(self, step: int, time: float | None, values: Pairs = ()) -> None:
        """``time``: Unix seconds."""
        pairs = [*values]
        self.step = step
        self.time = time
        self.targets: list[Target] = [target for target, _ in pairs]
        self.numbers: list[float] = [number for _, number in pairs]

    @property
    def values(self) -> list[tuple[Target, float]]:
        """Every number with the target it belongs to, in the order of the source; a copy."""
        return list(zip(self.targets, self.numbers, strict=True))

    @property
    def of_router(self) -> bool:
        """Whether there is a reading of a router in it."""
        return any(target.of_router for target in self.targets)

    def add(self, row: "Row") -> None:
        """Append the numbers of another row; not if the lists are shared."""
        self.targets += row.targets
        self.numbers += row.numbers


class Rows(msgspec.Struct, frozen=True):
    """Result of one read of a ``RowReader``."""

    rows: Sequence[Row] = ()
    restarted: bool = False
    ended: str = ""
    """Reason, if the writer recorded that the run ended: ``finished``, ``failed`` …"""


class RowReader(Reader, ABC):
    """Reads named numbers from a source that may still grow.

    ``keys[name]`` gives the target of a key or ``None``; it matches every distinct key once. Parse
    the value of a key only if it has a target.
    """

    name = ""
    """Name of the run, if the source has one."""
    counts = ""
    """Kind of its counts, if that does not follow from the keys."""

    def __init__(self, path: Path, keys: Keys, run: str = "") -> None:
        """``run``: one of ``runs``."""
        super().__init__(path)
        self.keys, self.run = keys, run
        self.config: Mapping[str, object] = {}
        """The writer's configuration, as far as it was found; searched for E and k."""

    def again(self, keys: Keys) -> "RowReader":
        """A new reader of the same run from its start, which fills ``keys``."""
        return type(self)(self.path, keys, self.run)

    def sample(self, count: int) -> Sequence[Row]:
        """Rows from about ``count`` places of the whole run; empty if the format has no sample.

        Raises:
            OSError: as ``read``.
            Unreadable: as ``read``.
        """
        return ()

    @abstractmethod
    def read(self, max_bytes: int = 1 << 20) -> Rows:
        """The next rows, from about ``max_bytes`` of the source; never waits for a writer.

        Steps may repeat (several rows for one step are merged) and restart.

        Raises:
            OSError: as ``RecordReader.read``.
            Unreadable: as ``RecordReader.read``.
        """


def whole_steps(
    rows_of: Callable[[int, int], Iterator[Row]], start: int, end: int, count: int, width: int
) -> list[Row]:
    """A whole step from each of about ``count`` places between ``start`` and ``end``.

    ``rows_of`` gives the rows between two places. Of these it is the first step with a reading of a
    router, or else the first; at the end, the last. At each place as much is read as holds two such
    steps at the start: twice ``width``, or more. Empty where they are rare, or every step is one
    number: rows may be sorted by name.
    """
    steps: list[Row] = []
    took = 0.0
    while sum(step.of_router for step in steps) < 2:
        if width >= end - start or took > _SAMPLING_S / 4:
            return []
        width *= 2
        began = time.thread_time()
        steps = list(_between_edges(rows_of(start, start + width), begins=True))
        took = time.thread_time() - began
    numbers = max(len(step.targets) for step in steps)
    if numbers < 2:
        return []
    places = max(1, min(count, _MOST_SAMPLED // numbers, int(_SAMPLING_S / max(took, 1e-6))))
    kept: list[Row] = []
    for place in range(places + 1):
        at = start + max(0, end - start - width) * place // places
        found = _between_edges(rows_of(at, at + width), begins=not place)
        chosen = first_of_routers(reversed([*found]) if place == places else found)
        if chosen is not None:
            while kept and kept[-1].step >= chosen.step:
                kept.pop()  # the run went back, or both places have the same step
            kept.append(chosen)
    return kept


def first_of_routers(rows: Iterable[Row]) -> Row | None:
    """The first row with a reading of a router, or else the first; ``None`` if there is none."""
    first: Row | None = None
    for row in rows:
        if row.of_router:
            return row
        first = first or row
    return first


def _between_edges(rows: Iterator[Row], *, begins: bool) -> Iterator[Row]:
    """Steps, their rows merged: all but the last one, and but the first unless it ``begins``."""
    step: Row | None = None
    for row in rows:
        if step is not None and row.step == step.step:
            step.add(row)
            continue
        if step is not None:
            if begins:
                yield step
            begins = True
        step = row


def coarse_to_fine(count: int) -> Iterator[float]:
    """``count`` evenly spaced places in [0, 1), so that the first few of them are spread too."""
    bits = (count - 1).bit_length()
    for i in range(1 << bits):
        place = int(f"{i:0{bits}b}"[::-1], 2)
        if place < count:
            yield place / count
