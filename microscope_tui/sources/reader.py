"""What every reader of another tool's format offers.

A ``RecordReader`` yields records of the run log as plain dicts, from the start of the source on and
then whatever is appended. A ``RowReader`` is for the formats that hold named numbers (W&B,
TensorBoard, JSONL …): it yields rows of numbers, and ``assemble.RowRecords`` makes records of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from microscope_tui.runlog import Defects
from microscope_tui.sources.keys import Keys, Target

Record = dict[str, Any]
"""One record of the run log, as ``docs/run-log.md`` describes it."""


class Unreadable(OSError):
    """The file is not what it seems, or is damaged or hostile; the message says where and why."""

    def __init__(self, why: str) -> None:
        super().__init__(why)


class Progress:
    """How far a source was read, and when it changed last; see ``runlog.follow.Source``."""

    def __init__(self) -> None:
        self.offset = 0
        """How far it was read, in the same bytes as ``size``."""
        self.size = 0
        self.modified: float | None = None
        """Time of the last change, in Unix seconds; ``None`` while there is no file."""
        self.deleted = False
        self.exhausted = False
        """Whether nothing complete was left at the last ``read``."""
        self.defects = Defects()
        """What could not be read and was skipped."""

    def wait_s(self) -> float:
        """Seconds until another ``read`` may give anything."""
        return 0.0


@dataclass(frozen=True, slots=True)
class Batch:
    """Result of one read: records in the order of their steps."""

    records: Sequence[Record] = ()
    restarted: bool = False
    """The source was truncated or replaced: everything read before is gone."""


class RecordReader(Progress, ABC):
    """Reads records from a source that may still grow."""

    def sample(self, count: int) -> Sequence[Record]:
        """A header and about ``count`` steps of the whole run; empty where it must be read.

        Raises:
            OSError, Unreadable: as ``read``.
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


@dataclass(slots=True)
class Row:
    """Numbers of one step that matched the mapping."""

    step: int
    time: float | None
    """Unix seconds."""
    values: list[tuple[Target, float]] = field(default_factory=list)

    @property
    def of_router(self) -> bool:
        """Whether there is a reading of a router in it."""
        return any(target.of_router for target, _ in self.values)


@dataclass(frozen=True, slots=True)
class Rows:
    """Result of one read of a ``RowReader``."""

    rows: Sequence[Row] = ()
    restarted: bool = False
    ended: str = ""
    """Reason, if the writer said that the run ended: ``finished``, ``failed`` …"""


class RowReader(Progress, ABC):
    """Reads named numbers from a source that may still grow.

    ``keys[name]`` gives the target of a key or ``None``; it matches every distinct key once. Parse
    the value of a key only if it has a target.
    """

    name = ""
    """Name of the run, if the source has one."""

    def __init__(self, keys: Keys) -> None:
        super().__init__()
        self.keys = keys
        self.config: Mapping[str, object] = {}
        """The writer's configuration, as far as it was found; searched for E and k."""

    def sample(self, count: int) -> Sequence[Row]:
        """Rows from about ``count`` places of the whole run; empty where it must be read.

        Raises:
            OSError, Unreadable: as ``read``.
        """
        return ()

    @abstractmethod
    def read(self, max_bytes: int = 1 << 20) -> Rows:
        """The next rows, from about ``max_bytes`` of the source; never waits for a writer.

        Steps may repeat (several rows for one step are merged) and restart.

        Raises:
            OSError, Unreadable: as ``RecordReader.read``.
        """
