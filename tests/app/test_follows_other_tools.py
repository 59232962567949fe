"""The screen follows the files of other tools while they are written, torn steps included.

"Within a second" is about the program, not the machine: what counts is the time for which the
reader chose to wait between two looks, and one default interval of the screen.
"""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from microscope_tui.kit.redraws import Redraws
from microscope_tui.kit.session import Preferences
from microscope_tui.sources.dumps import SETTLED_S
from tests.app.pilot import AppPilot, running
from tests.app.test_time_machine import step_in
from tests.sources.live_writers import FIRST, LAYERS, WRITERS, Live, SGLang

MOST_S = 1.0
READS = 2
"""A read that was under way may have missed what was written; the next one has not."""


class Waits:
    """What the program waits for: of the reader in seconds, of the screen in looks."""

    def __init__(self, app: AppPilot, patch: pytest.MonkeyPatch) -> None:
        self.reader_s, self.reads, self.looks, self._since = 0.0, 0, 0, 0.0
        events, source = app.session.reader.events, app.watch.source
        wait, read, look = events.wait, source.read, Redraws._look

        def waited(timeout_s: float) -> bool:
            begun = time.monotonic()
            found = wait(timeout_s)
            took = time.monotonic() - max(begun, self._since)
            self.reader_s += max(0.0, min(timeout_s, took))
            return found

        def counted(max_bytes: int) -> object:
            self.reads += 1
            return read(max_bytes)

        async def looked(redraws: Redraws) -> None:
            self.looks += 1
            await look(redraws)

        patch.setattr(events, "wait", waited)
        patch.setattr(source, "read", counted)
        patch.setattr(Redraws, "_look", looked)

    def begin(self) -> None:
        """Count from now on, also of a wait that is under way."""
        self._since, self.reader_s = time.monotonic(), 0.0


@pytest.mark.parametrize("begin", WRITERS, ids=lambda writer: writer.__name__.lower())
async def test_the_screen_shows_a_step_within_a_second_and_keeps_all_before_a_torn_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begin: Callable[[Path], Live]
) -> None:
    writer = begin(tmp_path)
    async with running(writer.path, (120, 30)) as app:
        await app.until(lambda: step_in(app.text("header")) == FIRST, "the first steps")
        waits = Waits(app, monkeypatch)
        step = FIRST + 1
        writer.tear(step)
        await read_again(app, waits)
        assert (shown(app), app.newest_step) == (FIRST, FIRST)

        writer.finish(step)
        waits.begin()
        await app.reads(step)
        read_s, looks = waits.reader_s, waits.looks
        await app.until(lambda: shown(app) == step, "the step is shown")
        settling_s = SETTLED_S if begin is SGLang else 0.0
        assert read_s + Preferences().interval_s <= MOST_S + settling_s
        assert waits.looks - looks <= 1
        assert app.watch.defects.count == 0

        writer.tear(step + 1)
        writer.die()
        await read_again(app, waits)
        looks = waits.looks
        await app.until(lambda: waits.looks > looks, "the screen looks again")
        assert (shown(app), app.newest_step) == (step, step)
        error = app.watch.error or ""
        assert ("recorder" in error) == (begin is SGLang)  # half of a dump is an error of its own
        assert "reading stopped" not in error


async def read_again(app: AppPilot, waits: Waits) -> None:
    before = waits.reads
    await app.until(lambda: waits.reads >= before + READS, "the reader looks again")


def shown(app: AppPilot) -> int:
    assert all(layer in app.text("label") for layer in LAYERS)
    return step_in(app.text("header"))


def planted(folder: Path, key: str) -> Path:
    """A table of counts whose L4 collapses to two of eight experts at step 31."""
    table = folder / "logs" / "metrics.csv"
    table.parent.mkdir()
    cells = [key.format(layer, expert) for layer in (3, 4) for expert in range(8)]
    rows: list[tuple[object, ...]] = [("step", *cells)]
    for step in range(1, 401):
        even = [100 + (step * place) % 7 for place in range(1, 5)]
        even += [200 - count for count in even]
        rows.append((step, *even, *(even if step < 31 else [400, 400, *[0] * 6])))
    table.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    return table.parent


def worst(app: AppPilot) -> str:
    found = app.watch.diagnosis.findings() if app.watch.diagnosis is not None else []
    return found[0].rule if found else ""


async def test_m_asks_for_k_once_and_the_verdict_is_the_same_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    logs, remember = planted(tmp_path, "load {}/{}"), Preferences(remember=True)
    async with running(logs, (120, 30), preferences=remember) as app:
        await app.sees("Looks like: load N/M (N the layer", "waiting")
        assert "--map 'tokens_per_expert=load\\ (?P<layer>" in app.text("waiting")
        await app.press("m", "x")
        await app.sees("experts per token?", "waiting")
        await app.press("2", "enter")
        await app.until(lambda: worst(app) == "COLLAPSE")
        assert [router.name for router in app.session.run.routers] == ["L3", "L4"]
    async with running(logs, (120, 30), preferences=remember) as app:
        await app.until(lambda: worst(app) == "COLLAPSE")
        await app.press("m")
        await app.sees("Looks like: load N/M (N the layer", "waiting")


async def test_m_asks_for_k_where_only_that_is_unknown(tmp_path: Path) -> None:
    async with running(planted(tmp_path, "router/tokens_per_expert/{}/{}"), (120, 30)) as app:
        await app.sees("without top_k a collapse looks the same", "verdict")
        await app.press("m", "2", "enter")
        await app.until(lambda: worst(app) == "COLLAPSE")
        await app.press("m")
        await app.until(lambda: worst(app) == "STARVED")
