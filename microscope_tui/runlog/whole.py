"""All of a run that is there now, from its start: for commands that need no screen."""

import time
from collections.abc import Iterator

from microscope_tui.runlog.discover import RunFile
from microscope_tui.runlog.reader import Entry, RunReader


def entries_of(file: RunFile) -> Iterator[Entry]:
    """The records of a run; one that is replaced while it is read counts up to there.

    Raises:
        OSError: it cannot be read.
        UnknownFormat: the log has another format version.
    """
    source, reader = file.open(), RunReader(file.name)
    while True:
        chunk = source.read()
        if chunk.restarted or (source.exhausted and not chunk.data):
            return
        yield from reader.feed(chunk.data)
        if not chunk.data:
            time.sleep(source.wait_s())
