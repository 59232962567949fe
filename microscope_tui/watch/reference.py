"""A reference step to compare with: of this run, or of another one at the same step."""

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from microscope_tui import measures
from microscope_tui.runlog import (
    RouterInfo,
    RouterSummary,
    RunFile,
    RunRecord,
    StepRecord,
)
from microscope_tui.watch.past_steps import Pin, pin_at
from microscope_tui.watch.run_watch import RunWatch

_MOST_READ = 16 << 20
_MEMORY = 16 << 20
T = TypeVar("T")


class NothingToCompare(ValueError):
    """The message says why."""


class Reference(msgspec.Struct, frozen=True):
    """The loads at a step, one list per router in forward order."""

    run: str
    """Name of the run."""
    record: StepRecord
    loads: Sequence[Sequence[float] | None]
    """``None`` for a router without counts."""
    routers: Sequence[RouterInfo | None] = ()
    """Of each list; ``None`` if missing. Empty: those of the open run."""

    @property
    def step(self) -> int:
        """The step that is compared with."""
        return self.record.step

    def load_of(self, index: int, experts: int) -> Sequence[float] | None:
        """Multiples of the fair share; ``None`` without counts, or for another number of
        ``experts``.
        """
        load = self.loads[index] if index < len(self.loads) else None
        return load if load is not None and len(load) == experts else None


def reference_of(run: str, moment: Pin, header: RunRecord | None = None) -> Reference:
    """The loads at ``moment``, of the counts that were current then.

    ``header``: of another run; by default the routers are those of the open one.
    """
    counted = moment.with_counts
    rows = counted.matrices().tokens_per_expert if counted is not None else []
    return Reference(
        run=run,
        record=moment.latest.record,
        loads=[measures.load(row) if row else None for row in rows],
        routers=header.routers if header is not None else (),
    )


def reference_in(watch: RunWatch, step: int) -> Reference:
    """The last step of ``watch`` at or before ``step``. It reads from the disk.

    Raises:
        NothingToCompare: the run has no such step, or none that can be read now.
        OSError: its log cannot be read.
    """
    name = watch.file.name
    if watch.latest is None:
        raise NothingToCompare(f"{name} has no step to compare with")
    moment = pin_at(watch, step)
    if moment is None:
        raise NothingToCompare(
            f"step {step:,} of {name} cannot be read: compressed, or still being read"
        )
    return reference_of(name, moment, watch.run)


def aligned(reference: Reference, run: RunRecord) -> Reference:
    """``reference`` with its routers in the order of ``run``, by name and in forward order, others
    last."""
    theirs = reference.routers
    order = _order([None if r is None else r.name for r in theirs], [r.name for r in run.routers])
    if not theirs or order == [*range(len(theirs))]:
        return reference

    def ordered(values: Sequence[T | None]) -> list[T | None]:
        return [None if at is None or at >= len(values) else values[at] for at in order]

    summary = msgspec.structs.asdict(reference.record.router)
    moved = {name: None if values is None else ordered(values) for name, values in summary.items()}
    return replace(
        reference,
        record=replace(reference.record, router=RouterSummary(**moved)),
        loads=ordered(reference.loads),
        routers=ordered(theirs),
    )


def _order(theirs: Sequence[str | None], names: Sequence[str]) -> list[int | None]:
    places: dict[str, list[int]] = {}
    for at, name in enumerate(theirs):
        if name is not None:
            places.setdefault(name, []).append(at)
    order = [places[name].pop(0) if places.get(name) else None for name in names]
    return order + sorted(at for left in places.values() for at in left)


class PinnedRun:
    """Another run to compare with. What the fleet follows is not read twice; nothing is judged
    for its sake, and of a long log only what a moment needs is read."""

    def __init__(self, file: RunFile, followed: Callable[[Path], RunWatch | None]) -> None:
        self.file = file
        self._followed = followed
        self._own: RunWatch | None = None
        self._state: tuple[int, ...] = ()
        self._lock = threading.Lock()

    def at(self, step: int) -> Reference:
        """Its reference at or before ``step``. It reads from the disk: call it in a worker thread.

        Raises:
            NothingToCompare: the run has no such step, or none that can be read.
            OSError: its log cannot be read.
        """
        with self._lock:
            return reference_in(self._watch(), step)

    def _watch(self) -> RunWatch:
        watch = self._followed(self.file.path)
        if watch is not None and watch.complete:
            self._own = None
            return watch
        found = os.stat(self.file.path)
        state = (found.st_ino, found.st_size, found.st_mtime_ns)
        if self._own is None or state != self._state:
            self._own = _opened(self.file, found.st_size)
            self._state = state
        return self._own


def _opened(file: RunFile, size: int) -> RunWatch:
    watch = RunWatch(file, memory_bytes=_MEMORY)
    if not watch.source.seekable:
        raise NothingToCompare(f"{file.name} is compressed: decompress it to compare")
    watch.open_overview()
    if watch.latest is None or not watch.can_seek:
        if size > _MOST_READ:
            raise NothingToCompare(f"{file.name} has restarts: open it, and pin the other one")
        watch.read_all()
    if watch.error is not None:
        raise NothingToCompare(f"{file.name}: {watch.error}")
    return watch
