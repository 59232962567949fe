"""Several runs in one chart: which ones, over what, and how far they were read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from microscope_tui.draw.spans import plain
from microscope_tui.runlog import RunFile
from microscope_tui.screens.course.together import (
    VALIDATION,
    Across,
    RunCourse,
    numbers_together,
    together_chart,
    together_lines,
)
from tests.app.pilot import open_app
from tests.conftest import header, step

Make = Callable[..., Path]


def read(log: Path) -> RunCourse:
    course = RunCourse(RunFile(log.parent.name, log, 0.0))
    course.read_on(lambda: False)
    return course


async def test_selected_runs_are_drawn_together_and_a_growing_one_is_read_on(
    make_run: Make, append: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microscope_tui.screens.course.together._REFRESH_S", 0.05)
    logs = [make_run(name, steps=range(1, 30)) for name in ("first", "second", "third")]
    async with open_app(logs[0].parent.parent, "r") as app:
        await app.sees("3 runs", "runs")
        await app.press("space", "down", "space", "T")
        await app.sees("2 runs", "answer")
        await app.sees("at step 29", "together-runs")
        shown = app.text("together-runs").split()
        assert len({"first", "second", "third"} & set(shown)) == 2
        assert "7.71" in shown, "the loss of the newest step, not a mean"
        grown = next(log for log in logs if log.parent.name in shown)
        append(grown, range(30, 34))
        await app.sees("at step 33", "together-runs")
        await app.press("x")
        assert "over tokens" in app.text("answer")
        await app.press("down", "enter")
        assert "loss" not in app.text("chart-number").split("\n")[0]
        await app.press("escape", "space", "T")
        await app.sees("select runs with space", "answer")


async def test_the_list_and_the_time_cursor_of_screen_6_are_there_for_several_runs(
    make_run: Make,
) -> None:
    logs = [make_run(name, steps=range(1, 30), reward=0.5) for name in ("first", "second")]
    async with open_app(logs[0].parent.parent, "r", "T", size=(120, 30)) as app:
        await app.sees("at step 29", "together-runs")
        assert "●   loss" in app.text("numbers")
        await app.press("slash", *"rew", "enter", "enter")
        assert app.text("chart-number").split("\n")[0].split() == ["▶", "reward"]
        assert app.text("together-runs").count("0.5") == 2
        await app.press("v")
        assert app.text("chart-number").split("\n")[0].split() == ["▶", "reward"]
        assert "│" not in app.text("chart-number")
        await app.press("left_square_bracket")
        assert "│" in app.text("chart-number")
        await app.press("x")
        assert "│" not in app.text("chart-number"), "the cursor is a step, and this axis is not"
        await app.press("slash", *"x", "enter", "enter")
        assert "no number matches" in app.screen.message_shown


def test_lines_are_where_the_run_was_at_that_step_time_or_number_of_tokens(make_run: Make) -> None:
    short = read(make_run("short", steps=range(1, 11)))
    long = read(make_run("long", steps=range(1, 41)))
    for across, last in ((Across.STEPS, 40), (Across.TIME, 39), (Across.TOKENS, 40 * 2048)):
        chart, scale = together_chart([short, long], "loss", across, 100)
        assert [curve.name for curve in chart.curves] == ["short", "long"]
        assert [curve.steps[-1] for curve in chart.curves][1] == last
        assert chart.curves[0].steps[-1] < last
        assert scale.window.last == last
        assert chart.curves[1].values[-1] == pytest.approx(8.0 - 40 / 100)


def test_tokens_add_up_however_sparsely_steps_are_logged(write_log: Any) -> None:
    """100 steps of 400 tokens, each logged, then every tenth of 4,000."""
    steps = [step(n, [[50] * 8] * 3, 400, loss=2.0) for n in range(1, 101)]
    steps += [step(n, [[50] * 8] * 3, 4000, loss=2.0) for n in range(110, 1001, 10)]
    course = read(write_log([header(), *steps]))
    chart, _ = together_chart([course], "loss", Across.TOKENS, 200)
    assert chart.curves[0].steps[-1] == pytest.approx(100 * 400 + 900 * 4000, rel=0.01)


def test_any_number_and_the_validation_loss_can_be_compared(make_run: Make) -> None:
    log = make_run("run", steps=range(1, 21), reward=0.5)
    with log.open("a") as file:
        for step in (5, 15):
            event = {"kind": "event", "event": "eval", "step": step, "values": {"loss": 3.0 + step}}
            file.write(json.dumps(event) + "\n")
    course = read(log)
    names = numbers_together([course])
    assert names[:2] == ["loss", VALIDATION]
    assert "reward" in names
    chart, _ = together_chart([course], VALIDATION, Across.STEPS, 100)
    assert list(zip(chart.curves[0].steps, chart.curves[0].values, strict=True)) == [
        (5, 8.0),
        (15, 18.0),
    ]
    assert not together_chart([course], "no_such", Across.STEPS, 100)[0].measured


def test_an_unreadable_log_has_the_reason_on_its_line(make_run: Make, monkeypatch: Any) -> None:
    course = RunCourse(RunFile("mine", make_run("mine"), 0.0))
    refused = mock.Mock(side_effect=PermissionError(13, "Permission denied"))
    monkeypatch.setattr(RunFile, "open", refused)
    course.read_on(lambda: False)
    (line,) = together_lines([course], "loss", 80)
    assert plain(line).split() == ["●", "mine", "-", "Permission", "denied"]
