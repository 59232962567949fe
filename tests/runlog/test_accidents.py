"""Whatever a writer does to its file, a follower ends with exactly the lines that are in it."""

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings, strategies as st

from microscope_tui.runlog import Tail
from tests.runlog.followed import Reader, append
from tests.watch.accidents import OPERATIONS, Log

ORDINARY = {"steps", "gap", "resume", "event", "tear", "finish", "cut off", "look", "look at all"}
"""Some of what a sound writer does, a crash in the middle of a line included."""
STORIES = st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 999)), max_size=20)


@settings(max_examples=250)
@given(STORIES, st.sampled_from([1, 7, 100, 1000, 1 << 20]), st.sampled_from([300, 1 << 20]))
def test_any_accidents_in_any_order_leave_the_lines_of_the_file(
    story: list[tuple[str, int]], max_bytes: int, max_line_bytes: int
) -> None:
    with TemporaryDirectory() as folder:
        log = Log(Path(folder) / "metrics.jsonl")
        reader = Reader(Tail(log.path, max_line_bytes), max_bytes)
        for name, size in story:
            reader.look() if name.startswith("look") else log.happens(name, size)
        log.finish_story()
        if not log.path.read_bytes().endswith(b"\n"):
            append(log.path, b"\n")
        lines = [line.lstrip(b"\0") for line in log.path.read_bytes().split(b"\n")[:-1]]
        assert reader.look_until_exhausted() == lines
        ordinary = {name for name, _ in story} <= ORDINARY
        # Half a line that is too long is skipped at once: cutting it off looks like a restart.
        assert reader.restarts == 0 or not ordinary or max_line_bytes == 300


@settings(max_examples=40)
@given(STORIES, st.sampled_from([7, 1000]))
def test_without_lines_a_file_ends(story: list[tuple[str, int]], max_bytes: int) -> None:
    with TemporaryDirectory() as folder:
        log = Log(Path(folder) / "metrics.bin")
        tail, got = Tail(log.path, max_line_bytes=None), b""

        def look() -> None:
            nonlocal got
            chunk = tail.read(max_bytes)
            got = (b"" if chunk.restarted else got) + chunk.data

        for name, size in story:
            look() if name.startswith("look") else log.happens(name, size)
        log.finish_story()
        look()
        while not tail.exhausted:
            look()
        assert got == log.path.read_bytes()
