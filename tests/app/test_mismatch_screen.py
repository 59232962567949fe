"""Screen 9: the probe of the pinned run against that of the open one."""

import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from microscope_tui.app import PictureRequest, RunsScreen, draw
from microscope_tui.routing import RoutingWriter, Shape
from microscope_tui.runlog import RunFile
from microscope_tui.watch import Fleet
from tests.app.pilot import AppPilot, open_app

Make = Callable[..., Path]
TOKENS = 200


@pytest.fixture
def make_probe(make_run: Make) -> Make:
    """A probe of three layers; ``flips``: tokens of L2 that choose expert 7 instead of 0."""

    def make(name: str, flips: int = 0, age: float = 5000, *, tokens: int = TOKENS) -> Path:
        path = make_run(name, (1, 2), age, profile="eval")
        shape = Shape((1, 2, 3), ("L1", "L2", "L3"), 8, 2, tokens)
        writer = RoutingWriter(path.with_name("routing.bin"), shape)
        writer.put_tokens([5] * tokens, [b"a"] * tokens, [0] * tokens, [0] * tokens)
        rng = random.Random(0)
        margins = struct.pack(f"<{tokens}e", *(rng.random() for _ in range(tokens)))
        for layer in range(3):
            flipped = flips if layer == 1 else 0
            ids = [7 if n < flipped and not n % 2 else n % 2 for n in range(2 * tokens)]
            writer.put("ids", layer, 0, bytes(ids))
            writer.put("margins", layer, 0, margins)
        writer.finish()
        return path.parent

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
    root = make_probe("after", flips=40, age=0).parent
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


@pytest.mark.parametrize("size", [(60, 12), (200, 60)])
async def test_the_picture_of_the_comparison_needs_no_keys(
    make_probe: Make, size: tuple[int, int]
) -> None:
    text = await picture(make_probe("before"), make_probe("after", flips=40), size, "L2")
    assert "3.33% of the choices" in text
    assert "▶ L2   10.0%" in text
    assert all(len(line) <= size[0] for line in text.split("\n"))


async def test_a_run_without_a_probe_shows_how_to_make_one(collapsed: Path) -> None:
    async with open_app(collapsed, "9", "down", "pagedown", "end", "home") as app:
        assert "has no probe" in rows(app)
        assert "moe-microscope probe MODEL TEXT" in rows(app)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: path.write_bytes(b"\x1b[2J" * 40), "MOEROUTE"),
        (lambda path: path.unlink(), "has no probe"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "cut off"),
    ],
)
async def test_a_probe_that_cannot_be_read_is_named(
    make_probe: Make, spoil: Callable[[Path], object], why: str
) -> None:
    a, b = make_probe("before"), make_probe("after")
    spoil(a / "routing.bin")
    assert why in await picture(a, b)


async def test_probes_of_other_tokens_are_not_compared(make_probe: Make) -> None:
    text = await picture(make_probe("before", tokens=100), make_probe("after"))
    assert "tokens: 100 in A, 200 in B" in text
