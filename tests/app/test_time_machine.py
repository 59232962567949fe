"""The window, the film and the units of the time axis."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microscope_tui.app import Microscope, TimeCursor
from microscope_tui.watch import Fleet
from tests.app.sitting import Seen, Until, read_until


class Standing:
    """As much of a followed run as the cursor asks for."""

    def __init__(self, newest: int) -> None:
        self.generation = 0
        self.latest = self._at(newest)

    def _at(self, step: int) -> Any:
        from types import SimpleNamespace

        return SimpleNamespace(record=SimpleNamespace(step=step))


@given(
    newest=st.integers(1, 10**6),
    place=st.floats(0, 1),
    zooms=st.lists(st.sampled_from([0.5, 2.0, 0.25]), max_size=12),
)
def test_the_shown_step_is_in_the_window_however_it_is_zoomed(
    newest: int, place: float, zooms: list[float]
) -> None:
    from types import SimpleNamespace

    standing: Any = Standing(newest)
    cursor = TimeCursor(lambda: standing)
    shown = max(1, round(place * newest))
    cursor._pin = SimpleNamespace(step=shown, generation=0)  # type: ignore[assignment]
    for by in zooms:
        cursor.zoom(by)
        window = cursor.window
        if window is not None:
            assert 1 <= window.first <= shown <= window.last <= newest
            assert window.last - window.first + 1 < newest


def test_a_window_slides_along_with_the_live_run() -> None:
    standing: Any = Standing(1000)
    cursor = TimeCursor(lambda: standing)
    cursor.zoom(0.1)
    assert cursor.window == (901, 1000)
    standing.latest.record.step = 1040
    assert cursor.window == (941, 1040)
    cursor.zoom(1e15)
    assert cursor.window is None


async def test_zoom_keys_and_the_whole_run_again(collapsed: Path, until: Until, seen: Seen) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(120, 40)) as pilot:
        app = await read_until(pilot, until, seen, "#ribbon", "450 finished")
        await pilot.press("plus", "plus")
        assert app.session.time.window == (339, 450)
        assert "339" in seen(pilot, "#ribbon")
        await pilot.press("minus")
        window = app.session.time.window
        assert window is not None
        assert window.last - window.first + 1 == 224
        await pilot.press("0")
        assert app.session.time.window is None


async def test_a_film_runs_from_the_start_to_the_live_run_and_stops(
    collapsed: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(60, 20)) as pilot:
        app = await read_until(pilot, until, seen, "#ribbon", "450 finished")
        await pilot.press("P")
        assert "playing 1 column a second   f stop   P 4 a second" in seen(pilot, "#keys")
        await pilot.press("P", "P")
        assert app.session.time.speed == 16
        assert "playing 16 columns a second   f stop" in seen(pilot, "#keys")
        assert app.session.time.shown_step < 450
        await until(pilot, lambda: "PLAYING 16x" in seen(pilot, "#ribbon"), "playing")
        first = app.session.time.shown_step
        await until(pilot, lambda: app.session.time.shown_step > first, "it moves")
        await pilot.press("P")
        assert app.session.time.speed == 0
        assert "PAUSED" in seen(pilot, "#ribbon")
        await pilot.press("P")
        await pilot.press("space")
        assert app.session.time.speed == 0
        assert "PAUSED" in seen(pilot, "#ribbon")
        assert "f live" in seen(pilot, "#keys")
        await pilot.press("P", "P", "P")
        await until(pilot, lambda: app.session.time.following, "the end of the playback")
        assert app.session.time.speed == 0


async def test_the_axis_counts_steps_run_time_or_the_clock(
    collapsed: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(120, 40)) as pilot:
        await read_until(pilot, until, seen, "#ribbon", "450 finished")
        shown = []
        for _ in range(3):
            await pilot.press("x")
            shown.append(seen(pilot, "#ribbon").split()[-3:])
        assert shown[0][-2].endswith("s")
        assert shown[1][-2].count(":") == 2
        assert shown[2][-2] == "450"


async def test_o_goes_to_where_the_trouble_began(collapsed: Path, until: Until, seen: Seen) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(120, 40)) as pilot:
        app = await read_until(pilot, until, seen, "#ribbon", "450 finished")
        await until(pilot, lambda: "CRITICAL" in seen(pilot, "#verdict"), "judged")
        await pilot.press("o")
        await until(pilot, lambda: "PAUSED" in seen(pilot, "#ribbon"), "there")
        assert app.session.selected == 3
        assert f"since step {app.session.time.shown_step}" in seen(pilot, "#verdict")
        assert f"onset {app.session.time.shown_step}" in seen(pilot, "#notes")


@pytest.mark.parametrize(
    ("typed", "step"), [("50%", 225), ("-100", 350), ("1", 1), ("end", 450), ("-0min", 450)]
)
async def test_places_are_typed_as_people_think_of_them(
    collapsed: Path, until: Until, seen: Seen, typed: str, step: int
) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(120, 40)) as pilot:
        app = await read_until(pilot, until, seen, "#ribbon", "450 finished")
        await pilot.press(
            "colon",
            *[{"%": "percent_sign", "-": "minus", ".": "full_stop"}.get(c, c) for c in typed],
            "enter",
        )
        await until(pilot, lambda: app.session.time.shown_step == step, typed)
        assert app.session.time.following == (step == 450)


async def test_an_invalid_place_is_refused_with_a_reason(
    collapsed: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(120, 40)) as pilot:
        app = await read_until(pilot, until, seen, "#ribbon", "450 finished")
        await pilot.press("colon", *"abc", "enter")
        await until(pilot, lambda: "is not a place" in seen(pilot, "#keys"), "said")
        assert app.session.time.following
