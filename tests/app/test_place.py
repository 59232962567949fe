"""What is typed after ``:`` is the step that was meant, whatever the run looks like."""

import math
import time as clock_of_system
from bisect import bisect_right
from collections.abc import Iterator
from datetime import datetime, time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microscope_tui.app import (
    AtClock,
    AtEnd,
    AtShare,
    AtStep,
    BadPlace,
    BeforeNewest,
    FromShown,
    Place,
    StepPlace,
    parse_place,
    place_to_step,
    place_to_time,
    step_at_time,
)
from microscope_tui.runlog import safe_text

STEPS = st.integers(0, 10**12)
TIMES = st.lists(st.floats(0, 1e9), min_size=1, max_size=80)


@pytest.fixture(autouse=True)
def _central_europe(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    clock_of_system.tzset()
    yield
    monkeypatch.undo()
    clock_of_system.tzset()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("12410", AtStep(12410)),
        (" 12,410 ", AtStep(12410)),
        ("12k", AtStep(12_000)),
        ("1.5M", AtStep(1_500_000)),
        ("2.25K", AtStep(2250)),
        ("0", AtStep(0)),
        ("first", AtStep(1)),
        ("Last", AtEnd()),
        ("end", AtEnd()),
        ("50%", AtShare(0.5)),
        ("12.5%", AtShare(0.125)),
        ("+100", FromShown(100)),
        ("-2k", FromShown(-2000)),
        ("-1,000", FromShown(-1000)),
        ("14:30", AtClock(time(14, 30))),
        ("9:05", AtClock(time(9, 5))),
        ("14:30:05", AtClock(time(14, 30, 5), to_the_second=True)),
        ("-2h", BeforeNewest(7200)),
        ("-30min", BeforeNewest(1800)),
        ("-1.5d", BeforeNewest(129_600)),
        ("-90s", BeforeNewest(90)),
    ],
)
def test_every_kind_of_place_is_understood(text: str, place: Place) -> None:
    assert parse_place(text) == place


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "nothing is not a place: try 12k, 50%, -100, 14:30, -2h, first or last"),
        ("abc", "abc is not a place: try 12k"),
        ("12,41", "12,41 is not a place"),
        ("1e5", "is not a place"),
        ("٣", "is not a place"),
        ("--2", "is not a place"),
        ("-5w", "is not a place"),
        ("+50%", "is not a place"),
        ("9" * 40, "… is not a place"),
        ("\x1b[2J", "\N{REPLACEMENT CHARACTER}[2J is not a place"),
        ("120%", "120%: the run ends at 100%"),
        ("1.5", "1.5: a step is a whole number"),
        ("1.2345k", "1.2345k: a step is a whole number"),
        ("-5m", "-5m: write min for minutes, M for millions of steps"),
        ("2h", "2h: write -2h for a time before the newest"),
        ("+30min", "+30min: write -30min"),
        ("24:00", "24:00: not a time of day; the last one is 23:59:59"),
        ("7:60", "7:60: not a time of day"),
    ],
)
def test_what_is_no_place_is_said_with_what_could_be_typed(text: str, words: str) -> None:
    with pytest.raises(BadPlace) as caught:
        parse_place(text)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 90


@given(st.text(max_size=30))
def test_no_text_raises_anything_else(text: str) -> None:
    try:
        parse_place(text)
    except BadPlace as error:
        said = str(error)
    else:
        return
    assert safe_text(said, 500) == said


@given(STEPS)
def test_a_step_survives_being_written(step: int) -> None:
    for text in (f"{step}", f"{step:,}", f"{step // 1000}.{step % 1000:03}k"):
        assert parse_place(text) == AtStep(step)
    assert parse_place(f"+{step:,}") == FromShown(step)
    assert parse_place(f"-{step}") == FromShown(-step)


@given(
    st.one_of(
        STEPS.map(AtStep),
        st.floats(0, 1).map(AtShare),
        st.integers(-(10**13), 10**13).map(FromShown),
        st.just(AtEnd()),
    ),
    st.integers(0, 10**12),
    st.integers(0, 10**12),
)
def test_a_place_is_always_a_step_of_the_run(place: StepPlace, shown: int, newest: int) -> None:
    assert 1 <= place_to_step(place, shown=shown, newest=newest) <= max(1, newest)


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("50%", 600),
        ("0%", 1),
        ("100%", 1200),
        ("+100", 500),
        ("-100", 300),
        ("-2k", 1),
        ("1M", 1200),
        ("0", 1),
        ("last", 1200),
        ("7", 7),
    ],
)
def test_a_place_counts_from_where_we_are(text: str, step: int) -> None:
    place = parse_place(text)
    assert not isinstance(place, AtClock | BeforeNewest)
    assert place_to_step(place, shown=400, newest=1200) == step


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize(
    ("typed", "first", "newest", "found"),
    [
        ("14:30", "2026-11-23 08:00", "2026-11-24 16:00", "2026-11-24 14:30"),
        ("14:30", "2026-11-23 08:00", "2026-11-24 14:00", "2026-11-23 14:30"),
        ("14:30", "2026-11-24 14:30:00", "2026-11-24 14:40", "2026-11-24 14:30"),
        ("14:30", "2026-11-24 14:30:20", "2026-11-24 14:40", "2026-11-24 14:30"),
        ("14:30:30", "2026-11-24 14:30:20", "2026-11-24 14:40", "2026-11-24 14:30:30"),
        # the clock jumps over 02:30 on the 29th, and has it twice on the 25th of October
        ("02:30", "2026-03-27 08:00", "2026-03-29 08:00", "2026-03-28 02:30"),
        ("02:30", "2026-10-25 01:00", "2026-10-25 08:00", "2026-10-25 02:30+01:00"),
        ("02:30", "2026-10-25 01:00", "2026-10-25 02:15+01:00", "2026-10-25 02:30+02:00"),
        ("-2h", "2026-11-23 08:00", "2026-11-24 01:00", "2026-11-23 23:00"),
    ],
)
def test_a_time_is_the_latest_one_that_the_run_has(
    typed: str, first: str, newest: str, found: str
) -> None:
    place = parse_place(typed)
    assert isinstance(place, AtClock | BeforeNewest)
    assert place_to_time(place, first_s=at(first), newest_s=at(newest)) == at(found)


def test_a_time_of_day_that_the_run_does_not_have_is_said() -> None:
    times = {"first_s": at("2026-11-24 14:30:20"), "newest_s": at("2026-11-24 14:40")}
    for clock in (AtClock(time(14, 50)), AtClock(time(14, 30, 5), to_the_second=True)):
        with pytest.raises(BadPlace, match="is outside this run: 14:30:20 to 14:40:00"):
            place_to_time(clock, **times)


@pytest.mark.parametrize("newest_s", [math.nan, math.inf, 1e300, -1e300])
def test_invalid_times_are_reported(newest_s: float) -> None:
    with pytest.raises(BadPlace, match="go to a step"):
        place_to_time(AtClock(time(14, 30)), first_s=0.0, newest_s=newest_s)


@given(st.floats(0, 2e9), st.floats(0, 1e7), st.integers(0, 86_399))
def test_a_time_that_is_found_shows_on_the_clock_and_lies_in_the_run(
    first_s: float, length_s: float, second: int
) -> None:
    clock = time(second // 3600, second // 60 % 60, second % 60)
    place = AtClock(clock, to_the_second=True)
    try:
        found = place_to_time(place, first_s=first_s, newest_s=first_s + length_s)
    except BadPlace:
        assert length_s < 2 * 86_400
    else:
        assert first_s <= found <= first_s + length_s
        assert datetime.fromtimestamp(found).time() == clock


class Log:
    """Times of the steps from ``first`` on; remembers how often it was asked."""

    def __init__(self, times: list[float | None], first: int = 1) -> None:
        self.times, self.first, self.asked = times, first, 0

    def time_of(self, step: int) -> float | None:
        self.asked += 1
        assert self.first < step < self.first + len(self.times) - 1
        return self.times[step - self.first]

    def step_at(self, wanted_s: float) -> int:
        ends = self.times[0] or 0.0, self.times[-1] or 0.0
        last = self.first + len(self.times) - 1
        return step_at_time(wanted_s, (self.first, ends[0]), (last, ends[1]), self.time_of)


@given(TIMES, st.floats(-1, 1.1e9), st.integers(1, 10**9))
def test_the_step_at_a_time_is_what_a_search_through_all_finds(
    times: list[float], wanted_s: float, first: int
) -> None:
    times.sort()
    log = Log([*times], first)
    found = max(1, bisect_right(times, wanted_s)) - 1
    assert log.step_at(wanted_s) == first + found
    assert log.asked <= 7


@given(
    st.lists(st.one_of(st.none(), st.floats()), min_size=1, max_size=300),
    st.floats(),
)
def test_missing_and_disordered_times_end_at_a_step_of_the_run(
    times: list[float | None], wanted_s: float
) -> None:
    log = Log(times)
    assert 1 <= log.step_at(wanted_s) <= len(times)
    assert log.asked <= 40


@given(st.integers(2, 9), st.integers(0, 400))
def test_time_that_is_logged_now_and_then_is_found(every: int, wanted_s: int) -> None:
    times = [float(n) if n % every == 0 else None for n in range(201)]
    times[-1] = 200.0
    found = Log(times, first=0).step_at(wanted_s)
    assert found == (200 if wanted_s >= 200 else wanted_s - wanted_s % every)


def test_forty_questions_are_enough_for_any_run() -> None:
    asked = []

    def time_of(step: int) -> float:
        asked.append(step)
        return float(step)

    assert step_at_time(123_456_789.5, (1, 1.0), (10**12, 1e12), time_of) == 123_456_789
    assert len(asked) <= 40
