"""A reference step to compare with: of this run, or of another one at the same step."""

import os
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from microscope_tui import measures
from microscope_tui.runlog import RouterInfo, RouterSummary, RunFile, RunRecord, StepRecord
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
        if index < len(self.loads) and len(self.loads[index] or ()) == experts:
            return self.loads[index]
        return None


def reference_of(run: str, moment: Pin, header: RunRecord | None = None) -> Reference:
    """The loads at ``moment``, of the counts that were current then.

    ``header``: of another run; by default the routers are those of the open one.
    """
    loads: list[Sequence[float] | None] = []
    if moment.with_counts is not None:
        rows = moment.with_counts.matrices().tokens_per_expert
        loads += [measures.load(row or ()) for row in rows]
    routers: Sequence[RouterInfo] = ()
    if header is not None:
        routers = header.routers
    return Reference(run, moment.latest.record, loads, routers)


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
    order = _order(theirs, run.routers)
    if not theirs or order == [*range(len(theirs))]:
        return reference

    def ordered(values: Sequence[T | None]) -> list[T | None]:
        known = dict(enumerate(values))
        return [known.get(at) for at in order]

    moved = msgspec.structs.asdict(reference.record.router)
    for name, values in moved.items():
        if values is not None:
            moved[name] = ordered(values)
    return replace(
        reference,
        record=replace(reference.record, router=RouterSummary(**moved)),
        loads=ordered(reference.loads),
        routers=ordered(theirs),
    )


def _order(theirs: Sequence[RouterInfo | None], ours: Sequence[RouterInfo]) -> list[int]:
    """The place of each of ``ours`` among ``theirs``, -1 if it is missing; then the other ones."""
    places: dict[str, deque[int]] = defaultdict(deque)
    for at, router in enumerate(theirs):
        if router is not None:
            places[router.name].append(at)
    order = []
    for router in ours:
        left = places[router.name] or deque([-1])
        order.append(left.popleft())
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
