"""Writes a synthetic run in the background, at the pace of a training."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from microscope_tui.scenarios.write import write_run

STEPS_PER_SECOND = 10.0


@contextmanager
def writing(folder: Path, scenario: str, seed: int) -> Iterator[None]:
    """Write the run while the body runs; the run ends as stopped when the body is left."""
    stop = threading.Event()

    def wait() -> bool:
        return not stop.wait(1.0 / STEPS_PER_SECOND)

    writer = threading.Thread(
        target=write_run,
        args=(folder, scenario),
        kwargs={"seed": seed, "wait": wait},
        name="scenario-writer",
        daemon=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join(timeout=2.0)
