"""What screens say of a silent run: by its own pauses; ``state`` in JSON counts without them."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from microscope_tui.draw import frame
from microscope_tui.draw.export import view_json
from microscope_tui.draw.glyphs import Glyphs
from microscope_tui.draw.spans import plain
from microscope_tui.watch import RunWatch, state, view_of
from tests.conftest import header, open_log, step

Paced = Callable[..., RunWatch]


@pytest.fixture
def paced(write_log: Any, balanced: Any) -> Paced:
    """``paced(times, events, planned)``: a log of steps and events at these times."""

    def make(times: list[float], events: Sequence[float] = (), planned: int = 99) -> RunWatch:
        steps = [step(n, [balanced()] * 3, 2048, time=time) for n, time in enumerate(times, 1)]
        evaluations = [{"kind": "event", "event": "eval", "time": time} for time in events]
        records = sorted([*steps, *evaluations], key=lambda record: record["time"])
        return open_log(write_log([header(planned_steps=planned), *records]))

    return make


def said(watch: RunWatch, silent_s: float, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("microscope_tui.watch.run_watch.age_of", lambda *_: silent_s)
    text = plain(frame.header(view_of(watch), 120, Glyphs.BRAILLE))
    return text.split("● ")[1].split("   ")[0]


EVEN = [1e9 + 2 * n for n in range(9)]
SLOW = [1e9 + 20 * n for n in range(9)]
PAUSED = [*EVEN[:5], *(time + 300 for time in EVEN[5:])]


@pytest.mark.parametrize(
    ("times", "silent_s", "words"),
    [
        (EVEN, 59, "slow 50 s"),
        (EVEN, 61, "stalled 1 min (usually 2 s)"),
        (EVEN, 601, "crashed? 10 min"),
        (SLOW, 199, "slow 3 min"),  # 10 × the median
        (SLOW, 240, "stalled 4 min (usually 20 s)"),
        ([1e9 + n / 4 for n in range(9)], 61, "stalled 1 min (usually 0.25 s)"),
        ([1e9 + 300 * n for n in range(9)], 3001, "crashed? 50 min"),
        (PAUSED, 599, "slow 9 min"),  # 2 × the longest
        (PAUSED, 602, "slow 10 min"),
        (PAUSED, 605, "crashed? 10 min"),
    ],
)
def test_a_run_is_stalled_after_the_longest_of_a_minute_ten_steps_and_two_long_pauses(
    paced: Paced, times: list[float], silent_s: float, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said(paced(times), silent_s, monkeypatch) == words


def test_an_event_breaks_a_pause(paced: Paced, monkeypatch: pytest.MonkeyPatch) -> None:
    events = [EVEN[4] + 30 * n for n in range(1, 11)]
    assert said(paced(PAUSED), 100, monkeypatch) == "slow 1 min"
    assert said(paced(PAUSED, events), 100, monkeypatch) == "stalled 1 min (usually 2 s)"


def test_the_wait_for_a_restart_is_no_pause(
    write_log: Any, balanced: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [balanced()] * 3
    steps = [step(n, rows, 2048, time=1e9 + n) for n in range(1, 9)]
    later = [step(n, rows, 2048, time=2e9 + n) for n in range(9, 20)]
    again = header(resumed_at_step=9)
    watch = open_log(write_log([header(), *steps, again, *later]))
    assert said(watch, 70, monkeypatch) == "stalled 1 min (usually 1 s)"


def test_at_its_last_planned_step_it_is_finished_and_json_keeps_its_words(
    paced: Paced, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = paced(EVEN, planned=9)
    assert said(watch, 3700, monkeypatch) == "finished 1 h ago (no end record)"
    assert json.loads(view_json(view_of(watch)))["state"] == "crashed?"
    assert said(watch, 100, monkeypatch) == "stalled 1 min (usually 2 s)"
    assert json.loads(view_json(view_of(watch)))["state"] == "stale"


def test_a_slow_step_is_told_in_minutes() -> None:  # of a writer that logs no end
    found = state.life_of(state.RunState.STALE, 1e5, [300.0], 0.0, 1, None)
    assert found.remark == "usually 5 min"


def test_in_a_narrow_window_remarks_go_first(paced: Paced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microscope_tui.watch.run_watch.age_of", lambda *_: 250.0)
    view = replace(view_of(paced(EVEN)), name="a-long-name-of-a-run")
    for columns in (40, 60, 80, 120):
        text = plain(frame.header(view, columns, Glyphs.BRAILLE))
        assert "stalled 4 min" in text
        assert ("usually" in text) == (columns >= 80)
    for columns, others in ((40, "1 other CRIT"), (80, "1 other run CRITICAL: big")):
        text = plain(frame.header(view, columns, Glyphs.BRAILLE, others=["big"]))
        assert (others in text, "stalled 4 min" in text) == (True, True)
