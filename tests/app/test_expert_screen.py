"""The card of an expert: its keys, its past from the log, and logs without a past."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from microscope_tui.app import ExpertScreen, MainScreen, Microscope
from microscope_tui.app.screens import chart_screens
from microscope_tui.watch import Fleet
from tests.app.sitting import Seen, Until, opened


async def card(pilot: Pilot[None], until: Until, *, sampled: bool = True) -> Microscope:
    """The card of the expert farthest from fair in the first sick layer."""
    app = await opened(pilot, until, ExpertScreen, "a", "2", "enter")
    if sampled:
        await until(pilot, lambda: len(series(app)), "the samples")
    await pilot.pause()
    return app


def series(app: Microscope) -> Any:
    assert isinstance(app.screen, ExpertScreen)
    return app.screen._series


async def test_the_card_tells_load_place_share_and_where_else_it_is_dead(
    collapsed: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(80, 24)) as pilot:
        app = await card(pilot, until)
        await until(pilot, lambda: "steps sampled" in seen(pilot, "#chart-load"), "the curve")
        facts = seen(pilot, "#facts")
        assert "dead since about step 1" in facts
        assert "of 8" in facts
        assert "bias +" in facts
        more = seen(pilot, "#more")
        assert "1 dead" in more
        assert "L4 has COLLAPSE" in more
        assert "against" in more
        assert [p.id for p in app.screen.query("#charts Rows") if p.size.height > 2] == [
            "chart-load",
            "chart-bias",
            "chart-place",
        ]


async def test_arrows_choose_the_expert_and_stop_at_the_ends(
    collapsed: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(80, 24)) as pilot:
        app = await card(pilot, until)
        await pilot.press(*["left"] * 2)
        chosen = []
        for key in ("right", "l", "down", "j", "up", "k", "h", "left", "left"):
            await pilot.press(key)
            chosen.append(app.session.expert)
            assert f"expert {app.session.expert} " in seen(pilot, "#layer-title")
        assert chosen == [1, 2, 3, 4, 3, 2, 1, 0, 0]
        await pilot.press(*["right"] * 8)
        assert app.session.expert == 7


async def test_the_card_travels_in_time_with_exact_values(
    collapsed: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(100, 30)) as pilot:
        app = await card(pilot, until)
        await pilot.press("colon", *"101", "enter")
        await until(pilot, lambda: "at 101" in seen(pilot, "#chart-load"), "step 101")
        view = app.session.view(1, 1, range(0))
        assert view is not None
        assert app.session.expert is not None
        load = (view.layers[3].load or ())[app.session.expert]
        assert f"load   {load:.2f} at 101" in seen(pilot, "#chart-load")
        assert "PAUSED, now 450" in seen(pilot, "#layer-title")
        assert "dead" not in seen(pilot, "#facts")


async def test_another_layer_of_samples_is_read_only_when_it_is_asked_for(
    collapsed: Path, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, object]] = []
    real = chart_screens.samples

    def counted(watch: Any, router: int, count: int, window: Any, **more: Any) -> Any:
        asked.append((router, window))
        return real(watch, router, count, window, **more)

    monkeypatch.setattr(chart_screens, "samples", counted)
    async with Microscope(Fleet(collapsed)).run_test(size=(80, 24)) as pilot:
        app = await card(pilot, until)
        await pilot.press("right", "right", "left", "left_square_bracket", "x")
        assert [router for router, _ in asked] == [3]
        await pilot.press("plus")
        await until(pilot, lambda: len(asked) == 2, "the samples of the window")
        await until(pilot, lambda: series(app).steps[0] > 1, "them on the screen")


async def test_the_card_without_a_layer_screen_below_it_can_be_left(
    collapsed: Path, until: Until
) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(80, 24)) as pilot:
        app = await card(pilot, until)
        await app.action_go("expert")
        assert isinstance(app.screen, MainScreen)
        await app.action_go("expert")
        assert isinstance(app.screen, ExpertScreen)
        await pilot.press("escape")
        assert isinstance(app.screen, MainScreen)


async def test_a_compressed_log_shows_why_it_cannot_be_rewound(
    collapsed: Path, until: Until, seen: Seen
) -> None:
    log = collapsed / "metrics.jsonl"
    packed = log.with_name("metrics.jsonl.gz")
    packed.write_bytes(gzip.compress(log.read_bytes()))
    log.unlink()
    async with Microscope(Fleet(packed)).run_test(size=(100, 30)) as pilot:
        await card(pilot, until, sampled=False)
        assert "history cannot be read: compressed logs cannot be rewound" in seen(
            pilot, "#chart-load"
        )
        assert "too few samples: 0 of 16" in seen(pilot, "#more")
        assert "dead" in seen(pilot, "#facts")


async def test_a_log_that_cannot_be_read_any_more_is_said(
    collapsed: Path, until: Until, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(chart_screens, "samples", gone)
    async with Microscope(Fleet(collapsed)).run_test(size=(100, 30)) as pilot:
        await card(pilot, until, sampled=False)
        await until(pilot, lambda: "cannot be read" in seen(pilot, "#chart-load"), "the reason")
        assert "No such file or directory" in seen(pilot, "#chart-load")


async def test_a_growing_run_is_sampled_again_only_after_a_while(
    write_log: Any, make_header: Any, make_step: Any, balanced: Any, until: Until, seen: Seen
) -> None:
    steps = [make_step(n, [balanced()] * 3, 2048) for n in range(1, 321)]
    path = write_log([make_header(), *steps])
    async with Microscope(Fleet(path)).run_test(size=(80, 24)) as pilot:
        app = await card(pilot, until)
        first = series(app)

        def grow(since: int, until_: int) -> None:
            with path.open("ab") as file:
                for n in range(since, until_):
                    line = json.dumps(make_step(n, [balanced()] * 3, 2048))
                    file.write(line.encode() + b"\n")

        grow(321, 325)
        await until(pilot, lambda: "at 324" in seen(pilot, "#chart-load"), "step 324")
        assert series(app) is first
        grow(325, 360)
        await until(pilot, lambda: series(app).steps[-1] >= 350, "new samples")


async def test_a_storm_of_sizes_leaves_a_whole_card(
    collapsed: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(100, 30)) as pilot:
        await card(pilot, until)
        for size in [(30, 6), (200, 60), (60, 20), (10, 3), (45, 11), (1, 1), (80, 24)]:
            await pilot.resize_terminal(*size)
        await until(pilot, lambda: "steps sampled" in seen(pilot, "#chart-load"), "the curve")
        assert "expert" in seen(pilot, "#layer-title")
