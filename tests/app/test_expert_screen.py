"""The card of an expert: its keys, its past from the log, and logs without a past."""

import gzip
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.app import ExpertScreen, MainScreen
from microscope_tui.app.screens import chart_screens
from tests.app.pilot import AppPilot, open_app


@asynccontextmanager
async def card(
    path: Path, size: tuple[int, int] = (100, 30), *, sampled: bool = True
) -> AsyncIterator[AppPilot]:
    """The card of the expert farthest from fair in the first sick layer."""
    async with open_app(path, "a", "2", "enter", size=size) as app:
        if sampled:
            await app.until(lambda: len(series(app)), "the samples")
            await app.redraw()
        yield app


def series(app: AppPilot) -> Any:
    assert isinstance(app.screen, ExpertScreen)
    return app.screen._series


async def test_the_card_shows_load_share_and_where_else_the_expert_is_dead(
    collapsed: Path,
) -> None:
    async with card(collapsed, (80, 24)) as app:
        assert "steps sampled" in app.text("chart-load")
        assert "dead since about step 1" in app.text("facts")
        assert "L4 has COLLAPSE" in app.text("more")
        assert app.charts() == ["load", "bias", "place"]
        await app.press(*["left"] * 2)
        chosen = []
        for key in ("right", "l", "down", "j", "up", "k", "h", "left", "left"):
            await app.press(key)
            chosen.append(app.session.expert)
            assert f"expert {app.session.expert} " in app.text("layer-title")
        assert chosen == [1, 2, 3, 4, 3, 2, 1, 0, 0]
        await app.press(*["right"] * 8)
        assert app.session.expert == 7


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
    real = chart_screens.samples

    def counted(watch: Any, router: int, count: int, window: Any, **more: Any) -> Any:
        read.append(router)
        return real(watch, router, count, window, **more)

    monkeypatch.setattr(chart_screens, "samples", counted)
    async with card(collapsed) as app:
        await app.press("right", "right", "left", "[", "x")
        assert read == [3]
        await app.press("+")
        await app.until(lambda: len(read) == 2, "the samples of the window")
        await app.until(lambda: series(app).steps[0] > 1, "them on the screen")


async def test_the_card_without_a_layer_screen_below_it_can_be_left(collapsed: Path) -> None:
    async with card(collapsed) as app:
        await app.go("expert")
        assert isinstance(app.screen, MainScreen)
        await app.go("expert")
        assert isinstance(app.screen, ExpertScreen)
        await app.press("escape")
        assert isinstance(app.screen, MainScreen)


async def test_a_compressed_log_shows_why_it_cannot_be_rewound(own_collapsed: Path) -> None:
    log = own_collapsed / "metrics.jsonl"
    packed = log.with_name("metrics.jsonl.gz")
    packed.write_bytes(gzip.compress(log.read_bytes()))
    log.unlink()
    async with card(packed, sampled=False) as app:
        why = "history cannot be read: compressed logs cannot be rewound"
        assert why in app.text("chart-load")
        assert "too few samples: 0 of 16" in app.text("more")
        assert "dead" in app.text("facts")


async def test_a_log_that_disappears_shows_the_reason(
    collapsed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(chart_screens, "samples", gone)
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
