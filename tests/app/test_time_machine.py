"""Going to a step of the past, moving on from there, playback, the window and the time axis."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, strategies as st
from textual import events

from microscope_tui.kit.time_cursor import TimeCursor
from microscope_tui.screens.layer.screen import LayerScreen
from microscope_tui.screens.main.screen import MainScreen
from tests.app.pilot import compressed, open_app
from tests.conftest import open_log

Make = Callable[..., Path]


@pytest.fixture
def cursor_on(make_run: Make) -> Callable[[Any], TimeCursor]:
    def on(steps: Any) -> TimeCursor:
        watch = open_log(make_run(steps=steps))
        return TimeCursor(lambda: watch)

    return on


def step_in(header: str) -> int:
    found = re.search(r"(?:step|part) ([\d,]+)", header)
    return int(found[1].replace(",", "")) if found else 0


@pytest.mark.parametrize(
    ("typed", "step", "said"),
    [
        ("0", 1, None),
        ("100", 100, None),
        ("9" * 15, 100, "step 999,999,999,999,999 is not in the log: showing the newest, 100"),
        ("25%", 25, None),
        ("-0min", 100, None),
        ("abc", 100, "abc is not a place: try 12k, 50%, -100, 14:30, -2h or end"),
    ],
)
def test_any_place_leads_to_the_nearest_step_there_is(
    cursor_on: Callable[[Any], TimeCursor], typed: str, step: int, said: str | None
) -> None:
    cursor = cursor_on(range(1, 101))
    cursor.speed = 4
    assert cursor.go(typed) == said
    assert cursor.shown_step == step
    assert cursor.following == (step == 100)
    assert cursor.speed == 0


@pytest.mark.parametrize(
    "logged", [range(1, 41), range(10, 401, 10), [*range(1, 7), 30, 31, 32, *range(90, 96), 200]]
)
def test_single_steps_are_logged_steps_however_rarely_they_are_logged(
    cursor_on: Callable[[Any], TimeCursor], logged: Any
) -> None:
    steps, cursor, shown = list(logged), cursor_on(logged), []
    for by in [-1] * 15 + [1] * 14:
        assert cursor.step_by(by) is None
        shown.append(cursor.shown_step)
    back = steps[-2:-17:-1]
    assert shown == [*back, *back[-2::-1]]
    cursor.step_by(1)
    assert cursor.following  # the newest step is the live run again


async def test_the_prompt_can_be_corrected_and_left_without_going_anywhere(make_run: Make) -> None:
    async with open_app(make_run(steps=range(1, 101)), *":99", "backspace", size=(80, 24)) as app:
        assert "go to step 9▏" in app.text("keys")
        assert "1 to 100" in app.text("keys")
        await app.press("escape")
        assert app.session.time.following
        assert "⏎ open" in app.text("keys")
        await app.press(":", "q", "down", "left", "delete")  # all but q do nothing
        assert "go to step q▏" in app.text("keys")
        await app.press("ctrl+u", "7")
        assert "go to step 7▏" in app.text("keys")
        await app.press("escape")
        assert app.app.is_running
        await app.enter(":")
        assert app.session.time.following
        await app.enter(":abc")
        assert "abc is not a place" in app.text("keys")
        await app.press(":")
        app.app.post_message(events.Paste(" 42\n"))
        await app.sees("go to step 42▏", "keys")
        await app.press("enter")
        assert step_in(app.text("header")) == 42


@pytest.mark.usefixtures("quick_reader")
async def test_a_paused_run_continues_behind_the_shown_step_and_f_returns_to_it(
    make_run: Make, append: Callable[..., None]
) -> None:
    log = make_run(steps=range(1, 51))
    async with open_app(log, "f") as app:
        append(log, range(51, 61))
        await app.sees("50 PAUSED, now 60", "ribbon")
        await app.enter(":20")
        append(log, range(61, 71))
        await app.sees("20 PAUSED, now 70", "ribbon")
        assert step_in(app.text("header")) == 20
        await app.press("f")
        assert step_in(app.text("header")) == 70
        assert " f pause " in app.text("keys")
        assert "70 live" in app.text("ribbon")
        other = make_run("other", range(1, 31), loss=7.0)
        await app.enter(":50")
        other.replace(log)  # and with it the past
        await app.until(lambda: step_in(app.text("header")) == 30, "the new log")
        assert app.session.time.following
        assert "PAUSED" not in app.text("ribbon")
        assert "7.00" in app.text("header")


async def test_other_screens_show_the_step_too_and_o_goes_to_the_onset(collapsed: Path) -> None:
    async with open_app(collapsed, "a", "enter", size=(120, 40)) as app:
        assert "collapse in L4" in app.text("evidence")
        await app.enter(":100")
        assert isinstance(app.screen, LayerScreen)
        assert "no alerts in this layer" in app.text("evidence")
        assert "PAUSED, now 450" in app.text("layer-title")
        await app.press("escape")
        assert step_in(app.text("header")) == 100
        await app.press("home", "o")
        assert "no active alert at this step" in app.text("keys")
        await app.press("f", "o")
        onset = app.session.time.shown_step
        assert app.session.selected == 3
        assert f"since step {onset}" in app.text("verdict")
        assert f"onset {onset}" in app.text("notes")
        assert "PAUSED" in app.text("ribbon")


async def test_a_compressed_log_reports_that_it_cannot_be_rewound(make_run: Make) -> None:
    log = compressed(make_run(steps=range(1, 101)))
    why = "compressed logs cannot be rewound: decompress it first"
    async with open_app(log) as app:
        for keys in ("[", "P", ":5"):
            await app.press(*keys)
            assert why in app.text("keys")
            await app.press("enter" if ":" in keys else "down")
        assert why in app.text("keys")
        assert step_in(app.text("header")) == 100
        assert isinstance(app.screen, MainScreen)
        await app.press("down")  # the next key brings the keys back
        assert "help" in app.text("keys")


async def test_a_playback_runs_from_the_start_to_the_live_run_and_stops(collapsed: Path) -> None:
    async with open_app(collapsed, "P", size=(60, 20)) as app:
        time = app.session.time
        assert "playing 1 column a second   f stop   P 4 a second" in app.text("keys")
        assert time.shown_step < 30  # from the first step, a column or so later
        await app.press("P", "P")
        assert time.speed == 16
        assert "playing 16 columns a second   f stop" in app.text("keys")
        assert "PLAYING 16x" in app.text("ribbon")
        await app.until(lambda: 1 < time.shown_step < 450, "it moves")
        await app.press("P")
        assert time.speed == 0
        assert "PAUSED" in app.text("ribbon")
        await app.press("P", " ")
        assert time.speed == 0
        assert "PAUSED" in app.text("ribbon")
        assert "f live" in app.text("keys")
        time.go_to(400)
        await app.press("P", "P", "P")
        await app.until(lambda: time.following, "the end of the playback")
        assert time.speed == 0


async def test_a_window_zooms_and_its_axis_counts_steps_run_time_or_clock(collapsed: Path) -> None:
    async with open_app(collapsed, "+", "+", size=(120, 40)) as app:
        assert app.session.time.window == (339, 450)
        assert "339" in app.text("ribbon")
        await app.press("-")
        assert app.session.time.window == (227, 450)
        await app.press("0")
        assert app.session.time.window is None
        shown = []
        for _ in range(3):
            await app.press("x")
            shown.append(app.text("ribbon").split()[-2])
        assert shown[0].endswith("s")
        assert shown[1].count(":") == 2
        assert shown[2] == "450"


def a_run_of(newest: int) -> Any:
    return SimpleNamespace(generation=0, last_step=newest)


@given(
    newest=st.integers(1, 10**6),
    place=st.floats(0, 1),
    zooms=st.lists(st.sampled_from([0.5, 2.0, 0.25]), max_size=12),
)
def test_the_shown_step_is_in_any_zoomed_window(newest: int, place: float, zooms: Any) -> None:
    run = a_run_of(newest)
    cursor = TimeCursor(lambda: run)
    shown = max(1, round(place * newest))
    cursor._pin = SimpleNamespace(step=shown, generation=0)  # type: ignore[assignment]
    for by in zooms:
        cursor.zoom(by)
        window = cursor.window
        if window is not None:
            assert 1 <= window.first <= shown <= window.last <= newest
            assert window.last - window.first + 1 < newest


def test_a_window_slides_along_with_the_live_run_and_around_a_pinned_step() -> None:
    run = a_run_of(1000)
    cursor = TimeCursor(lambda: run)
    cursor.zoom(0.1)
    assert cursor.window == (901, 1000)
    run.last_step = 1040
    assert cursor.window == (941, 1040)
    cursor.zoom(1e15)
    assert cursor.window is None
    cursor._pin = SimpleNamespace(step=100, generation=0)  # type: ignore[assignment]
    cursor.zoom(0.5)
    assert cursor.window == (51, 570)  # the shown step keeps its place
