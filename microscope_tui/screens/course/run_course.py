"""The numbers of a run over its steps, read without judging, for charts of several runs."""

import threading
from collections.abc import Callable, Mapping

from microscope_tui.measures import mean_of
from microscope_tui.runlog import RunFile, RunReader, RunRecord, Source, StepEntry, UnknownFormat
from microscope_tui.watch.history import MOST_LATER, History, rows_within
from microscope_tui.watch.scan import RowOf, Scan

_BYTES = 4 << 20
_PIECE_BYTES = 1 << 19


class RunCourse(Scan):
    """All numbers of one run; those of routers as the mean over the layers."""

    def __init__(self, file: RunFile) -> None:
        super().__init__(lambda *_: (), _BYTES)
        self.file = file
        self.lock = threading.Lock()
        self.replaced = False
        """Begin again: it is another log."""
        self.error = ""
        self._source: Source | None = None
        self._reader = RunReader(file.name)

    def _begun(self, run: RunRecord) -> tuple[History, RowOf]:
        return History({}, rows_within(_BYTES, MOST_LATER)), _numbers_of

    @property
    def progress(self) -> float:
        """Share of the log that was read, 0 … 1."""
        source = self._source
        return 0.0 if source is None else min(1.0, source.offset / max(1, source.size))

    @property
    def newest(self) -> dict[str, float | None]:
        """The numbers of the last step, by name; empty before the first."""
        if self.latest is None:
            return {}
        return {name: value for name, (value,) in _numbers_of(self.latest).items()}

    def read_on(self, cancelled: Callable[[], bool]) -> None:
        """Read to the end of the log, or until ``cancelled``; never raises because of the log."""
        try:
            source = self._source = self._source or self.file.open()
            while not cancelled():
                chunk = source.read(_PIECE_BYTES)
                self.replaced |= chunk.restarted and self.latest is not None
                with self.lock:
                    self._add(chunk.data)
                self.make_room(self.lock)
                if self.replaced or (not chunk.data and source.exhausted):
                    return
        except (OSError, UnknownFormat) as error:
            self.error = str(getattr(error, "strerror", None) or error)

    def _add(self, data: bytes) -> None:
        for entry in self._reader.feed(data):
            self.take(entry)
        self.commit()


def _numbers_of(entry: StepEntry) -> Mapping[str, tuple[float | None]]:
    found: dict[str, tuple[float | None]] = {}
    for name, number in entry.numbers().items():
        found[name] = (mean_of(number),) if isinstance(number, list) else (number,)
    return found
