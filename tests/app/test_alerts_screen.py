"""The alerts of a run: choosing one, going to where it began, marking it as seen, filtering."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.diagnosis import key_of
from microscope_tui.screens.alerts.screen import AlertsScreen
from microscope_tui.screens.main.screen import MainScreen
from tests.app.pilot import AppPilot, open_app

SMALL = (80, 24)


@pytest.fixture
def troubled(make_run: Callable[..., Path]) -> Path:
    """400 steps: L2 collapses at 100 and recovers, L3 collapses at 300 and stays so."""
    return make_run("troubled", range(1, 401), sick={1: range(100, 180), 2: range(300, 999)})


def chosen_in(app: AppPilot) -> str:
    lines = app.text("alert-list").split("\n")
    (line,) = [line for line in lines if line.startswith(" ▶ ")]
    return line


async def test_the_list_shows_active_alerts_first_and_details_of_the_chosen(troubled: Path) -> None:
    async with open_app(troubled, "3", size=SMALL) as app:
        assert "1 active   1 recovered" in app.text("alerts-title")
        assert "L3" in chosen_in(app)  # the active one is the first
        for key, layer in (
            *(("down", "L2"), ("j", "L2"), ("up", "L3"), ("k", "L3")),
            *(("end", "L2"), ("home", "L3"), ("G", "L2"), ("g", "L3")),
        ):
            await app.press(key)
            assert layer in chosen_in(app)
            assert f"collapse in {layer} " in app.text("alert-detail")
        await app.resize(120, 40)  # the details are beside the list where there is room
        list_, detail = (app.screen.query_one(f"#alert-{part}") for part in ("list", "detail"))
        assert detail.region.x == list_.region.right
        assert detail.region.y == list_.region.y
        assert detail.region.right <= 120
        await app.resize(90, 30)
        assert detail.region.y == list_.region.bottom
        assert "evidence" in app.text("alert-detail")


async def test_enter_shows_the_onset_in_the_worst_layer_on_the_main_screen(troubled: Path) -> None:
    async with open_app(troubled, "3", "down", "enter", size=SMALL) as app:
        await app.opens(MainScreen)
        assert app.session.time.shown_step == 100
        assert app.session.selected == 1
        assert "PAUSED" in app.text("ribbon")
        await app.enter(":150")
        await app.press("3")
        assert "1 later" in app.text("alerts-title")  # it begins after the shown step
        _, first, second, *_ = app.text("alert-list").split("\n")
        assert "L2" in first
        assert "active" in first
        assert "later" in second
        await app.press("end", "enter")
        assert app.session.time.shown_step == 300


async def test_a_mark_as_seen_is_kept_and_removed_again(troubled: Path) -> None:
    async with open_app(troubled, "3", "A", size=SMALL) as app:
        assert chosen_in(app).rstrip().endswith("seen")
        assert "COLLAPSE: seen" in app.text("keys")
        assert len(app.session.seen) == 1
        await app.press("escape")
        assert "seen" in app.text("verdict")
        await app.press("3", "A")
        assert not chosen_in(app).rstrip().endswith("seen")
        assert not app.session.seen


async def test_above_the_layers_only_the_alerts_of_the_chosen_one_are_marked(
    scenario: Callable[..., Path],
) -> None:
    log = scenario("cause-too-fast", routers=3, steps=400)
    async with open_app(log, size=SMALL) as app:
        view = app.session.view(1, 1)
        assert view is not None
        of_layer: dict[int, set[str]] = {index: set() for index in range(len(view.layers))}
        for finding, _ in view.alerts:
            for episode in finding.episodes:
                of_layer[episode.router_index].add(key_of(view.name, finding))
        chosen = next(index for index, keys in of_layer.items() if keys)
        others = set().union(*(keys for index, keys in of_layer.items() if index != chosen))
        assert others - of_layer[chosen]
        app.session.selected = chosen
        await app.press("A")
        assert set(app.session.seen) == of_layer[chosen]


async def test_the_filter_of_the_list_leaves_that_of_the_layers_alone(troubled: Path) -> None:
    async with open_app(troubled, "g", "down", "3", size=SMALL) as app:
        assert "L2" in chosen_in(app)  # the alert of the chosen layer
        await app.enter("/l2")
        assert "/l2" in app.text("alerts-title")
        assert "L2" in chosen_in(app)
        assert " L3 " not in app.text("alert-list")
        assert app.session.filter == ""
        await app.press("/", *["backspace"] * 2, *"coll", "enter", "k")
        assert "L3" in chosen_in(app)
        await app.press("j")
        assert "L2" in chosen_in(app)
        await app.press("/", "x")
        assert "no alert matches" in app.text("alert-list")
        await app.press("A")  # typed, not obeyed
        assert not app.session.seen
        await app.press("escape", "down")
        assert "1 active   1 recovered" in app.text("alerts-title")


async def test_the_chosen_alert_is_copied_and_the_loads_are_written(
    troubled: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    async with open_app(troubled, "3", "down", "Y", size=SMALL) as app:
        assert app.app.clipboard.startswith("troubled step 400 (")
        assert "critical COLLAPSE, recovered\nVerdict: Bias update too slow: " in app.app.clipboard
        assert "copied: troubled step 400 (" in app.text("keys")
        await app.press("w")
        await app.until(lambda: list(tmp_path.glob("*-alerts.csv")), "the table")


async def test_without_an_alert_keys_are_harmless_and_healthy_is_explained(scenario: Any) -> None:
    async with open_app(scenario("healthy", routers=3, steps=160), "3", size=SMALL) as app:
        assert "c stays above 0.35" in app.text("alert-list")
        assert "up to step 160" in app.text("alert-list")
        assert "none" in app.text("alerts-title")
        await app.press("up", "down", "home", "end", "enter", "A")
        assert isinstance(app.screen, AlertsScreen)


@pytest.mark.usefixtures("quick_reader")
async def test_the_list_follows_a_run_that_grows_is_replaced_and_is_deleted(
    troubled: Path, make_run: Callable[..., Path], append: Callable[..., None]
) -> None:
    async with open_app(troubled, "3", "end", size=SMALL) as app:
        append(troubled, range(401, 501), sick={0: range(999), 2: range(999)})
        await app.sees("1 active", "alerts-title")
        assert "L2" in chosen_in(app)
        before = troubled.with_name("before")
        before.write_bytes(troubled.read_bytes())
        make_run("new").replace(troubled)
        await app.sees("none", "alerts-title")
        await app.press("enter", "A")
        assert isinstance(app.screen, AlertsScreen)
        before.replace(troubled)
        await app.sees("1 active", "alerts-title")
        troubled.unlink()
        await app.sees("deleted", "header")
        await app.press("enter")
        assert "cannot be read" in app.text("keys")
        assert isinstance(app.screen, AlertsScreen)
