"""What is typed after ``:``: a step, a share of the run, a distance from here, or a time.

* ``12410`` ``12,410`` ``12k`` ``1.5M``: a step; ``first``, ``last`` and ``end`` name two of them
* ``50%``: this share of the steps of the run
* ``+100`` ``-2k``: steps from the shown one
* ``14:30`` ``14:30:05``: the clock of this computer, on the latest day where the run has it
* ``-90s`` ``-30min`` ``-2h`` ``-1d``: before the newest record

A place is only what was meant. Where it lies is worked out from the numbers of a run; a time is
found by ``step_at_time``, which asks for the times of at most 40 steps.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from fractions import Fraction

from microscope_tui.runlog import safe_text

_MOST_CHARACTERS = 24
_MOST_PROBES = 40
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_NUMBER = r"([0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(\.[0-9]+)?"
_MINUTE_S = 60.0


class BadPlace(ValueError):
    """The typed text is not a place in this run; the message says what to type."""


@dataclass(frozen=True, slots=True)
class AtStep:
    """A step by its number."""

    step: int


@dataclass(frozen=True, slots=True)
class AtShare:
    """A share of the steps from 1 to the newest, between 0 and 1."""

    share: float


@dataclass(frozen=True, slots=True)
class FromShown:
    """So many steps after the shown one; before it where negative."""

    by: int


@dataclass(frozen=True, slots=True)
class AtEnd:
    """The newest step."""


@dataclass(frozen=True, slots=True)
class AtClock:
    """A time of day, without its day."""

    clock: time
    to_the_second: bool = False


@dataclass(frozen=True, slots=True)
class BeforeNewest:
    """So many seconds before the newest record."""

    seconds: float


StepPlace = AtStep | AtShare | FromShown | AtEnd
TimePlace = AtClock | BeforeNewest
Place = StepPlace | TimePlace


def parse_place(text: str) -> Place:
    """The place that ``text`` means.

    Raises:
        BadPlace: it means none.
    """
    typed = text.strip()
    if not typed or len(typed) > _MOST_CHARACTERS:
        raise _bad(typed or "nothing")
    word = typed.lower()
    if word == "first":
        return AtStep(1)
    if word in ("last", "end"):
        return AtEnd()
    if found := re.fullmatch(r"([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?", typed):
        return _clock(typed, found)
    if found := re.fullmatch(rf"([+-]?){_NUMBER}([A-Za-z%]*)", typed):
        sign, whole, fraction, unit = found.groups(default="")
        return _measured(typed, sign, Fraction(whole.replace(",", "") + fraction), unit)
    raise _bad(typed)


def place_to_step(place: StepPlace, *, shown: int, newest: int) -> int:
    """The step at ``place``, within 1 … ``newest``; the log need not hold it."""
    match place:
        case AtStep(step):
            wanted = step
        case AtShare(share):
            wanted = round(share * newest)
        case FromShown(by):
            wanted = shown + by
        case AtEnd():
            wanted = newest
    return max(1, min(wanted, newest))


def place_to_time(place: TimePlace, *, first_s: float, newest_s: float) -> float:
    """The time at ``place`` in a run with records from ``first_s`` to ``newest_s`` (epoch).

    Raises:
        BadPlace: the run does not have that time of day, or logs no usable times.
    """
    if isinstance(place, BeforeNewest):
        return newest_s - place.seconds
    began_s = first_s if place.to_the_second else first_s - _MINUTE_S
    try:
        for moment in _moments(place.clock, newest_s):
            if began_s < moment <= newest_s or moment == first_s:
                return moment
        began, ended = (f"{datetime.fromtimestamp(at):%H:%M:%S}" for at in (first_s, newest_s))
    except (OverflowError, ValueError, OSError):
        raise BadPlace("this log has no clock times: go to a step") from None
    raise BadPlace(f"{place.clock} is outside this run: {began} to {ended}")


def step_at_time(
    wanted_s: float,
    first: tuple[int, float],
    last: tuple[int, float],
    time_of: Callable[[int], float | None],
) -> int:
    """The last step whose record is not later than ``wanted_s``, from the first to the last step.

    Where times run backwards it is one of the places at which they pass ``wanted_s``. Where a
    step has no time its neighbours are asked.

    Args:
        first: step and time of the first record; ``last`` of the last one.
        time_of: the time of a step in between, ``None`` where none is logged.
    """
    (low, low_s), (high, high_s) = first, last
    if high <= low or not low_s <= wanted_s:
        return low
    if high_s <= wanted_s:
        return high
    probes = 0
    while high - low > 1:
        for step in _outwards(low, high):
            if probes == _MOST_PROBES:
                return low
            probes += 1
            at = time_of(step)
            if at is not None and math.isfinite(at):
                break
        else:  # nothing in between has a time
            return low
        if at <= wanted_s:
            low = step
        else:
            high = step
    return low


def _outwards(low: int, high: int) -> Iterator[int]:
    """The middle between two steps, then steps on both sides of it, further and further away."""
    middle = (low + high) // 2
    yield middle
    distance = 1
    while middle - distance > low or middle + distance < high:
        if middle - distance > low:
            yield middle - distance
        if middle + distance < high:
            yield middle + distance
        # Beside each other at first, since time may be logged at every tenth step; then wider.
        distance += 1 if distance < 10 else distance // 2


def _measured(typed: str, sign: str, number: Fraction, unit: str) -> Place:
    """A number with a unit: of steps, of time, or a percentage."""
    if unit == "%" and not sign:
        if number > 100:
            raise BadPlace(f"{safe_text(typed, _MOST_CHARACTERS)}: the run ends at 100%")
        return AtShare(float(number / 100))
    unit = "k" if unit == "K" else unit
    if unit in _UNITS:
        steps = number * _UNITS[unit]
        if steps.denominator > 1:
            raise BadPlace(f"{safe_text(typed, _MOST_CHARACTERS)}: a step is a whole number")
        return FromShown(int(steps) * (-1 if sign == "-" else 1)) if sign else AtStep(int(steps))
    if unit == "m":
        raise BadPlace(
            f"{safe_text(typed, _MOST_CHARACTERS)}: write min for minutes, M for millions of steps"
        )
    if unit.lower() not in _SECONDS:
        raise _bad(typed)
    if sign != "-":
        before = safe_text(typed.lstrip("+"), _MOST_CHARACTERS)
        raise BadPlace(
            f"{safe_text(typed, _MOST_CHARACTERS)}: write -{before} for a time before the newest"
        )
    return BeforeNewest(float(number) * _SECONDS[unit.lower()])


def _clock(typed: str, found: re.Match[str]) -> AtClock:
    hour, minute, second = (int(part) for part in found.groups(default="0"))
    if hour > 23 or minute > 59 or second > 59:
        raise BadPlace(f"{typed}: not a time of day; the last one is 23:59:59")
    return AtClock(time(hour, minute, second), to_the_second=found[3] is not None)


def _moments(clock: time, until_s: float) -> Iterator[float]:
    """When the clocks here show ``clock``, backwards from the day of ``until_s``."""
    day = datetime.fromtimestamp(until_s).date()
    for back in range(3):  # today's may be later; another day may skip it for summer time
        for fold in (1, 0):  # and one may have it twice
            then = datetime.combine(day - timedelta(days=back), clock.replace(fold=fold))
            moment = then.timestamp()
            if moment <= until_s and datetime.fromtimestamp(moment).time() == clock:
                yield moment


def _bad(typed: str) -> BadPlace:
    tries = "12k, 50%, -100, 14:30, -2h, first or last"
    return BadPlace(f"{safe_text(typed, _MOST_CHARACTERS)} is not a place: try {tries}")
