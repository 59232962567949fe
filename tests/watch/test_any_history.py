"""Whatever happened to a log: who saw all of it knows what a fresh reader of the file knows.

And both know what the file says, by a reading of the format that is simple enough to be right.
"""

import json
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from microscope_tui.runlog import RunFile
from microscope_tui.watch import RunWatch, history, pin_at, run_watch
from tests.conftest import open_log
from tests.hostile.outcome import difference, outcome
from tests.watch.accidents import OPERATIONS, Log, Truth

STORIES = st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 999)), max_size=25)
SLICES = st.sampled_from([1, 300, 1000, 5000, 1 << 20])
HOLD_S = st.sampled_from([0.008, -1.0])
"""A turn ends after some milliseconds, or after every record: the file then changes in between."""
TO_70 = [("steps", 59), ("steps", 9)]
"""Seventy steps in rows of four: two of them are in the last row."""
thoroughly = settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])


@contextmanager
def reading(hold_s: float, *, coarse: bool) -> Iterator[None]:
    """Readers that pause early or late, and merge rows soon (``coarse``)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_watch, "HOLD_S", hold_s)
        patch.setattr(run_watch, "_OVERVIEW_FROM_BYTES", 1)
        if coarse:
            patch.setattr(history, "MIN_ROWS", 32)
            patch.setattr(history, "MAX_ROWS", 32)
        yield


def live_through(story: list[tuple[str, int]], log: Log, watch: RunWatch, slice_bytes: int) -> None:
    """Let it all happen, with looks in between, and read what is there at the end."""
    for name, size in story:
        if name == "look":
            for _ in range(1 + size % 5):
                watch.advance(slice_bytes)
        elif name == "look at all":
            watch.read_all()
        else:
            log.happens(name, size)
    log.finish_story()
    watch.read_all()


@thoroughly
@given(STORIES, SLICES, HOLD_S)
@example([("steps", 0), ("resume", 1), ("steps", 641), ("truncate", 416)], 1000, 0.008)
def test_a_follower_ends_with_the_state_of_a_fresh_reader(
    story: list[tuple[str, int]], slice_bytes: int, hold_s: float
) -> None:
    with TemporaryDirectory() as folder:
        log = Log(Path(folder) / "metrics.jsonl")
        watch = RunWatch(RunFile(log.path.parent.name, log.path, 0.0))
        with reading(hold_s, coarse=False):
            live_through(story, log, watch, slice_bytes)
        with reading(0.008, coarse=False):
            fresh = open_log(log.path)
        assert difference(outcome(watch), outcome(fresh)) == ""
        assert watch.defects == fresh.defects
        agrees_with_the_file(watch, Truth(log.path.read_bytes()))


@thoroughly
@given(STORIES, SLICES, HOLD_S)
@example([("tear", 996)], 1, 0.008)
@example([*TO_70, ("header again", 0), ("steps", 1), ("go back", 1)], 1000, 0.008)
@example([*TO_70, ("repeat", 0), ("steps", 1), ("go back", 1)], 1000, 0.008)
@example([*TO_70, ("resume", 502), ("steps", 59), ("steps", 59), ("go back", 2)], 1000, -1.0)
@example([*TO_70, ("go back", 2), ("steps", 59), ("steps", 59), ("resume", 62)], 1000, -1.0)
def test_coarse_histories_hold_the_extremes_of_exactly_the_steps_that_survive(
    story: list[tuple[str, int]], slice_bytes: int, hold_s: float
) -> None:
    with TemporaryDirectory() as folder, reading(hold_s, coarse=True):
        log = Log(Path(folder) / "metrics.jsonl", usual_steps=60)
        watch = RunWatch(RunFile("run", log.path, 0.0))
        live_through(story, log, watch, slice_bytes)
        for reader in (watch, open_log(log.path)):
            agrees_with_the_file(reader, Truth(log.path.read_bytes()))


@thoroughly
@given(STORIES, st.integers(0, 2**32))
def test_a_sample_shows_values_of_the_file_and_leaves_when_the_scan_is_through(
    story: list[tuple[str, int]], seed: int
) -> None:
    with TemporaryDirectory() as folder, reading(0.008, coarse=False):
        log = Log(Path(folder) / "metrics.jsonl")
        for name, size in story:
            if not name.startswith("look"):
                log.happens(name, size)
        log.finish_story()
        truth = Truth(log.path.read_bytes())
        watch = RunWatch(RunFile("run", log.path, 0.0))
        watch.open_overview()
        if watch.sampled:
            assert list(watch.history.steps) == sorted(set(watch.history.steps))
            for at, (step, offset) in enumerate(
                zip(watch.history.steps, watch.history.offsets, strict=True)
            ):
                assert truth.written[offset] == (step, watch.history.value("loss", 0, at))
            asked = random.Random(seed).randrange(1, 200)
            found = pin_at(watch, asked)
            if found is not None:
                assert (found.step, found.latest.record.loss) in truth.written.values()
        watch.read_all()
        assert not watch.sampled
        agrees_with_the_file(watch, truth)


def agrees_with_the_file(watch: RunWatch, truth: Truth) -> None:
    """The history, and every moment of it, against a plain reading of the file."""
    assert watch.error is None
    found = watch.history
    assert (watch.run is None) == (truth.routers is None)
    found.commit()
    assert found.restarts == truth.restarts
    assert found.last_step == truth.last
    ends = [*list(found.steps)[1:], 2**62][: len(found)]
    rows = found.columns("loss", 0, len(found))
    seen: list[int] = []
    for first, end, offset, row in zip(found.steps, ends, found.offsets, rows, strict=True):
        own = {step: kept for step, kept in truth.kept.items() if first <= step < end}
        losses = [loss for _, loss in own.values()]
        assert (row.low, row.high) == (min(losses), max(losses))
        assert offset == truth.kept[first][0]
        seen += own
    assert seen == sorted(truth.kept)
    if truth.latest is not None:
        assert (watch.latest.record.step, watch.latest.record.loss) == truth.latest
    moments_agree(watch, truth)


def moments_agree(watch: RunWatch, truth: Truth) -> None:
    """Any step of the past is found: the last surviving one at or before it, with its counts."""
    if not truth.kept or watch.latest is None:
        return
    top = min(max(truth.kept), watch.latest.record.step - 1)
    around = {step + near for step in truth.restarts for near in (-1, 0, 1, 3)}
    for asked in {0, 1, top, *(top * share // 7 for share in range(7)), *around}:
        surviving = [step for step in truth.kept if step <= asked]
        expected = max(surviving) if surviving else min(truth.kept)
        if asked >= watch.latest.record.step:
            continue  # the present, which stays on screen until a resumed run has a step again
        found = pin_at(watch, asked)
        assert (found.step, found.latest.record.loss) == (expected, truth.kept[expected][1])
        counted = [step for step in truth.counted if step <= expected and step in truth.kept]
        expected_counts = truth.kept[max(counted)] if counted else None
        held: Any = found.with_counts
        assert (held and (held.offset, held.record.loss)) == expected_counts


def test_the_plain_reading_of_a_file_is_right_about_a_small_one(tmp_path: Path) -> None:
    log = Log(tmp_path / "metrics.jsonl")
    for name, size in [("steps", 4), ("go back", 2), ("steps", 0), ("resume", 3), ("steps", 1)]:
        log.happens(name, size)
    truth = Truth(log.path.read_bytes())
    numbers = [json.loads(line).get("step") for line in log.path.read_bytes().splitlines()]
    assert numbers == [None, 1, 2, 3, 4, 5, 4, 5, None, 3, 4]
    assert sorted(truth.kept) == [1, 2, 3, 4]
    assert truth.restarts == [3]
    os.truncate(log.path, 0)
    assert Truth(log.path.read_bytes()).kept == {}
