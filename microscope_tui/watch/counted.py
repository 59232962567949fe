"""The counts of a run, step by step, small enough to keep: what a placement is fitted to.

Where a run log has more counts than fit into memory, every second step is kept, then every fourth
…; the spacing is part of the result, because it limits how finely ageing can be measured.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence

import msgspec
from msgspec.structs import replace

from microscope_tui.runlog import (
    Course,
    Entry,
    RouterInfo,
    RunFile,
    RunRecord,
    StepEntry,
    entries_of,
    has_grown,
)

MOST_COUNTS, _LEAST_ROW = 18_000_000, 180
"""Counts in memory, of four bytes each; a step with its scores takes as much as so many."""
_LIMITS = {
    "top1": "only first choices are known: the loads are those of the first choice",
    "local_rank": "these are the counts of one rank: the others may differ",
    "shares": "the counts are shares: steps of different size weigh the same",
    "capacity": "with a capacity ranks wait for less: the counts are before drops",
}


class NoCounts(ValueError):
    """The run has nothing to count; the message says why."""


class Layer(msgspec.Struct):
    """The counts of one router ``[steps × experts]``, row by row; a step without any is zero."""

    router: RouterInfo
    counts: array[float]

    def columns(self, steps: range) -> list[array[float]]:
        """The counts of each expert, one per step, in the steps at these positions."""
        experts = self.router.num_experts
        start, stop = steps.start * experts, steps.stop * experts
        return [self.counts[start + expert : stop : experts] for expert in range(experts)]


class Counts(msgspec.Struct):
    """The counts of a run over its steps, for the fitting of placements."""

    run: RunRecord
    steps: array[int]
    layers: Sequence[Layer]
    """Only routers that counted something."""
    every: int
    """1, or each of how many counted steps was kept."""

    @property
    def notes(self) -> list[str]:
        """What limits the meaning of the counts, one sentence each; empty if nothing does."""
        kinds = (self.run.counts, "capacity" if self.run.capacity_factor else "")
        notes = [_LIMITS[kind] for kind in kinds if kind in _LIMITS]
        if self.every > 1:
            notes.append(f"a long run: one of {self.every} counted steps is used")
        return notes

    def between(self, first: int | None, last: int | None) -> range:
        """Positions in ``steps`` of the steps ``first`` … ``last``; ``None`` leaves an end open."""
        start = 0 if first is None else bisect_left(self.steps, first)
        return range(start, len(self.steps) if last is None else bisect_right(self.steps, last))


class _Reading:
    def __init__(self, run: RunRecord) -> None:
        self.run = run
        self.steps = array("q")
        self.every = 1
        self._course = Course()
        self._seen = 0
        self.layers = [Layer(router, array("f")) for router in run.routers]
        self._row = max(_LEAST_ROW, sum(router.num_experts for router in run.routers))

    def take(self, entry: Entry) -> None:
        """Drop what a record supersedes, and add a step that holds."""
        cut = self._course.take(entry)
        if cut is not None:
            kept = bisect_left(self.steps, cut)
            del self.steps[kept:]
            for layer in self.layers:
                del layer.counts[kept * layer.router.num_experts :]
        if isinstance(entry, StepEntry) and entry.has_counts and not self._course.repeats:
            self._add(entry)

    def _add(self, entry: StepEntry) -> None:
        self._seen += 1
        if self._seen % self.every:
            return
        for layer, row in zip(self.layers, entry.matrices().tokens_per_expert, strict=True):
            experts = layer.router.num_experts
            known = row if row and len(row) <= experts else []
            layer.counts.extend([*known, *[0.0] * (experts - len(known))])
        self.steps.append(entry.record.step)
        if len(self.steps) * self._row > MOST_COUNTS and len(self.steps) > 1:
            self._halve()

    def _halve(self) -> None:
        self.every *= 2
        self.steps = self.steps[1::2]
        for layer in self.layers:
            experts = layer.router.num_experts
            before = layer.counts
            layer.counts = array("f")
            for at in range(experts, len(before), 2 * experts):
                layer.counts.extend(before[at : at + experts])


def read_counts(
    file: RunFile,
    progress: Callable[[float], None] = lambda share: None,
    widest: RunRecord | None = None,
) -> Counts:
    """Read the counts of all steps that no restart superseded.

    Args:
        file: The run.
        progress: Called with the share that is read, 0 … 1; what it raises ends the reading.
        widest: A header with the experts that only later steps have; by default found here.

    Raises:
        NoCounts: no step has counts.
        OSError: the run cannot be read.
        UnknownFormat: the run has another format version.
    """
    reading = _Reading(widest) if widest is not None else None
    for entry in entries_of(file):
        if isinstance(entry, RunRecord):
            if reading is None or not has_grown(entry.routers, reading.run.routers):
                if reading is not None and has_grown(reading.run.routers, entry.routers):
                    return read_counts(file, progress, entry)  # now with room for all experts
                reading = _Reading(entry)  # another model from here
            reading.run = replace(entry, routers=reading.run.routers)
        if reading is not None:
            reading.take(entry)
        if isinstance(entry, StepEntry):
            progress(min(1.0, entry.offset / max(1, file.size)))
    if reading is None:
        raise NoCounts("no run now")
    layers = [layer for layer in reading.layers if any(layer.counts)]
    if not layers:
        raise NoCounts("no step with counts (tokens_per_expert)")
    run = replace(reading.run, run=reading.run.run or file.name)
    return Counts(run, reading.steps, layers, reading.every)
