"""The judge: the diagnosis of a run, fed with the same records as the scan, at its own pace.

For a short or a live log it follows the scan record by record. For a long one it reads separately
until it reaches the scan; from then on they advance together.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from microscope_tui.diagnosis import Criteria, Diagnosis
from microscope_tui.runlog import Entry, EventRecord, RunReader, RunRecord, StepEntry, read_at
from microscope_tui.watch.summaries import complete_summary


class Judge:
    """The diagnosis of one log."""

    def __init__(self, name: str, criteria: Criteria) -> None:
        self.diagnosis: Diagnosis | None = None
        self.reader = RunReader(name)
        """Used while the judge is behind the scan."""
        self.offset = 0
        """Position in bytes of the log while behind the scan."""
        self.along = True
        """Whether it is fed along with the scan."""
        self._criteria = criteria

    def read_on(self, path: Path, end: int, max_bytes: int) -> Iterator[Entry]:
        """Read the next records up to the scan at ``end``; from there, advance with it.

        Raises:
            OSError: the log cannot be read.
        """
        left = end - self.offset
        if left <= 0:
            self.along = True
            return self.reader.feed(b"\n")  # the last line may lack its newline
        data = read_at(path, self.offset, min(max_bytes, left))
        self.offset += len(data) or left  # it shrank: the scan will report it
        return self.reader.feed(data)

    def take(self, entry: Entry) -> None:
        """Judge one record."""
        match entry:
            case StepEntry():
                self._take_step(entry)
            case RunRecord():
                self._take_run(entry)
            case EventRecord() if self.diagnosis is not None:
                self.diagnosis.observe_event(entry)

    def _take_run(self, run: RunRecord) -> None:
        diagnosis = self.diagnosis
        if diagnosis is None or diagnosis.run.routers != run.routers:
            self.diagnosis = Diagnosis(run, self._criteria)
            return
        if run.resumed_at_step is not None:
            step = max(1, min(run.resumed_at_step, diagnosis.last_step + 1))
            diagnosis.restart(step, corrected=_is_correction(run, diagnosis))
        diagnosis.go_on(run)

    def _take_step(self, entry: StepEntry) -> None:
        if self.diagnosis is None or entry.record.step == self.diagnosis.last_step:
            return  # a repeated step: the first one stands
        complete_summary(entry)
        self.diagnosis.observe(entry.record, entry.counts, entry.biases)


def _is_correction(run: RunRecord, diagnosis: Diagnosis) -> bool:
    """The last step is written again behind the same header, its time included: the rest of the
    step came late."""
    again = replace(run, resumed_at_step=None, profile=diagnosis.run.profile)
    is_last = run.resumed_at_step == diagnosis.last_step
    return is_last and again == replace(diagnosis.run, resumed_at_step=None)
