"""The map of a run: its cursor, its measures, and the way to the layer at that step."""

import re
from pathlib import Path

from microscope_tui.app.picture import draw
from microscope_tui.kit.session import PictureRequest
from microscope_tui.screens.layer.screen import LayerScreen
from microscope_tui.watch import Fleet
from tests.app.pilot import open_app


async def test_the_cursor_finds_layer_and_step_and_enter_opens_them(collapsed: Path) -> None:
    async with open_app(collapsed, "t") as app:
        assert "lowest balance c" in app.text("map-title")
        await app.press("a", "o")  # the sick layer, at the onset
        step = app.session.time.shown_step
        assert f"COLLAPSE since {step:,}" in app.text("map-cursor")
        before = app.text("map-cursor")
        await app.press("left", "left", "right")
        assert app.text("map-cursor") != before
        words = app.text("map-cursor").split()
        assert words[0] == "L4"
        await app.press("up")
        assert app.text("map-cursor").split()[0] == "L3"
        await app.press("enter")
        await app.opens(LayerScreen)
        assert app.session.time.shown_step == int(words[2])
        assert app.session.selected == 2


async def test_tab_shows_other_measures_and_says_what_was_not_logged(collapsed: Path) -> None:
    async with open_app(collapsed, "t") as app:
        titles = []
        for key in ("tab", "tab", "tab", "shift+tab", "shift+tab"):
            await app.press(key)
            titles.append(app.text("map-title").split("  ")[1].split(", ")[0])
        load, entropy = "highest max load", "lowest entropy H"
        assert titles == [load, entropy, "highest dropped", entropy, load]
        await app.press("tab", "tab")
        assert "dropped: nothing logged in this window" in app.text("map-cells")
        await app.press("/", "x", "y", "enter")
        assert "no layer matches" in app.text("map-cells")


async def test_a_picture_of_the_map_at_a_step_has_the_cursor_there(collapsed: Path) -> None:
    picture = await draw(Fleet(collapsed.parent), PictureRequest(screen="map", step=100))
    assert re.search("steps (9[0-9]|100) to 1[0-9]{2}", picture.text)
