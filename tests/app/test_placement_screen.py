"""The page of placements: fitted in a thread, once for each state of the log."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.app.picture import draw
from microscope_tui.extensions.placement import screen as placement_screen
from microscope_tui.kit.base import is_busy
from microscope_tui.kit.session import PictureRequest, Preferences
from microscope_tui.watch import Fleet
from microscope_tui.watch.cost import CostRequest
from tests.app.pilot import AppPilot, open_app

Make = Callable[..., Path]


def on(ranks: int | None) -> Preferences:
    return Preferences(interval_s=0.05, cost=CostRequest(ranks))


async def fitted(app: AppPilot) -> str:
    await app.until(lambda: not is_busy(app.screen), "the placement")
    return app.text("placement")


async def test_keys_work_while_it_is_fitted_and_closing_the_page_ends_it(
    collapsed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()

    def endless(*given: Any) -> None:
        try:
            while True:
                given[-1](0.5)
                time.sleep(0.005)
        finally:
            ended.set()

    async with open_app(collapsed, "g", "2", "d", preferences=on(4)) as app:
        text, at = await fitted(app), app.session.selected
        assert text.split()[0] == app.view().layers[at].router.name
        await app.press("down")
        assert app.text("placement").split()[0] == app.view().layers[at + 1].router.name
        monkeypatch.setattr(placement_screen, "study", endless)
        await app.press("escape", "d")
        await app.sees("reading and fitting … 75%", "placement")
        await app.press("down")
        assert app.session.selected == at + 2
        assert not ended.is_set()
        await app.press("escape")
        await app.until(ended.is_set, "the end of the thread")


@pytest.mark.usefixtures("quick_reader")
async def test_a_run_that_grows_is_fitted_once_and_a_replaced_one_again(
    make_run: Make, append: Callable[..., None]
) -> None:
    async with open_app(log := make_run(steps=range(1, 41)), "d", preferences=on(4)) as app:
        assert "fitted to steps 1 to 20" in await fitted(app)
        append(log, range(41, 51))
        await app.reads(50)
        await app.redraw()
        assert "fitted to steps 1 to 20" in await fitted(app)
        make_run(steps=range(1, 13))
        await app.sees("fitted to steps 1 to 6", "placement")


@pytest.mark.parametrize(
    ("steps", "ranks", "why"),
    [
        (40, None, "One rank holds all experts: --ranks R"),
        (40, 3, "L1: 8 experts and 0 extra copies do not divide by 3 ranks"),
        (1, 4, "too few for an interval"),
    ],
)
async def test_what_cannot_be_placed_says_why(
    make_run: Make, steps: int, ranks: int | None, why: str
) -> None:
    wanted = PictureRequest("placement", preferences=on(ranks))
    picture = await draw(Fleet(make_run(steps=range(1, steps + 1))), wanted)
    assert why in picture.text
