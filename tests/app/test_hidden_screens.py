"""A screen below another one is not drawn: Textual would send the whole terminal again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.app import MainScreen, Microscope
from microscope_tui.watch import Fleet
from tests.app.sitting import latest_step, read, until


@pytest.mark.parametrize("key", ["enter", "r", "question_mark"])
async def test_the_main_screen_below_another_one_is_left_alone(
    tmp_path: Path,
    make_step: Callable[..., dict[str, Any]],
    balanced: Any,
    key: str,
    scenario: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = scenario("healthy", routers=3, steps=40) / "metrics.jsonl"
    drawn: list[int] = []
    real = MainScreen.redraw

    async def counted(screen: MainScreen) -> None:
        drawn.append(1)
        await real(screen)

    monkeypatch.setattr(MainScreen, "redraw", counted)
    async with Microscope(Fleet(tmp_path)).run_test(size=(100, 30)) as pilot:
        app = await read(pilot, until)
        await until(pilot, lambda: drawn, "drawn")
        await pilot.press(key)
        await pilot.pause(0.2)
        drawn.clear()
        with log.open("ab") as file:
            file.write(json.dumps(make_step(41, [balanced()] * 3, 2048)).encode() + b"\n")
        await until(pilot, lambda: latest_step(app) == 41)
        await pilot.pause(2 * app.session.preferences.interval_s)
        assert drawn == []
        await pilot.press("escape")
        await until(pilot, lambda: drawn)
