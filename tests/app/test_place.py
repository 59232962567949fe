"""What is typed after ``:`` is the step that was meant, in any run."""

import math
import time as clock_of_system
from collections.abc import Iterator
from datetime import datetime, time, timedelta

import pytest
from hypothesis import given, strategies as st

from microscope_tui.extensions.anatomy.screens import OfExpert, parse_token
from microscope_tui.kit.time_cursor import BadPlace, parse_place, step_at
from microscope_tui.runlog import safe_text

STEPS = st.integers(0, 10**12)


def place(text: str) -> int | time | timedelta:
    return parse_place(text, shown=400, newest=1200)


@pytest.fixture(autouse=True)
def _central_europe(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    clock_of_system.tzset()
    yield
    monkeypatch.undo()
    clock_of_system.tzset()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        *(("12410", 12410), (" 12,410 ", 12410), ("12k", 12_000), ("0", 0), ("End", 1200)),
        *(("50%", 600), ("0%", 0), ("100%", 1200)),
        *(("+100", 500), ("-100", 300), ("-2k", 0), ("+1,000", 1200)),
        ("14:30", time(14, 30)),
        ("9:05", time(9, 5)),
        ("-2h", timedelta(hours=2)),
        ("-30min", timedelta(minutes=30)),
    ],
)
def test_every_kind_of_place_is_understood(text: str, found: object) -> None:
    assert place(text) == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "nothing is not a place: try 12k, 50%, -100, 14:30, -2h or end"),
        *((text, f"{text} is not a place") for text in ("12,41", "1e5", "٣", "--2", "-5w", "+50%")),
        *((text, f"{text} is not a place") for text in ("1.5M", "2h", "14:30:05")),
        ("9" * 40, "… is not a place: it is too long"),
        ("\x1b[2J", "\N{REPLACEMENT CHARACTER}[2J is not a place"),
        ("120%", "120%: the run ends at 100%"),
        ("24:00", "24:00: not a time of day; the last one is 23:59"),
        ("7:60", "7:60: not a time of day"),
    ],
)
def test_any_other_text_is_refused_with_what_could_be_typed(text: str, words: str) -> None:
    with pytest.raises(BadPlace) as caught:
        place(text)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 90


@given(st.text(max_size=30))
def test_no_text_raises_anything_else(text: str) -> None:
    try:
        place(text)
    except BadPlace as error:
        message = str(error)
        assert safe_text(message, 500) == message


@given(STEPS)
def test_a_step_survives_being_written(step: int) -> None:
    for text in (f"{step}", f"{step:,}"):
        assert place(text) == step
    assert place(f"{step}k") == 1000 * step


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize(
    ("typed", "first", "newest", "found"),
    [
        ("14:30", "2026-11-23 08:00", "2026-11-24 16:00", "2026-11-24 14:30"),
        ("14:30", "2026-11-23 08:00", "2026-11-24 14:00", "2026-11-23 14:30"),
        ("14:30", "2026-11-24 14:30:00", "2026-11-24 14:40", "2026-11-24 14:30"),
        ("-2h", "2026-11-23 08:00", "2026-11-24 01:00", "2026-11-23 23:00"),
        ("-30min", "2026-11-23 08:00", "2026-11-24 01:00", "2026-11-24 00:30"),
    ],
)
def test_a_time_is_the_latest_of_the_run(typed: str, first: str, newest: str, found: str) -> None:
    when = place(typed)
    assert not isinstance(when, int)
    steps = range(1, 1 + round(at(newest) - at(first)) + 1)  # one a second
    times = [at(first) + n for n in range(len(steps))]
    assert step_at(when, steps, times, at(newest)) == 1 + at(found) - at(first)


def test_a_time_of_day_that_the_run_does_not_have_is_refused() -> None:
    times = [at("2026-11-24 14:30:20"), at("2026-11-24 14:40")]
    assert step_at(time(14, 30), [7, 8], times, times[1]) == 7  # within its first minute
    with pytest.raises(BadPlace, match="14:50 is outside this run: 14:30:20 to 14:40:00"):
        step_at(time(14, 50), [7, 8], times, times[1])


@pytest.mark.parametrize("newest_s", [math.nan, math.inf, 1e300, -1e300, None])
def test_invalid_times_are_reported(newest_s: float | None) -> None:
    with pytest.raises(BadPlace, match="go to a step"):
        step_at(time(14, 30), [1], [0.0], newest_s)
    with pytest.raises(BadPlace, match="go to a step"):
        step_at(timedelta(hours=1), [1], [math.nan], 1.0)
    with pytest.raises(BadPlace, match="go to a step"):
        step_at(timedelta(hours=1), [], [], 1.0)


@given(st.lists(st.one_of(st.just(math.nan), st.floats(0, 1e9)), max_size=80), st.integers(0, 400))
def test_missing_or_disordered_times_end_at_a_step_of_a_run(times: list[float], hours: int) -> None:
    times = [5e8, *times]
    steps = range(3, 3 + len(times))
    found = step_at(timedelta(hours=hours), steps, times, 5e8)
    assert found in steps
    assert found == 3 or times[found - 3] <= 5e8 - 3600 * hours


@pytest.mark.parametrize(
    ("typed", "found"), [("12", 12), ("50%", 50), ("-5", 35), ("end", 99), ("e7", OfExpert(7))]
)
def test_a_token_is_found_by_the_same_rules_or_by_its_expert(typed: str, found: object) -> None:
    assert parse_token(typed, shown=40, tokens=100, experts=8) == found


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("100", "no token 100: there are 0 to 99"),
        ("e8", "no expert 8: there are 0 to 7"),
        ("14:30", "14:30 is not a token: try 12k, 50%"),
        ("first", "first is not a token"),
    ],
)
def test_a_token_that_does_not_exist_is_refused(typed: str, words: str) -> None:
    with pytest.raises(BadPlace, match=words):
        parse_token(typed, shown=40, tokens=100, experts=8)
