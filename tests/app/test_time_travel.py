"""Going to a step of the past, moving from step to step, and coming back to the live run."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual import events

from microscope_tui.app import LayerScreen, MainScreen, Microscope
from microscope_tui.watch import Fleet
from tests.app.sitting import Seen, Until, read

Log = Callable[..., Path]


@pytest.fixture
def make_log(write_log: Any, make_header: Any, make_step: Any, balanced: Any) -> Log:
    """A log with a record at each of the given steps."""

    def make(steps: Any, name: str = "run", **changes: Any) -> Path:
        records = [make_step(n, [balanced()] * 3, 2048, **changes) for n in steps]
        return write_log([make_header(planned_steps=None), *records], name=name)  # type: ignore[no-any-return]

    return make


def step_in(header: str) -> int:
    found = re.search(r"step ([\d,]+)", header)
    return int(found[1].replace(",", "")) if found else 0


async def test_digits_typed_in_one_burst_behind_the_colon_all_arrive(
    make_log: Log, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(make_log(range(1, 401)))).run_test(size=(100, 30)) as pilot:
        app = await read(pilot, until)
        for key in ("colon", "2", "7", "3", "enter"):  # posted at once: nobody waits in between
            app.post_message(events.Key(key, ":" if key == "colon" else key[0]))
        await until(pilot, lambda: step_in(seen(pilot, "#header")) == 273, "step 273")
        assert "273 PAUSED, now 400" in seen(pilot, "#ribbon")
        assert " f live " in seen(pilot, "#keys")
        assert isinstance(app.screen, MainScreen)  # enter opened no layer


async def test_the_prompt_can_be_corrected_and_left_without_going_anywhere(
    make_log: Log, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(make_log(range(1, 101)))).run_test(size=(80, 24)) as pilot:
        app = await read(pilot, until)
        await pilot.press("colon", "9", "9", "backspace")
        assert "go to step 9▏" in seen(pilot, "#keys")
        assert "1 to 100" in seen(pilot, "#keys")
        await pilot.press("escape")
        assert app.session.time.following
        assert "⏎ open" in seen(pilot, "#keys")
        await pilot.press("colon", "q", "down", "left", "delete")  # all but q do nothing
        assert "go to step q▏" in seen(pilot, "#keys")
        await pilot.press("ctrl+u", "7")
        assert "go to step 7▏" in seen(pilot, "#keys")
        await pilot.press("escape")
        assert app.is_running
        await pilot.press("colon", "enter")
        assert app.session.time.following
        await pilot.press("colon")
        app.post_message(events.Paste(" 42\n"))
        await until(pilot, lambda: "go to step 42▏" in seen(pilot, "#keys"), "what was pasted")
        await pilot.press("enter")
        await until(pilot, lambda: step_in(seen(pilot, "#header")) == 42, "step 42")


@pytest.mark.parametrize(
    ("typed", "shown"), [("0", 1), ("1", 1), ("50", 50), ("100", 100), ("999999999999999", 100)]
)
async def test_any_number_leads_to_the_nearest_step_there_is(
    make_log: Log, until: Until, seen: Seen, typed: str, shown: int
) -> None:
    async with Microscope(Fleet(make_log(range(1, 101)))).run_test(size=(80, 24)) as pilot:
        app = await read(pilot, until)
        await pilot.press("colon", *typed, "enter")
        await until(pilot, lambda: step_in(seen(pilot, "#header")) == shown, str(shown))
        assert app.session.time.following == (shown == 100)
        beyond = "is not in the log: showing the newest, 100"
        if int(typed) > 100:
            await until(pilot, lambda: beyond in seen(pilot, "#keys"), "why")
        else:
            assert beyond not in seen(pilot, "#keys")


@pytest.mark.parametrize(
    "logged", [range(1, 41), range(10, 401, 10), [*range(1, 7), 30, 31, 32, *range(90, 96), 200]]
)
async def test_brackets_move_by_logged_steps_however_rarely_they_are_logged(
    make_log: Log, until: Until, logged: Any
) -> None:
    steps = list(logged)
    async with Microscope(Fleet(make_log(steps))).run_test(size=(80, 24)) as pilot:
        app = await read(pilot, until)
        shown = []
        for key in ["left_square_bracket"] * 15 + ["right_square_bracket"] * 14:
            await pilot.press(key)
            shown.append(app.session.time.pin.step if app.session.time.pin else 0)
        back = steps[-2:-17:-1]
        assert shown == [*back, *back[-2::-1]]
        await pilot.press("right_square_bracket")
        assert app.session.time.following  # the newest step is the live run again


async def test_braces_move_by_ten_steps_and_stop_at_the_first(
    make_log: Log, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(make_log(range(1, 36)))).run_test(size=(80, 24)) as pilot:
        app = await read(pilot, until)
        shown = []
        for key in ["left_curly_bracket"] * 5 + ["right_curly_bracket"] * 4:
            await pilot.press(key)
            shown.append(app.session.time.pin.step if app.session.time.pin else "live")
        assert shown == [25, 15, 5, 1, 1, 11, 21, 31, "live"]


async def test_f_returns_to_the_live_run_which_went_on(
    make_log: Log, make_step: Any, balanced: Any, until: Until, seen: Seen
) -> None:
    log = make_log(range(1, 51))
    async with Microscope(Fleet(log)).run_test(size=(100, 30)) as pilot:
        await read(pilot, until)
        await pilot.press("colon", "2", "0", "enter")
        with log.open("ab") as file:
            for n in range(51, 61):
                file.write(json.dumps(make_step(n, [balanced()] * 3, 2048)).encode() + b"\n")
        await until(pilot, lambda: "20 PAUSED, now 60" in seen(pilot, "#ribbon"), "that it went on")
        assert step_in(seen(pilot, "#header")) == 20
        await pilot.press("f")
        assert step_in(seen(pilot, "#header")) == 60
        assert " f pause " in seen(pilot, "#keys")
        assert "60 live" in seen(pilot, "#ribbon")


async def test_the_layer_screen_travels_too(collapsed: Path, until: Until, seen: Seen) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(120, 40)) as pilot:
        app = await read(pilot, until)
        await pilot.press("a", "enter")
        await until(pilot, lambda: "collapse in L4" in seen(pilot, "#evidence"), "the verdict")
        await pilot.press("colon", "1", "0", "0", "enter")
        await until(pilot, lambda: "no alerts in this layer" in seen(pilot, "#evidence"), "health")
        assert isinstance(app.screen, LayerScreen)
        assert "PAUSED, now 450" in seen(pilot, "#layer-title")
        await pilot.press("escape")
        assert step_in(seen(pilot, "#header")) == 100


@pytest.mark.parametrize("key", ["left_square_bracket", "colon"])
async def test_a_packed_log_says_that_it_cannot_and_what_to_do(
    make_log: Log, until: Until, seen: Seen, key: str
) -> None:
    log = make_log(range(1, 101))
    packed = log.with_name("metrics.jsonl.gz")
    packed.write_bytes(gzip.compress(log.read_bytes()))
    async with Microscope(Fleet(packed)).run_test(size=(100, 30)) as pilot:
        app = await read(pilot, until)
        await pilot.press(key)
        assert "compressed logs cannot be rewound: decompress it first" in seen(pilot, "#keys")
        if key == "colon":
            assert "go to step" in seen(pilot, "#keys")
            await pilot.press("5", "enter")
            await until(pilot, lambda: "go to step" not in seen(pilot, "#keys"), "the answer")
            assert "decompress it" in seen(pilot, "#keys")
        assert step_in(seen(pilot, "#header")) == 100
        assert isinstance(app.screen, MainScreen)
        await pilot.press("down")  # the next key brings the keys back
        assert "help" in seen(pilot, "#keys")


async def test_a_replaced_log_has_no_past_and_is_followed(
    make_log: Log, until: Until, seen: Seen
) -> None:
    log = make_log(range(1, 101))
    async with Microscope(Fleet(log)).run_test(size=(100, 30)) as pilot:
        app = await read(pilot, until)
        await pilot.press("colon", "5", "0", "enter")
        assert not app.session.time.following
        other = make_log(range(1, 31), name="other", loss=7.0)
        other.replace(log)
        await until(pilot, lambda: step_in(seen(pilot, "#header")) == 30, "the new log")
        assert app.session.time.following
        assert "PAUSED" not in seen(pilot, "#ribbon")
        assert "7.00" in seen(pilot, "#header")


async def test_not_a_number_is_shown_as_such_in_the_past_too(
    make_log: Log, until: Until, seen: Seen
) -> None:
    nan = {"entropy": ["NaN"] * 3, "mean_entropy": ["NaN"] * 3}
    log = make_log(range(1, 101), loss="NaN", router=nan)
    async with Microscope(Fleet(log)).run_test(size=(100, 30)) as pilot:
        await read(pilot, until)
        await pilot.press("colon", "5", "0", "enter")
        assert step_in(seen(pilot, "#header")) == 50
        assert "loss NaN" in seen(pilot, "#header")
        assert seen(pilot, "#entropy").count("NaN") == 3
