"""A preview of a long log: a scan of a few hundred evenly spread steps."""

from collections.abc import Iterable

from microscope_tui.runlog import (
    EVERYTHING,
    Overview,
    RunFile,
    RunRecord,
    Source,
    StepEntry,
    sample,
    sample_of,
)
from microscope_tui.watch.history import Row
from microscope_tui.watch.scan import MEAN_OF, Scan
from microscope_tui.watch.summaries import complete_summary, new_history, row_maker

_SAMPLES = 240


def preview(
    source: Source, file: RunFile, memory_bytes: int, least_bytes: int
) -> tuple[Scan, bool] | None:
    """The preview, and whether earlier steps can be sought in it; ``None`` if there is none.

    Raises:
        OSError: the file cannot be read.
        UnknownFormat: the log has another format version.
    """
    found = _samples(source, file, least_bytes)
    if found is None:
        return None
    run = found.run
    samples = [e for e in found.samples if run and e.routers == len(run.routers)]
    if run is None or not samples:
        return None
    picture = Scan(_never, memory_bytes)
    picture.run, picture.latest, picture.end = run, samples[-1], found.end
    picture.with_counts = next((e for e in reversed(samples) if e.has_counts), None)
    picture.recent.extend(e for e in samples[-MEAN_OF:] if e.has_counts)
    picture.history = new_history(run, memory_bytes)
    row_of = row_maker(run.routers)
    for entry in samples:
        complete_summary(entry)
        picture.history.add(entry.record.step, row_of(entry), entry.offset, entry.record.time)
    picture.commit()
    return picture, found.monotonic


def _samples(source: Source, file: RunFile, least_bytes: int) -> Overview | None:
    """Steps of the whole run, if it has at least ``least_bytes``."""
    if source.seekable and source.kept() == EVERYTHING:
        if source.path.stat().st_size < least_bytes:
            return None
        return sample(source.path, file.name, _SAMPLES)
    lines = source.sampled(_SAMPLES) if file.size >= least_bytes else b""
    return sample_of(lines, file.name) if lines else None


def _never(row: Row, run: RunRecord, limit: int) -> Iterable[StepEntry]:
    """Steps of samples only increase: a restart never cuts a row."""
    raise AssertionError(f"a sampled history restarted at {row.step}")
