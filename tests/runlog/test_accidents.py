"""Whatever a writer does to its file, a follower ends with exactly the lines that are in it."""

import itertools
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings, strategies as st

from microscope_tui.runlog import Tail
from tests.runlog.followed import Reader, append


class Writer:
    """A log under every accident. No two lines are alike, as no two steps of a run are."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.numbers = itertools.count()
        path.write_bytes(b"")

    def line(self, length: int) -> bytes:
        number = next(self.numbers)
        filling = (b"%d," % number * length)[:length]
        return b'{"step":%d,"counts":"%s","n":%d}\n' % (number, filling, number)

    def append(self, length: int) -> None:
        append(self.path, self.line(length))

    def tear(self, length: int) -> None:
        line = self.line(length)
        append(self.path, line[: max(1, len(line) * length // 700)])

    def tear_newline(self, length: int) -> None:
        append(self.path, self.line(length)[:-1])

    def repair(self, _: int) -> None:
        data = self.path.read_bytes()
        os.truncate(self.path, data.rfind(b"\n") + 1)

    def truncate(self, size: int) -> None:
        os.truncate(self.path, min(size, self.path.stat().st_size))

    def rewrite(self, length: int) -> None:
        size = self.path.stat().st_size
        os.truncate(self.path, 0)
        while self.path.stat().st_size <= size:
            self.append(length)

    def rewrite_end(self, length: int) -> None:
        """Cut off one line and grow past the old size: the head stays."""
        data = self.path.read_bytes()
        os.truncate(self.path, data.rfind(b"\n", 0, -1) + 1)
        while self.path.stat().st_size <= len(data):
            self.append(length)

    def replace(self, length: int) -> None:
        other = self.path.with_suffix(".new")
        other.write_bytes(self.line(length) + self.line(length)[:-5])
        other.replace(self.path)

    def remove(self, length: int) -> None:
        self.path.unlink()
        self.append(length)

    def rest(self, _: int) -> None:
        then = time.time() - 60
        os.utime(self.path, (then, then))


ACCIDENTS = ["append", "tear", "tear_newline", "repair", "truncate", "rewrite", "rewrite_end"]
ACCIDENTS += ["replace", "remove", "rest", "look"]
ORDINARY = {"append", "tear", "tear_newline", "repair", "look"}
"""What a sound writer does, a crash in the middle of a line included."""


@settings(max_examples=250)
@given(
    st.lists(st.tuples(st.sampled_from(ACCIDENTS), st.integers(0, 700)), max_size=20),
    st.sampled_from([1, 7, 100, 1000, 1 << 20]),
    st.sampled_from([300, 1 << 20]),
)
def test_any_accidents_in_any_order_leave_the_lines_of_the_file(
    accidents: list[tuple[str, int]], max_bytes: int, max_line_bytes: int
) -> None:
    with TemporaryDirectory() as folder:
        writer = Writer(Path(folder) / "metrics.jsonl")
        reader = Reader(Tail(writer.path, max_line_bytes), max_bytes)
        for name, size in accidents:
            if name == "look":
                reader.look()
            else:
                getattr(writer, name)(size)
        if not writer.path.read_bytes().endswith(b"\n"):
            append(writer.path, b"\n")
        assert reader.look_until_exhausted() == writer.path.read_bytes().split(b"\n")[:-1]
        ordinary = {name for name, _ in accidents} <= ORDINARY
        # Half a line that is too long is skipped at once: cutting it off looks like a restart.
        assert reader.restarts == 0 or not ordinary or max_line_bytes == 300


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.sampled_from(ACCIDENTS), st.integers(0, 700)), max_size=20),
    st.sampled_from([7, 1000]),
)
def test_without_lines_a_file_ends(accidents: list[tuple[str, int]], max_bytes: int) -> None:
    with TemporaryDirectory() as folder:
        writer = Writer(Path(folder) / "metrics.bin")
        tail, got = Tail(writer.path, max_line_bytes=None), b""

        def look() -> None:
            nonlocal got
            chunk = tail.read(max_bytes)
            got = (b"" if chunk.restarted else got) + chunk.data

        for name, size in accidents:
            look() if name == "look" else getattr(writer, name)(size)
        look()
        while not tail.exhausted:
            look()
        assert got == writer.path.read_bytes()
