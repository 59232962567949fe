"""Screen 9: the probe of the pinned run against that of the open one."""

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from microscope_tui.app import Microscope, MismatchScreen, PictureRequest, RunsScreen, draw
from microscope_tui.routing import RoutingWriter, Shape
from microscope_tui.runlog import RunFile
from microscope_tui.watch import Fleet
from tests.app.sitting import Seen, Until, judged, opened

Make = Callable[..., Path]
TOKENS = 200


@pytest.fixture
def make_probe(write_log: Any, make_header: Any, make_step: Any, balanced: Any) -> Make:
    """A probe of three layers; ``flips``: tokens of L2 that choose expert 7 instead of 0."""

    def make(name: str, flips: int = 0, age: float = 9e8, *, tokens: int = TOKENS) -> Path:
        records = [make_header(run=name, profile="eval")]
        records += [make_step(n, [balanced() for _ in range(3)], 2048) for n in (1, 2)]
        path: Path = write_log(records, name=name)
        os.utime(path, (2e9 - age,) * 2)
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


def rows(seen: Seen, pilot: Pilot[None]) -> str:
    return seen(pilot, "#mismatch-head") + "\n" + seen(pilot, "#mismatch-rows")


async def test_two_probes_are_compared_once_the_other_is_pinned(
    make_probe: Make, until: Until, seen: Seen
) -> None:
    make_probe("before")
    root = make_probe("after", flips=40, age=0).parent
    async with Microscope(Fleet(root)).run_test(size=(100, 30)) as pilot:
        app = await judged(pilot, until)
        await pilot.press("9")
        await until(pilot, lambda: "Pin the run" in rows(seen, pilot), "what to do")
        assert "moe-microscope probe MODEL TEXT" in rows(seen, pilot)
        await pilot.press("b")
        await until(pilot, lambda: isinstance(app.screen, RunsScreen), "the runs")
        screen = app.screen
        assert isinstance(screen, RunsScreen)
        await until(pilot, lambda: screen._cards and all(c.state for c in screen._cards), "a look")
        await pilot.press("down", "p")
        await until(pilot, lambda: "pinned: before" in seen(pilot, "#keys"), "the pin")
        await pilot.press("9")
        # 20 of 600 choices, 20 of 200 tokens.
        await until(pilot, lambda: "3.33% of the choices" in rows(seen, pilot), "the comparison")
        assert "10.0% of the tokens" in rows(seen, pilot)
        assert "swaps in L1" in rows(seen, pilot)
        await pilot.press("down")
        shown = rows(seen, pilot)
        assert "swaps in L2" in shown
        assert "0 → 7  20 times" in shown
        assert "▶ L2" in shown


async def test_a_probe_is_not_compared_with_itself(
    make_probe: Make, until: Until, seen: Seen
) -> None:
    run = make_probe("only", age=0)
    async with Microscope(Fleet(run)).run_test(size=(80, 24)) as pilot:
        app = await judged(pilot, until)
        (found,) = app.session.fleet.runs
        app.session.fleet.pinned = app.session.fleet.comparable(found)
        await pilot.press("9")
        await until(pilot, lambda: "is also the open one" in rows(seen, pilot), "why not")
        assert "0.00%" not in rows(seen, pilot)


@pytest.mark.parametrize("size", [(60, 12), (80, 24), (200, 60)])
async def test_the_picture_of_the_comparison_needs_no_keys(
    make_probe: Make, size: tuple[int, int]
) -> None:
    a, b = make_probe("before"), make_probe("after", flips=40)
    against = RunFile("before", a / "metrics.jsonl", 0.0)
    wanted = PictureRequest("mismatch", *size, layer="L2", against=against)
    text = (await draw(Fleet(b), wanted)).text
    assert "3.33% of the choices" in text
    assert "▶ L2   10.0%" in text
    assert all(len(line) <= size[0] for line in text.split("\n"))


async def test_a_run_without_a_probe_says_how_to_make_one(
    write_log: Any, make_header: Any, make_step: Any, balanced: Any, until: Until, seen: Seen
) -> None:
    log = write_log([make_header(), make_step(1, [balanced() for _ in range(3)], 2048)])
    async with Microscope(Fleet(log)).run_test(size=(80, 24)) as pilot:
        await opened(pilot, until, MismatchScreen, "9")
        assert "has no probe" in rows(seen, pilot)
        assert "moe-microscope probe MODEL TEXT" in rows(seen, pilot)
        await pilot.press("down", "pagedown", "end", "home")
        assert "has no probe" in rows(seen, pilot)


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
    against = RunFile("before", a / "metrics.jsonl", 0.0)
    text = (await draw(Fleet(b), PictureRequest("mismatch", 120, 30, against=against))).text
    assert why in text


async def test_probes_of_other_tokens_are_not_compared(make_probe: Make) -> None:
    a, b = make_probe("before", tokens=100), make_probe("after")
    against = RunFile("before", a / "metrics.jsonl", 0.0)
    text = (await draw(Fleet(b), PictureRequest("mismatch", 120, 30, against=against))).text
    assert "tokens: 100 in A, 200 in B" in text
