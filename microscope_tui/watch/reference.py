"""A moment to compare with: of this run, or of another one."""

from collections.abc import Sequence
from dataclasses import dataclass

from microscope_tui import measures
from microscope_tui.runlog.records import RunRecord, StepRecord
from microscope_tui.watch.moment import Pin, pin_at
from microscope_tui.watch.run_watch import RunWatch


class NothingToCompare(ValueError):
    """A moment that cannot be compared with; the message says why."""


@dataclass(frozen=True, slots=True)
class Reference:
    """The loads of a moment, one list per router in forward order."""

    run: str
    step: int
    record: StepRecord
    counts_step: int | None
    loads: Sequence[Sequence[float] | None]
    """``None`` for a router without counts."""
    header: RunRecord | None = None

    def load_of(self, index: int, experts: int) -> Sequence[float] | None:
        """The loads of a router, if it has as many experts."""
        load = self.loads[index] if index < len(self.loads) else None
        return load if load is not None and len(load) == experts else None


def reference_of(run: str, moment: Pin, header: RunRecord | None = None) -> Reference:
    """A moment as a reference."""
    counted = moment.with_counts
    rows = counted.matrices().tokens_per_expert if counted is not None else []
    return Reference(
        run=run,
        step=moment.step,
        record=moment.latest.record,
        counts_step=counted.record.step if counted is not None else None,
        loads=[measures.load(row) if row else None for row in rows],
        header=header,
    )


def reference_in(watch: RunWatch, step: int) -> Reference:
    """The moment of another run at or before ``step``. Reads from the disk.

    Raises:
        NothingToCompare: it has no such step, or none that can be read now.
        OSError: its log cannot be read.
    """
    name = watch.file.name
    if watch.latest is None:
        raise NothingToCompare(f"{name} has no step to compare with")
    moment = pin_at(watch, step)
    if moment is None:
        raise NothingToCompare(
            f"step {step:,} of {name} cannot be read: packed, or still being read"
        )
    return reference_of(name, moment, watch.run)
