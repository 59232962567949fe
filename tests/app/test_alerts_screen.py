"""The alerts of a run: choosing one, going to where it began, marking it as seen, filtering."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.app import AlertsScreen, MainScreen, Microscope
from microscope_tui.lines import Glyphs
from microscope_tui.watch import Fleet
from tests.app.sitting import Seen, Until, opened

SICK = [2048, 2048, 0, 0, 0, 0, 0, 0]


@pytest.fixture
def troubled(write_log: Any, make_header: Any, make_step: Any, balanced: Any) -> Path:
    """400 steps: L2 collapses at 100 and recovers, L3 collapses at 300 and stays so."""
    records = [make_header(planned_steps=400)]
    for n in range(1, 401):
        second, third = 100 <= n < 180, n >= 300
        rows = [balanced(), SICK if second else balanced(), SICK if third else balanced()]
        records.append(make_step(n, rows, 2048))
    return write_log(records, name="troubled")  # type: ignore[no-any-return]


def chosen_in(text: str) -> str:
    (line,) = [line for line in text.split("\n") if line.startswith(" ▶ ")]
    return line


async def test_the_list_shows_what_is_active_first_and_unfolds_the_chosen_alert(
    troubled: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(troubled)).run_test(size=(80, 24)) as pilot:
        await opened(pilot, until, AlertsScreen, "3")
        assert "1 active   1 recovered" in seen(pilot, "#alerts-title")
        heads, first, second, *_ = seen(pilot, "#alert-list").split("\n")
        assert heads.split() == ["severity", "rule", "layers", "onset", "end", "value"]
        assert "C crit   COLLAPSE  L3" in first
        assert "active" in first
        assert "L2" in second
        assert "collapse in L3 since step 300" in seen(pilot, "#alert-detail")
        assert "C━━" in seen(pilot, "#track")


async def test_the_unfolded_alert_stands_beside_the_list_where_there_is_room(
    troubled: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(troubled)).run_test(size=(120, 40)) as pilot:
        app = await opened(pilot, until, AlertsScreen, "3")
        list_, detail = app.screen.query_one("#alert-list"), app.screen.query_one("#alert-detail")
        assert detail.region.x == list_.region.right
        assert detail.region.y == list_.region.y
        assert detail.region.right <= 120
        await pilot.resize_terminal(90, 30)
        await pilot.pause()
        assert detail.region.y == list_.region.bottom
        assert "evidence" in seen(pilot, "#alert-detail")


async def test_arrows_home_and_end_choose_an_alert_and_stop_at_the_ends(
    troubled: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(troubled)).run_test(size=(80, 24)) as pilot:
        await opened(pilot, until, AlertsScreen, "3")
        for key, layer in (
            *(("down", "L2"), ("j", "L2"), ("up", "L3"), ("k", "L3")),
            *(("end", "L2"), ("home", "L3"), ("G", "L2"), ("g", "L3")),
        ):
            await pilot.press(key)
            assert layer in chosen_in(seen(pilot, "#alert-list"))
            assert f"in {layer} " in seen(pilot, "#alert-detail")


async def test_enter_goes_to_the_onset_in_the_worst_layer_on_the_main_screen(
    troubled: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(troubled)).run_test(size=(80, 24)) as pilot:
        app = await opened(pilot, until, AlertsScreen, "3")
        await pilot.press("down", "enter")
        await until(pilot, lambda: isinstance(app.screen, MainScreen), "the main screen")
        assert app.session.time.shown_step == 100
        assert app.session.selected == 1
        await until(pilot, lambda: "PAUSED" in seen(pilot, "#ribbon"), "the past")


async def test_a_log_without_a_past_says_so_instead_of_going_to_the_onset(
    troubled: Path, until: Until, seen: Seen
) -> None:
    packed = troubled.with_suffix(".jsonl.gz")
    packed.write_bytes(gzip.compress(troubled.read_bytes()))
    async with Microscope(Fleet(packed)).run_test(size=(80, 24)) as pilot:
        app = await opened(pilot, until, AlertsScreen, "3")
        await pilot.press("enter")
        await until(pilot, lambda: "decompress it" in seen(pilot, "#keys"), "the reason")
        assert isinstance(app.screen, AlertsScreen)
        assert app.session.selected == 0


async def test_a_mark_as_seen_is_kept_and_taken_away_again(
    troubled: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(troubled)).run_test(size=(80, 24)) as pilot:
        app = await opened(pilot, until, AlertsScreen, "3")
        await pilot.press("A")
        assert chosen_in(seen(pilot, "#alert-list")).rstrip().endswith("seen")
        assert "COLLAPSE: seen" in seen(pilot, "#keys")
        assert len(app.session.seen) == 1
        await pilot.press("escape")
        await until(pilot, lambda: "seen" in seen(pilot, "#verdict"), "the mark on the main screen")
        await pilot.press("3", "A")
        assert not chosen_in(seen(pilot, "#alert-list")).rstrip().endswith("seen")
        assert not app.session.seen


async def test_the_filter_of_the_list_leaves_that_of_the_layers_alone(
    troubled: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(troubled)).run_test(size=(80, 24)) as pilot:
        app = await opened(pilot, until, AlertsScreen, "3")
        await pilot.press("n")
        assert "no filter" in seen(pilot, "#keys")
        await pilot.press("slash", *"l2", "enter")
        assert "/l2" in seen(pilot, "#alerts-title")
        assert "L2" in chosen_in(seen(pilot, "#alert-list"))
        assert " L3 " not in seen(pilot, "#alert-list")
        assert app.session.filter.text == ""
        await pilot.press("slash", *["backspace"] * 2, *"coll", "enter", "N")
        assert "L3" in chosen_in(seen(pilot, "#alert-list"))
        await pilot.press("n")
        assert "L2" in chosen_in(seen(pilot, "#alert-list"))
        await pilot.press("slash", *"x")
        assert "no alert matches" in seen(pilot, "#alert-list")
        await pilot.press("A")  # typed, not obeyed
        assert not app.session.seen
        await pilot.press("escape", "down")
        assert "1 active   1 recovered" in seen(pilot, "#alerts-title")


async def test_alerts_that_begin_behind_the_shown_step_are_later(
    troubled: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(troubled)).run_test(size=(80, 24)) as pilot:
        app = await opened(pilot, until, AlertsScreen, "colon", *"150", "enter", "3")
        await until(pilot, lambda: "1 later" in seen(pilot, "#alerts-title"), "the later one")
        _, first, second, *_ = seen(pilot, "#alert-list").split("\n")
        assert "L2" in first
        assert "active" in first
        assert "later" in second
        await pilot.press("end", "enter")
        await until(pilot, lambda: app.session.time.shown_step == 300, "its onset")


async def test_the_alert_of_the_chosen_layer_is_chosen_at_first(
    troubled: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(troubled)).run_test(size=(80, 24)) as pilot:
        await opened(pilot, until, AlertsScreen, "down", "3")
        assert "L2" in chosen_in(seen(pilot, "#alert-list"))


async def test_what_is_copied_is_the_chosen_alert(
    troubled: Path, until: Until, seen: Seen, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    async with Microscope(Fleet(troubled)).run_test(size=(80, 24)) as pilot:
        app = await opened(pilot, until, AlertsScreen, "3")
        await pilot.press("down", "Y", "v")
        assert app.clipboard.startswith("troubled step 400: crit COLLAPSE, recovered")
        assert "copied: COLLAPSE" in seen(pilot, "#keys")
        await pilot.press("w")
        await until(pilot, lambda: list(tmp_path.glob("*-alerts.csv")), "the table")


@pytest.mark.parametrize("glyphs", [Glyphs.BRAILLE, Glyphs.ASCII])
async def test_without_an_alert_every_key_is_harmless_and_healthy_is_explained(
    scenario: Callable[..., Path], until: Until, seen: Seen, glyphs: Glyphs
) -> None:
    log = scenario("healthy", routers=3, steps=160)
    async with Microscope(Fleet(log), glyphs).run_test(size=(80, 24)) as pilot:
        app = await opened(pilot, until, AlertsScreen, "3")
        assert "c stays above 0.35" in seen(pilot, "#alert-list")
        assert "up to step 160" in seen(pilot, "#alert-list")
        assert "none" in seen(pilot, "#alerts-title")
        await pilot.press("up", "down", "home", "end", "enter", "A", "n", "N")
        assert isinstance(app.screen, AlertsScreen)
        if glyphs is Glyphs.ASCII:
            assert "".join(seen(pilot, f"#{w}") for w in ("alert-list", "track", "keys")).isascii()
        await pilot.press("escape")
        assert isinstance(app.screen, MainScreen)


async def test_a_new_alert_comes_into_the_list_and_the_chosen_one_stays_chosen(
    troubled: Path, until: Until, seen: Seen, make_step: Any, balanced: Any
) -> None:
    async with Microscope(Fleet(troubled)).run_test(size=(80, 24)) as pilot:
        await opened(pilot, until, AlertsScreen, "3")
        await pilot.press("end")
        with troubled.open("a") as file:
            for n in range(401, 501):
                file.write(json.dumps(make_step(n, [SICK, balanced(), SICK], 2048)) + "\n")
        await until(pilot, lambda: "2 active" in seen(pilot, "#alerts-title"), "the new alert")
        assert "L2" in chosen_in(seen(pilot, "#alert-list"))


async def test_names_that_are_hostile_and_sizes_that_storm_are_survived(
    write_log: Any, make_header: Any, make_step: Any, balanced: Any, until: Until, seen: Seen
) -> None:
    names = ["\x1b[31m[bold]L1", "w[gate]\u202e/" + "x" * 60, "層" * 30]
    records = [make_header(run="\x1b]52;c;x\x07", model={"layer_names": names})]
    for n in range(1, 200):
        records.append(make_step(n, [SICK if n > 100 else balanced()] * 3, 2048))
    path = write_log(records, name="a\x1b[2Jb")
    async with Microscope(Fleet(path)).run_test(size=(80, 24)) as pilot:
        app = await opened(pilot, until, AlertsScreen, "3")
        for size in [(40, 10), (10, 3), (1, 1), (300, 100), (60, 20), (99, 24), (100, 24)]:
            await pilot.resize_terminal(*size)
            await pilot.press("down", "up")
        await pilot.pause()
        text = "".join(seen(pilot, f"#{w}") for w in ("header", "alert-list", "alert-detail"))
        assert "collapse" in text
        assert not set("\x1b\u202e\x07") & set(text)
        assert app.is_running


@pytest.mark.parametrize("fate", ["deleted", "replaced"])
async def test_a_run_that_is_deleted_or_replaced_meanwhile_does_not_end_the_screen(
    troubled: Path,
    until: Until,
    seen: Seen,
    make_header: Any,
    make_step: Any,
    balanced: Any,
    fate: str,
) -> None:
    async with Microscope(Fleet(troubled.parent.parent)).run_test(size=(80, 24)) as pilot:
        app = await opened(pilot, until, AlertsScreen, "3")
        await pilot.press("down")
        if fate == "deleted":
            troubled.unlink()
            await until(pilot, lambda: "deleted" in seen(pilot, "#header"), "that it is gone")
            await pilot.press("enter")
            await until(pilot, lambda: "cannot be read" in seen(pilot, "#keys"), "the reason")
        else:
            new = troubled.with_name("new")
            records = [make_header(), *(make_step(n, [balanced()] * 3, 2048) for n in range(1, 9))]
            new.write_text("".join(json.dumps(record) + "\n" for record in records))
            os.replace(new, troubled)
            await until(pilot, lambda: "none" in seen(pilot, "#alerts-title"), "the new run")
            await pilot.press("enter", "A")
        assert isinstance(app.screen, AlertsScreen)
