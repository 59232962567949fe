"""The steps of one row of the history, read again from the file."""

from collections.abc import Iterator
from pathlib import Path

from microscope_tui.runlog import RunRecord, StepEntry, step_at, surviving_steps
from microscope_tui.watch.history import Row


def find_in(path: Path, run: RunRecord, row: Row, limit: int, end: int) -> list[tuple[int, int]]:
    """Step and offset of the steps of ``row`` below ``limit`` that are not superseded.

    Args:
        end: where the row ends in the file if it is the last one.

    Raises:
        OSError: the file cannot be read.
    """
    limit = min(limit, row.after)
    end = end if row.end is None else row.end
    restarted = row.restart is not None and row.restart < limit
    return surviving_steps(path, run, row.offset, end, limit, restarted=restarted)


def steps_in(path: Path, run: RunRecord, row: Row, limit: int, end: int) -> Iterator[StepEntry]:
    """The same steps, one at a time in memory.

    Raises:
        OSError: the file cannot be read.
    """
    for _, offset in find_in(path, run, row, limit, end):
        entry = step_at(path, run, offset)
        if entry is not None:
            yield entry
