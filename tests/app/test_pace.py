"""The budget is kept where four seconds between two redraws can keep it, without flapping."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from microscope_tui.app import (
    COARSE_FROM,
    INTERVALS_S,
    REMOTE_BUDGET,
    UNLIMITED,
    Pace,
    Traffic,
    budget_for,
    budget_of,
)

BUDGET = st.integers(1_000, 100_000)
TICK_S = 0.5


@dataclass
class Sitting:
    """A screen that redraws at its pace for as long as there is something new, in simulated time.

    ``cost(now, coarse)`` is the bytes of a redraw; ``period_s`` is the time between two records.
    """

    pace: Pace
    cost: Callable[[float, bool], int]
    period_s: float = 0.0
    now: float = 5000.0
    sent: list[tuple[float, int]] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)
    due: float = 0.0
    drawn: float = 0.0

    def __post_init__(self) -> None:
        self.traffic = Traffic(lambda: self.now)

    def go_on(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += TICK_S
            newest = self.now // self.period_s * self.period_s if self.period_s else self.now
            if self.now >= self.due and newest > self.drawn:
                size = self.cost(self.now, self.pace.coarse)
                self.traffic.add(size)
                self.sent.append((self.now, size))
                self.due, self.drawn = self.now + self.pace.interval_s, newest
            if self.now % 1.0 == 0 and self.pace.observe(self.traffic.bytes_per_s(), self.now):
                self.changes.append(self.now)

    def rate(self, seconds: float) -> float:
        """Bytes a second of the last so many seconds."""
        return sum(size for at, size in self.sent if at > self.now - seconds) / seconds


@settings(max_examples=60)
@given(BUDGET, st.floats(0.01, 3.7))
@example(1001, 0.5)  # all but its budget, at one interval or another
@example(1001, 1.0)
@example(1001, 3.8)
def test_a_constant_cost_ends_within_the_budget_and_stays_there(
    budget: int, seconds_each: float
) -> None:
    cost = int(budget * seconds_each)  # one redraw uses up so many seconds of the budget
    sitting = Sitting(Pace(budget), lambda now, coarse: cost)
    sitting.go_on(540)
    assert sitting.rate(400) <= budget
    assert all(at < sitting.now - 400 for at in sitting.changes)


@settings(max_examples=40)
@given(BUDGET, st.floats(0.01, 3.7), st.floats(0.1, 12.0))
def test_so_does_one_that_comes_with_the_records(
    budget: int, seconds_each: float, period_s: float
) -> None:
    cost = int(budget * seconds_each)
    sitting = Sitting(Pace(budget), lambda now, coarse: cost, period_s)
    sitting.go_on(140)
    settled = len(sitting.changes)
    sitting.go_on(400)
    assert sitting.rate(400) <= budget + cost / 400  # but for one redraw
    assert len(sitting.changes) - settled <= 4  # now and then ten seconds hold one record more


@settings(max_examples=40)
@given(BUDGET, st.floats(0.01, 3.7), st.floats(0.05, 1.0))
def test_cheaper_coarse_levels_do_not_make_it_swing(
    budget: int, seconds_each: float, share: float
) -> None:
    fine = int(budget * seconds_each)
    sitting = Sitting(Pace(budget), lambda now, coarse: int(fine * (share if coarse else 1.0)))
    sitting.go_on(1200)
    before = len(sitting.changes)
    sitting.go_on(2400)
    assert sitting.rate(2400) <= budget
    assert len(sitting.changes) - before <= 2400 / 300 * 3


@settings(max_examples=40)
@given(BUDGET, st.lists(st.tuples(st.floats(0.0, 3.7), st.integers(1, 200)), max_size=8))
def test_whatever_came_before_a_constant_cost_ends_within_the_budget(
    budget: int, phases: list[tuple[float, int]]
) -> None:
    sitting = Sitting(Pace(budget), lambda now, coarse: 0)
    for seconds_each, length in [*phases, (3.5, 400)]:
        cost = int(budget * seconds_each)
        sitting.cost = lambda now, coarse, cost=cost: cost  # type: ignore[misc]
        sitting.go_on(length)
    assert sitting.rate(320) <= budget
    assert not [at for at in sitting.changes if at > sitting.now - 320]


def test_too_much_is_answered_within_seconds_and_far_enough() -> None:
    sitting = Sitting(Pace(10_000), lambda now, coarse: 25_000)
    sitting.go_on(5)
    assert sitting.changes
    sitting.go_on(25)
    assert sitting.pace.interval_s == 3.8
    assert sitting.pace.coarse


def test_one_burst_costs_one_notch_and_is_forgiven() -> None:
    sitting = Sitting(Pace(10_000), lambda now, coarse: 0)
    sitting.traffic.add(120_000)  # the first picture
    sitting.go_on(9)
    assert sitting.pace.interval_s == 1.0
    sitting.go_on(20)
    assert sitting.pace.interval_s == 1.0
    sitting.go_on(3)
    assert sitting.pace.interval_s == 0.5


def test_recovery_takes_twenty_calm_seconds_a_notch_and_half_of_the_budget() -> None:
    pace = Pace(1000)
    pace.observe(20_000, 0.0)
    assert pace.interval_s == 3.8
    for second in range(1, 200):
        pace.observe(501, second)
    assert pace.interval_s == 3.8
    changed = [second for second in range(200, 300) if pace.observe(499, second)]
    assert changed == [220, 240, 260]
    assert pace.interval_s == 0.5


def test_it_decides_once_a_second_however_often_it_is_asked() -> None:
    pace = Pace(1000)
    pace.observe(0, 0.0)
    assert not pace.observe(50_000, 0.9)
    assert pace.observe(50_000, 1.0)


@given(st.lists(st.floats(0, 1e9), max_size=30))
def test_without_a_budget_nothing_ever_changes(rates: list[float]) -> None:
    pace = Pace()
    assert not any(pace.observe(rate, second) for second, rate in enumerate(rates))
    assert (pace.interval_s, pace.coarse) == (0.5, False)
    assert pace.words().startswith("net ")


@given(BUDGET, st.lists(st.floats(0, 1e6), max_size=60))
def test_only_slow_screens_are_coarse(budget: int, rates: list[float]) -> None:
    pace = Pace(budget)
    for second, rate in enumerate(rates):
        pace.observe(rate, 4.0 * second)
        assert pace.coarse == (pace.interval_s >= INTERVALS_S[COARSE_FROM])


@pytest.mark.parametrize(
    ("budget", "rate", "words"),
    [
        *((None, 0, "net 0 kB/s"), (None, 40, "net 0 kB/s"), (None, 6963, "net 6.8 kB/s")),
        *((None, 71_000, "net 69 kB/s"), (10_240, 9_000, "net 8.8 of 10 kB/s")),
        *((10_240, 10_300, "net 10 of 10 kB/s, every 1 s"),),
        *((2500, 1e9, "net 976562 of 2.4 kB/s, every 4 s"),),
    ],
)
def test_the_words_say_what_is_sent_what_may_be_and_how_often(
    budget: int | None, rate: float, words: str
) -> None:
    pace = Pace(budget)
    pace.observe(rate, 0.0)
    assert pace.words() == words


def test_words_stand_still_while_the_rate_trembles_but_not_when_it_crosses_the_budget() -> None:
    pace = Pace(10_240)
    said = []
    for second, rate in enumerate((7000, 7300, 6800, 7200, 9900, 10_242, 0)):
        pace.observe(rate, second)
        said.append(pace.words().removesuffix(", every 1 s"))
    assert said[:4] == ["net 6.8 of 10 kB/s"] * 4
    assert said[4:] == ["net 9.7 of 10 kB/s", "net 10 of 10 kB/s", "net 0 of 10 kB/s"]


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        *(("10k", 10_240), ("10kB", 10_240), ("10 kB/s", 10_240), ("2500", 2500)),
        *(
            ("1.5k", 1536),
            ("1M", 1 << 20),
            ("", None),
            ("none", UNLIMITED),
            ("  ", None),
            ("100", 100),
        ),
    ],
)
def test_budgets_are_read_as_people_write_them(text: str, budget: int | None) -> None:
    assert budget_of(text) == budget


@pytest.mark.parametrize("text", ["0", "10", "-5k", "fast", "10 apples", "1e4", "\x1b[2Jk", "k"])
def test_other_budgets_are_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(
        ValueError, match="write bytes per second from 100 up, for example 10k"
    ) as no:
        budget_of(text)
    assert "\x1b" not in str(no.value)


@pytest.mark.parametrize(
    "environment",
    [
        {"SSH_CONNECTION": "192.0.2.1 22 192.0.2.2 22", "TERM": "xterm-256color"},
        *({"TMUX": "/tmp/tmux-0/default,1,0", "TERM": "xterm"}, {"STY": "1.pts"}),
        *({"TERM": "screen"}, {"TERM": "screen-256color"}, {"TERM": "tmux-256color"}),
        {"TERM": "screen.xterm-256color"},
    ],
)
def test_where_the_line_may_be_thin_there_is_a_budget_unless_one_is_asked_for(
    environment: dict[str, str],
) -> None:
    assert budget_for(None, environment) == REMOTE_BUDGET == 10_000
    assert budget_for(2500, environment) == 2500
    assert budget_for(UNLIMITED, environment) is None


def test_on_the_own_machine_there_is_none_unless_asked_for() -> None:
    here = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "TMUX": "", "SSH_CONNECTION": ""}
    assert budget_for(None, here) is None
    assert budget_for(10_240, here) == 10_240


def test_a_screen_is_never_older_than_four_seconds() -> None:
    assert max(INTERVALS_S) < 4.0
