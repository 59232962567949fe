"""A screen below another one is not drawn: Textual would send the whole terminal again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from microscope_tui.app.microscope import Microscope
from microscope_tui.app.pace import INTERVALS_S
from microscope_tui.app.screens.main_screen import MainScreen
from microscope_tui.watch.fleet import Fleet


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
        await until(
            pilot,
            lambda app: app.session.has_run and isinstance(app.screen, MainScreen) and bool(drawn),
        )
        await pilot.press(key)
        await pilot.pause(0.2)
        drawn.clear()
        with log.open("ab") as file:
            file.write(json.dumps(make_step(41, [balanced()] * 3, 2048)).encode() + b"\n")
        await until(pilot, lambda app: latest_step(app) == 41)
        await pilot.pause(3 * INTERVALS_S[0])
        assert drawn == []
        await pilot.press("escape")
        await until(pilot, lambda app: bool(drawn))


def latest_step(app: Microscope) -> int:
    watch = app.session.watch
    return watch.latest.record.step if watch is not None and watch.latest is not None else 0


async def until(pilot: Pilot[None], condition: Callable[[Microscope], bool]) -> None:
    app = pilot.app
    assert isinstance(app, Microscope)
    for _ in range(200):
        if condition(app):
            return
        await pilot.pause(0.05)
    raise AssertionError("it never came true")
