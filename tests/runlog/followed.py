"""A reader of a source, as every test of a growing file needs it."""

from pathlib import Path

from microscope_tui.runlog import LineSplitter, Source


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


class Reader:
    """What a reader of a source keeps: the lines since the last restart."""

    def __init__(self, source: Source, max_bytes: int = 1 << 20) -> None:
        self.source, self.max_bytes = source, max_bytes
        self.restarts = 0
        self.lines: list[bytes] = []
        self.splitter = LineSplitter()

    def look(self) -> bytes:
        chunk = self.source.read(self.max_bytes)
        if chunk.restarted:
            self.restarts += 1
            self.lines, self.splitter = [], LineSplitter()
        self.lines += [line for _, line in self.splitter.feed(chunk.data)]
        return chunk.data

    def look_until_exhausted(self) -> list[bytes]:
        while self.look() or not self.source.exhausted:
            pass
        return self.lines
