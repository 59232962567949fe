"""A beside B: two steps, of one run or of two, and the probes of two runs."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.app.picture import draw
from microscope_tui.kit.session import PictureRequest
from microscope_tui.runlog import RunFile
from microscope_tui.screens.compare.screen import CompareScreen
from microscope_tui.screens.layer.screen import LayerScreen
from microscope_tui.screens.main.screen import MainScreen
from microscope_tui.screens.runs.screen import RunsScreen
from microscope_tui.watch import Fleet
from tests.app.pilot import AppPilot, compressed, open_app
from tests.extensions.anatomy.test_compare import write

Make = Callable[..., Path]
STEPS = range(1, 201)
SICK = {1: range(100, 999)}


def moment(app: AppPilot, which: str) -> list[str]:
    lines = [line.split() for line in app.text("moments").split("\n")]
    return next((line[1:3] for line in lines if line and line[0] == which), ["", ""])


@asynccontextmanager
async def pinned(root: Path) -> AsyncIterator[AppPilot]:
    """The comparison with the run below the open one in the list."""
    async with open_app(root, "r") as app:
        await app.sees("2 runs", "runs")
        await app.press("down", "p", "5")
        yield app


async def test_without_a_reference_a_step_before_the_worst_alert_is_taken(make_run: Make) -> None:
    async with open_app(make_run(steps=STEPS, sick=SICK), "5") as app:
        assert "before COLLAPSE began" in app.text("moments")
        assert moment(app, "A") == ["run", "70"]
        assert moment(app, "B") == ["run", "200"]
        assert "-1.30" in app.text("moments")
        assert "+130" in app.text("moments")
        assert app.session.reference is None  # the keys of the main screen mean what they meant
        sick = next(line for line in app.text("pairs").split("\n") if " L2 " in line)
        assert ".00 -1.00" in sick


@pytest.mark.parametrize(
    ("steps", "a", "why"), [(200, "20", "10% into the run"), (1, "1", "the same step as B")]
)
async def test_in_a_healthy_run_a_tenth_of_it_is_taken(
    make_run: Make, steps: int, a: str, why: str
) -> None:
    async with open_app(make_run(steps=range(1, steps + 1)), "5") as app:
        assert moment(app, "A") == ["run", a]
        assert why in app.text("moments")


async def test_b_takes_the_shown_step_as_a_and_time_moves_on_from_there(make_run: Make) -> None:
    async with open_app(make_run(steps=STEPS, sick=SICK), "5", *":50", "enter", "b") as app:
        assert "A is step 50" in app.text("keys")
        assert "the same step as B" in app.text("moments")
        for keys, step in (("]", "51"), ("}", "61"), ("f", "200")):
            await app.press(keys)
            assert moment(app, "B") == ["run", step]
            assert moment(app, "A") == ["run", "50"]
            assert "set with b" in app.text("moments")
        await app.press("escape")
        assert isinstance(app.screen, MainScreen)
        assert "against step 50" in app.text("heads")


async def test_a_layer_is_chosen_opened_and_filtered(make_run: Make) -> None:
    async with open_app(make_run(steps=STEPS, sick=SICK), "g", "5", size=(80, 24)) as app:
        layers = []
        for key in ("down", "j", "down", "up", "k", "end", "home", "pagedown", "pageup"):
            await app.press(key)
            layers.append(app.session.selected)
            assert f"▶ L{app.session.selected + 1} " in app.text("pairs")
        assert layers == [1, 2, 2, 1, 0, 2, 0, 2, 0]
        await app.enter("/!l2")
        assert " L2 " not in app.text("pairs")
        assert "/!l2" in app.text("moved")
        await app.press("j")
        assert app.session.selected == 2
        await app.press("k")
        assert app.session.selected == 0
        await app.enter("/ nothing")
        assert "no layer matches" in app.text("pairs")
        await app.press("c", "down", "up", "/", "escape", "home", "down")
        assert "L2: up 0 " in app.text("moved")
        assert "without tokens now" in app.text("moved")
        await app.press("enter")
        await app.opens(LayerScreen)
        assert "L2" in app.text("layer-title")


async def test_a_pinned_run_follows_until_b_or_its_end(make_run: Make, tmp_path: Path) -> None:
    make_run("new", STEPS, 5000, sick=SICK)
    old = make_run("old", STEPS, 6000)
    async with pinned(tmp_path) as app:
        assert moment(app, "A") == ["old", "200"]
        assert moment(app, "B") == ["new", "200"]
        assert "pinned, at the same step" in app.text("moments")
        await app.enter(":77")
        await app.until(lambda: moment(app, "A") == ["old", "77"], "A at step 77")
        assert moment(app, "B") == ["new", "77"]
        old.unlink()
        await app.enter(":50")
        await app.sees("No such file", "moments")
        assert moment(app, "A") == ["old", "77"]
        await app.press("f", "b")
        assert app.session.fleet.pinned is None
        assert moment(app, "A") == ["new", "200"]
        await app.enter(":77")
        assert moment(app, "B") == ["new", "77"]
        await app.pause(0.2)  # longer than the pinned run waits before it follows
        assert moment(app, "A") == ["new", "200"]
        await app.press("r")
        assert "pinned" not in app.text("runs")


async def test_a_shorter_run_of_another_shape_is_matched_by_the_names_of_its_layers(
    make_run: Make, tmp_path: Path
) -> None:
    make_run("new", STEPS, 5000, names=("L1", "L2", "L7"), sick=SICK)
    make_run("other", range(1, 61), 6000, names=("L0", "L2", "L1", "L9"))
    async with pinned(tmp_path) as app:
        assert moment(app, "A") == ["other", "60"]
        assert "pinned, its last step before B" in app.text("moments")
        pairs = app.text("pairs").split("\n")
        assert "no L7 in A" in next(line for line in pairs if " L7 " in line)
        assert "no L1 in A" not in app.text("pairs")
        assert "only in A: L0, L9" in app.text("moved")


async def test_a_compressed_log_explains_how_to_get_a_reference(make_run: Make) -> None:
    log = compressed(make_run(steps=STEPS, sick=SICK))
    async with open_app(log, "5", size=(80, 24)) as app:
        assert "decompress it" in app.text("moments")
        assert "r lists the runs, and p pins one as A" in app.text("moments")
        await app.press("down", "up", "enter", "escape", "5", "b")
        assert "the same step as B" in app.text("moments")


@pytest.mark.usefixtures("quick_reader")
async def test_a_run_that_is_replaced_gets_a_new_reference(make_run: Make) -> None:
    path = make_run(steps=STEPS, sick=SICK)
    async with open_app(path, "5") as app:
        make_run("new", range(1, 41)).replace(path)
        await app.until(lambda: moment(app, "B")[1] == "40", "the new run")
        await app.until(lambda: moment(app, "A")[1] == "4", "its own A")
        path.unlink()
        await app.sees("deleted", "header")
        await app.press("[", "down")
        assert isinstance(app.screen, CompareScreen)


async def test_a_pinned_run_read_while_the_app_ends_is_fine(make_run: Make, tmp_path: Path) -> None:
    make_run("one", age=5000)
    make_run("other", age=6000)
    for wait in (0.0, 0.1):
        async with open_app(tmp_path, "r") as app:
            await app.sees("2 runs", "runs")
            await app.press("down", "p", "escape", "[")
            assert app.session.fleet.pinned is not None
            await app.pause(wait)  # the end comes while the other run is read
        assert app.app.return_code != 1  # Textual's code after a worker that failed


@pytest.fixture
def make_probe(make_run: Make) -> Make:
    """A probe of three layers; ``flips``: tokens of L2 that choose expert 7 instead of 0."""

    def make(name: str, flips: int = 0, age: float = 5000, *, tokens: int = 200) -> Path:
        log = make_run(name, (1, 2), age, profile="eval")
        same = [[0, 1] for _ in range(tokens)]
        ids = [same, [[7, 1]] * flips + same[flips:], same]
        return write(log.with_name("routing.bin"), ids, experts=8).parent

    return make


def rows(app: AppPilot) -> str:
    return app.text("mismatch-head", "mismatch-rows")


async def picture(a: Path, b: Path, size: tuple[int, int] = (120, 30), layer: str = "") -> str:
    """The screen, drawn without keys."""
    against = RunFile(a.name, a / "metrics.jsonl", 0.0)
    wanted = PictureRequest("mismatch", *size, layer=layer, against=against)
    return (await draw(Fleet(b), wanted)).text


async def test_two_probes_are_compared_once_the_other_is_pinned(make_probe: Make) -> None:
    make_probe("before")
    root = make_probe("after", flips=20, age=0).parent
    async with open_app(root, "9") as app:
        assert "Pin the run" in rows(app)
        assert "moe-microscope probe MODEL TEXT" in rows(app)
        await app.press("b")
        assert isinstance(app.screen, RunsScreen)
        await app.sees("2 runs", "runs")
        await app.press("down", "p")
        assert "pinned: before" in app.text("keys")
        await app.press("9")
        await app.sees("3.33% of the choices", "mismatch-head")  # 20 of 600
        assert "10.0% of the tokens" in rows(app)  # 20 of 200
        assert "L2 is the first layer that differs in 20 of the 20 tokens" in rows(app)
        assert "swaps in L1" in rows(app)
        await app.press("down")
        assert "swaps in L2" in rows(app)
        assert "0 → 7  20 times" in rows(app)
        assert "▶ L2" in rows(app)
        (found,) = [run for run in app.session.fleet.runs if run.name == "after"]
        app.session.fleet.pinned = app.session.fleet.comparable(found)
        await app.redraw()
        assert "is also the open one" in rows(app)
        assert "0.00%" not in rows(app)


async def test_the_picture_of_the_comparison_needs_no_keys(make_probe: Make) -> None:
    text = await picture(make_probe("before"), make_probe("after", flips=20), (60, 12), "L2")
    assert "3.33% of the choices" in text
    assert "▶ L2   10.0%" in text
    assert all(len(line) <= 60 for line in text.split("\n"))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: path.write_bytes(b"\x1b[2J" * 40), "MOEROUTE"),
        (lambda path: path.unlink(), "has no probe"),
    ],
)
async def test_a_probe_that_cannot_be_read_is_named(make_probe: Make, spoil: Any, why: str) -> None:
    a, b = make_probe("before"), make_probe("after")
    spoil(a / "routing.bin")
    assert why in await picture(a, b)


async def test_probes_of_other_tokens_are_not_compared(make_probe: Make) -> None:
    text = await picture(make_probe("before", tokens=100), make_probe("after"))
    assert "tokens: 100 in A, 200 in B" in text
