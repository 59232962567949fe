"""A whole run as one long table: one row per step and router, or per expert.

Columns are named as in the run log. Steps that a restart superseded are left out, so the run is
read twice: first the step numbers, then the rows, one step at a time in memory.
"""

from array import array
from collections.abc import Iterator, Sequence

from microscope_tui.report.export import Cell
from microscope_tui.runlog import Course, RouterSummary, RunFile, RunRecord, StepEntry, entries_of
from microscope_tui.watch import balance_now, complete_summary

_STEP = ("time", "loss", "learning_rate", "grad_norm", "tokens", "tokens_per_s", "step_time_s")
_SUMMARIES = RouterSummary.__struct_fields__
_PLACE = ("run", "step", "router", "layer", "depth")
ROUTER_COLUMNS = (*_PLACE, *_STEP, "collapse_index", *(f"router.{name}" for name in _SUMMARIES))
EXPERT_COLUMNS = (*_PLACE, "expert", "tokens_per_expert", "expert_bias")
Row = Sequence[Cell]


def rows_of(file: RunFile, *, experts: bool = False) -> Iterator[Row]:
    """The rows of a run, in the order of ``EXPERT_COLUMNS`` or ``ROUTER_COLUMNS``.

    Raises:
        OSError: it cannot be read.
        UnknownFormat: the log has another format version.
    """
    for run, entry in surviving_steps(file):
        yield from _of_experts(run, entry) if experts else _of_routers(run, entry)


def surviving_steps(file: RunFile) -> Iterator[tuple[RunRecord, StepEntry]]:
    """The steps that no restart superseded, each with the header it was written under.

    Raises:
        OSError, UnknownFormat: as ``rows_of``.
    """
    kept = _surviving(file)
    run: RunRecord | None = None
    number = 0
    for entry in entries_of(file):
        if isinstance(entry, RunRecord):
            run = entry
        elif isinstance(entry, StepEntry) and run is not None:
            if number < len(kept) and kept[number]:
                yield run, entry
            number += 1


def _surviving(file: RunFile) -> bytearray:
    """For every step record: whether no later record supersedes it."""
    kept, course = bytearray(), Course()
    steps, numbers = array("q"), array("q")  # of the records that survive so far
    for entry in entries_of(file):
        cut = course.take(entry)
        while cut is not None and steps and steps[-1] >= cut:
            kept[numbers.pop()] = 0
            steps.pop()
        if isinstance(entry, StepEntry):
            kept.append(not course.repeats)
            if not course.repeats:
                steps.append(entry.record.step)
                numbers.append(len(kept) - 1)
    return kept


def _of_routers(run: RunRecord, entry: StepEntry) -> Iterator[Row]:
    complete_summary(entry)
    record, summary = entry.record, entry.record.router
    of_step = [getattr(record, name) for name in _STEP]
    for index, router in enumerate(run.routers):
        values = [getattr(summary, name) for name in _SUMMARIES]
        c, _ = balance_now(summary, index, router)
        yield (
            *(run.run, record.step, index, router.name, router.depth),
            *of_step,
            c,
            *(None if one is None else one[index] for one in values),
        )


def _of_experts(run: RunRecord, entry: StepEntry) -> Iterator[Row]:
    if not entry.has_counts:
        return
    matrices = entry.matrices()
    for index, router in enumerate(run.routers):
        counts = matrices.tokens_per_expert[index]
        bias = matrices.expert_bias[index] or ()
        for expert, count in enumerate(counts or ()):
            place = (run.run, entry.record.step, index, router.name, router.depth, expert)
            yield (*place, count, bias[expert] if expert < len(bias) else None)
