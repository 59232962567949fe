"""The screens of charts: one layer, the course of the run, one expert."""

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.screens.expert import screen as expert_screen
from microscope_tui.screens.expert.screen import ExpertScreen
from microscope_tui.screens.layer.screen import LayerScreen
from tests.app.pilot import AppPilot, compressed, open_app
from tests.conftest import header, step

COURSE = ["loss", "balance", "max-load", "grad_norm", "learning_rate"]


async def test_tab_moves_the_focus_z_enlarges_it_and_e_smooths(collapsed: Path) -> None:
    async with open_app(collapsed, "a", "enter", size=(140, 40)) as app:
        names = app.charts()
        assert names == ["load", "bias", "balance", "entropy", "max-load"]
        focused = []
        for key in ["tab"] * 5 + ["shift+tab"]:
            await app.press(key)
            focused += [n for n in names if app.text(f"chart-{n}").startswith("▶")]
        assert focused == ["bias", "balance", "entropy", "max-load", "load", "max-load"]
        await app.press("shift+tab", "shift+tab", "z")
        assert app.charts() == ["balance"]
        assert app.screen.query_one("#chart-balance").size.width > 130
        await app.press("tab")
        assert app.charts() == ["entropy"]
        await app.press("z")
        assert app.charts() == names
        weights = []
        for _ in range(3):
            await app.press("e")
            weights.append(app.session.smoothing)
            title = app.text("chart-balance").split("\n")[0]
            assert (f"smoothing {weights[-1]:g}" in title) == bool(weights[-1])
        assert weights == [0.6, 0.9, 0.0]
        await app.resize(60, 16)
        assert "more lines" in app.text("evidence").split("\n")[1]
        assert "not shown: bias, balance, max load" in app.text("hidden")


async def test_left_and_right_choose_an_expert_and_enter_opens_its_card(collapsed: Path) -> None:
    async with open_app(collapsed, "a", "enter", "enter") as app:
        load = app.view().layers[3].load or ()
        assert app.session.expert == list(load).index(max(load))  # the busiest that COLLAPSE names
        await app.press("escape", *["left"] * 8)
        chosen = []
        for key in ("right", "l", "left", "h", "left"):
            await app.press(key)
            chosen.append(app.session.expert)
        assert chosen == [1, 2, 1, 0, 0]
        assert "expert 0 at 450" in app.text("chart-load")
        await app.press(*["right"] * 8)
        assert app.session.expert == 7
        await app.press("enter")
        assert isinstance(app.screen, ExpertScreen)
        assert "expert 7" in app.text("layer-title")
        await app.press("escape")
        assert isinstance(app.screen, LayerScreen)


@pytest.mark.parametrize(
    ("screen", "chart", "part", "text"),
    [
        ("2", "max-load", "evidence", "no alerts in this layer"),
        ("6", "learning_rate", "answer", "no alert in any router"),
    ],
)
async def test_the_charts_follow_the_shown_step_and_the_window(
    collapsed: Path, screen: str, chart: str, part: str, text: str
) -> None:
    async with open_app(collapsed, "a", screen, *":120", "enter", size=(120, 40)) as app:
        assert " at 120" in app.text("chart-balance")
        assert "│" in app.text("chart-balance")
        assert text in app.text(part)
        if screen == "2":
            c = app.view().layers[app.session.selected].balance
            assert f"balance c   {c:.2f}".replace(" 0.", " .") in app.text("chart-balance")
        await app.press("f", "+", "+")
        window = app.session.time.window
        assert window is not None
        ticks = app.text(f"chart-{chart}").split("\n")[-1].split()
        assert ticks
        assert all(window.first <= int(tick) <= window.last for tick in ticks)
        await app.press("x")
        assert "s" in app.text(f"chart-{chart}").split("\n")[-1]


@pytest.mark.parametrize("what", ["no counts", "NaN", "one step", "no summaries"])
async def test_a_poor_log_is_shown_as_far_as_it_can(what: str, write_log: Any) -> None:
    steps = [step(n, [[4] * 8] * 3, 16) for n in range(1, 2 if what == "one step" else 40)]
    for one in steps:
        if what == "NaN":
            one["loss"] = "NaN"
            one["router"] = dict.fromkeys(("entropy", "effective_experts", "max_load"), ["NaN"] * 3)
            one["expert_bias"] = [["NaN"] * 8] * 3
        if what == "no counts":
            del one["tokens_per_expert"]
        if what == "no summaries":
            del one["tokens_per_expert"]
            one["router"] = {}
    async with open_app(write_log([header(), *steps]), "2") as app:
        await app.press("right", "tab", "z", "e", "z", "enter", "right", "escape")
        await app.press("6", "tab", "z", "z", "2")
        if what in ("no counts", "no summaries"):
            assert "no counts" in app.text("chart-load")
        if what == "no summaries":
            assert "not measured" in app.text("chart-balance")
        assert app.app.is_running


@pytest.mark.usefixtures("quick_reader")
async def test_what_replaces_an_open_run_is_shown(own_collapsed: Path, write_log: Any) -> None:
    async with open_app(own_collapsed, "a", "enter", "end", *["right"] * 9) as app:
        model = {"layers": [1], "layer_names": ["only"], "num_experts": 4}
        steps = [step(n, [[8] * 4], 16) for n in range(1, 20)]
        other = write_log([header(model=model, planned_steps=None), *steps], name="other")
        other.replace(own_collapsed / "metrics.jsonl")
        await app.sees("only", "layer-title")
        await app.press("right", "left", "enter")
        assert isinstance(app.screen, ExpertScreen)
        assert "of 4 in only" in app.text("layer-title")


async def test_all_charts_share_one_axis_and_one_focus(collapsed: Path) -> None:
    async with open_app(collapsed, "6", size=(80, 24)) as app:
        assert app.charts() == COURSE
        with_ticks = [n for n in COURSE if "200" in app.text(f"chart-{n}").split("\n")[-1].split()]
        assert with_ticks == ["learning_rate"]
        lines = app.text(*(f"chart-{name}" for name in COURSE)).split("\n")
        assert len({line.index("┊") for line in lines if "┊" in line}) == 1  # the onset
        assert "COLLAPSE in L4 since 1" in app.text("answer")
        assert "the loss does not show it" in app.text("answer")
        focused = []
        for key in ("tab", "tab", "shift+tab", "shift+tab", "shift+tab"):
            await app.press(key)
            focused += [n for n in COURSE if app.text(f"chart-{n}").startswith("▶")]
        assert focused == ["balance", "max-load", "balance", "loss", "learning_rate"]
        await app.press("z")
        assert app.charts() == ["learning_rate"]
        await app.press("z", "e")
        assert app.charts() == COURSE
        assert app.session.smoothing == 0.6
        assert "smoothing 0.6" in app.text("chart-loss")
        await app.resize(60, 20)
        await app.press("tab")
        assert app.charts()[:2] == ["loss", "balance"]
        assert "learning rate" in app.text("hidden")
        await app.press("shift+tab")
        assert "learning_rate" in app.charts()


@pytest.mark.parametrize(
    ("count", "values", "shown"),
    [
        (59, {"loss": "NaN", "grad_norm": "NaN"}, "not measured"),
        (1, {}, "not measured"),
        (59, {"loss": 3.0}, "3.00 at 59"),
    ],
)
async def test_a_log_without_router_summaries_has_only_its_loss(
    count: int, values: dict[str, Any], shown: str, write_log: Any
) -> None:
    steps = [{"kind": "step", "step": n} | values for n in range(1, count + 1)]
    async with open_app(write_log([header(), *steps]), "6", size=(80, 24)) as app:
        assert app.charts() == ["loss"]
        assert shown in app.text("chart-loss")
        await app.press("tab", "z", "e", "z", "a", "o", "[")
        assert app.app.is_running


@asynccontextmanager
async def card(
    path: Path, size: tuple[int, int] = (100, 30), *, sampled: bool = True
) -> AsyncIterator[AppPilot]:
    """The card of the busiest expert of the first sick layer."""
    async with open_app(path, "a", "2", "enter", size=size) as app:
        if sampled:
            await app.until(lambda: len(series(app).steps), "the samples")
            await app.redraw()
        yield app


def series(app: AppPilot) -> Any:
    assert isinstance(app.screen, ExpertScreen)
    return app.screen._series


async def test_the_card_shows_load_share_and_where_else_the_expert_is_dead(collapsed: Path) -> None:
    async with card(collapsed, (80, 24)) as app:
        assert "steps sampled" in app.text("chart-load")
        assert "hot" in app.text("facts")
        assert "COLLAPSE since" in app.text("more")
        assert app.charts() == ["load", "bias"]
        await app.press(*["left"] * 8)
        chosen = []
        for key in ("right", "l", "down", "j", "up", "k", "h", "left", "left"):
            await app.press(key)
            chosen.append(app.session.expert)
            assert f"expert {app.session.expert} " in app.text("layer-title")
        assert chosen == [1, 2, 3, 4, 3, 2, 1, 0, 0]
        await app.press(*["right"] * 8)
        assert app.session.expert == 7
        dead = list(app.view().layers[3].load or ()).index(0.0)
        await app.press(*["left"] * (7 - dead))
        assert "dead" in app.text("facts")


async def test_the_card_travels_in_time_with_exact_values(collapsed: Path) -> None:
    async with card(collapsed) as app:
        await app.enter(":101")
        assert app.session.expert is not None
        load = (app.view().layers[3].load or ())[app.session.expert]
        assert f"load   {load:.2f} at 101" in app.text("chart-load")
        assert "PAUSED, now 450" in app.text("layer-title")
        assert "dead" not in app.text("facts")


async def test_samples_are_read_again_only_for_another_layer_or_window(
    collapsed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    real = expert_screen.samples

    def counted(watch: Any, router: int, count: int, window: Any, **more: Any) -> Any:
        read.append(router)
        return real(watch, router, count, window, **more)

    monkeypatch.setattr(expert_screen, "samples", counted)
    async with card(collapsed) as app:
        await app.press("right", "right", "left", "[", "x")
        assert read == [3]
        await app.press("+")
        await app.until(lambda: len(read) == 2, "the samples of the window")
        await app.until(lambda: series(app).steps[0] > 1, "them on the screen")


async def test_what_is_read_for_a_window_that_was_wide_for_a_moment_is_not_shown(
    collapsed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    released = threading.Event()
    done = threading.Event()
    real = expert_screen.samples

    def slow(watch: Any, router: int, count: int, window: Any, **more: Any) -> Any:
        counts.append(count)
        found = real(watch, router, count, window, **more)
        if len(counts) > 1:
            released.wait(20)
            done.set()
        return found

    monkeypatch.setattr(expert_screen, "samples", slow)
    async with card(collapsed) as app:
        shown = series(app)
        await app.resize(150, 30)
        await app.until(lambda: counts == [100, 150], "a read for the wide window")
        await app.resize(100, 30)
        released.set()
        await app.until(done.is_set, "its end")
        await app.app.workers.wait_for_complete()
        await app.settle()
        assert series(app) is shown
        assert counts == [100, 150]


async def test_a_compressed_log_shows_why_it_cannot_be_rewound(own_collapsed: Path) -> None:
    log = compressed(own_collapsed / "metrics.jsonl")
    async with card(log, sampled=False) as app:
        why = "history cannot be read: compressed logs cannot be rewound"
        assert why in app.text("chart-load")
        assert "hot" in app.text("facts")


async def test_a_lost_log_shows_why(collapsed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(expert_screen, "samples", gone)
    async with card(collapsed, sampled=False) as app:
        await app.sees("history cannot be read: No such file or directory", "chart-load")


@pytest.mark.usefixtures("quick_reader")
async def test_a_growing_run_is_sampled_again_only_after_a_while(
    make_run: Callable[..., Path], append: Callable[..., None]
) -> None:
    path = make_run(steps=range(1, 321))
    async with card(path) as app:
        first = series(app)
        append(path, range(321, 325))
        await app.sees("at 324", "chart-load")
        assert series(app) is first
        append(path, range(325, 360))
        await app.until(lambda: series(app).steps[-1] >= 350, "new samples")
