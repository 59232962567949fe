"""Every number of a log has a course: some are kept, all others are read from the log."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.runlog import PipedLog, RunFile, Spool
from microscope_tui.watch import History, Reading, RunWatch, Window, course_of, kept_numbers
from tests.conftest import header, open_log, step

ALL = Window(1, 10**6)


def logged(n: int, **changes: Any) -> dict[str, Any]:
    router = {"z_loss": [1.0 * n, 3.0 * n, None], "margin": [0.1, "NaN", 0.3]}
    own = {"reward": n / 10, "env": {"length": n}, "losses": {"aux\x1b": n / 100}}
    return step(n, [[4] * 8] * 3, 16, router=router, tokens_per_s=100.0 + n, **own | changes)


def values_of(held: RunWatch | Reading, name: str, router: int = 0) -> dict[int, float]:
    steps, columns = course_of(held, name, 500, ALL, router)
    return {n: c.mean for n, c in zip(steps, columns, strict=True) if c.mean == c.mean}


def read(watch: RunWatch, *names: str, each: bool = False) -> Reading:
    reading = Reading(watch, names, each=each)
    reading.read_on(lambda: False)
    return reading


@pytest.mark.parametrize("stride", [1, 4])
def test_a_series_that_begins_late_has_a_gap_before_it_and_no_log_has_too_many(stride: int) -> None:
    made = History({"x": 1}, 64, stride)
    for n in range(1, 33):
        late = {f"late {i}": (1.0,) for i in range(70 if n == 32 else 0)}
        made.add(n, {"x": (2.0,), **({"new": (float(n),)} if n > 16 else {}), **late})
        made.commit()
    for history in (made, made.halved()):
        columns = history.columns("new", 0, 4)
        assert [math.isnan(column.low) for column in columns] == [True, True, False, False]
        assert (columns[2].low, columns[3].high) == (17.0, 32.0)
        assert len(history.later) == 64


def test_losses_speed_and_means_over_the_layers_are_kept(write_log: Any) -> None:
    watch = open_log(write_log([header(), *map(logged, range(1, 41))]))
    losses = "losses.aux\N{REPLACEMENT CHARACTER}"  # a name is made safe where it enters
    assert {losses, "tokens_per_s", "router.z_loss", "router.margin"} <= set(kept_numbers(watch))
    assert values_of(watch, losses)[40] == pytest.approx(0.4)
    assert values_of(watch, "tokens_per_s")[7] == 107.0
    assert values_of(watch, "router.z_loss")[7] == 14.0  # two layers measured it
    assert values_of(watch, "router.margin")[1] == pytest.approx(0.2)


def test_other_numbers_are_read_without_the_steps_that_a_restart_superseded(write_log: Any) -> None:
    again = [header(resumed_at_step=21), *(logged(n, reward=-1.0) for n in range(21, 31))]
    path = write_log([header(), *map(logged, range(1, 41)), *again])
    watch = open_log(path)
    reading = read(watch, "reward", "env.length")
    rewards = values_of(reading, "reward")
    assert list(rewards) == list(range(1, 31))
    assert (rewards[20], rewards[21]) == (2.0, -1.0)
    assert values_of(reading, "env.length")[12] == 12.0
    layers = read(watch, "router.z_loss", each=True)
    assert [values_of(layers, "router.z_loss", at).get(5) for at in range(3)] == [5.0, 15.0, None]
    with path.open("a") as log:  # the reading continues there
        log.write(json.dumps(logged(31)) + "\n")
    reading.read_on(lambda: False)
    assert values_of(reading, "reward")[31] == pytest.approx(3.1)


def test_a_reading_stops_when_told_and_goes_on_later(write_log: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("microscope_tui.watch.past_steps._PIECE_BYTES", 4096)
    watch = open_log(write_log([header(), *map(logged, range(1, 201))]))
    reading = Reading(watch, ["reward"])
    reading.read_on(lambda: reading.progress > 0.3)
    assert 0.3 < reading.progress < 0.5
    assert not reading.ended
    assert 40 < len(values_of(reading, "reward")) < 120
    reading.read_on(lambda: False)
    assert reading.ended
    assert len(values_of(reading, "reward")) == 200


def test_of_a_pipe_the_kept_steps_are_read(write_log: Any, tmp_path: Path) -> None:
    path = write_log([header(), *map(logged, range(1, 301))])
    pipe = PipedLog(os.open(path, os.O_RDONLY), "pipe", spool=Spool(path.stat().st_size // 2))
    watch = RunWatch(RunFile("pipe", pipe.path, 0.0), source=pipe)
    while not pipe.ended:
        watch.advance()
    watch.read_all()
    rewards = values_of(read(watch, "reward"), "reward")
    assert 100 < min(rewards) < 290
    assert list(rewards) == list(range(min(rewards), 301))
    assert rewards[300] == 30.0
