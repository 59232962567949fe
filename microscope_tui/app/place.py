"""What is typed after ``:``: a step, a share of the run, a distance from here, or a time.

* ``12410`` ``12,410`` ``12k``: a step; ``end`` is the newest
* ``50%``: this share of the steps of the run
* ``+100`` ``-2k``: steps from the shown one
* ``14:30``: the clock of this computer, on the latest day where the run has it
* ``-2h`` ``-30min``: before the newest record

In the text of a probe it is a token by the same rules, or ``e17``: the next one of expert 17.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta

from microscope_tui.runlog import safe_text

_MOST_CHARACTERS = 24
_NUMBER = re.compile(r"([+-]?)([0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(k?)")
_BEFORE = re.compile(r"-([0-9]+)(h|min)")
_CLOCK = re.compile(r"([0-9]{1,2}):([0-9]{2})")
_MINUTE_S = 60.0


class BadPlace(ValueError):
    """The typed text is not a place in this run; the message says what to type."""


@dataclass(frozen=True, slots=True)
class OfExpert:
    """The next token that chose this expert."""

    expert: int


def parse_place(text: str, *, shown: int, newest: int) -> int | time | timedelta:
    """A step (a number is not clamped to the run), a time of day, or a time before the newest.

    Raises:
        BadPlace: the text means none of them.
    """
    typed = text.strip()
    if len(typed) > _MOST_CHARACTERS:
        raise BadPlace(f"{safe_text(typed, _MOST_CHARACTERS)} is not a place: it is too long")
    if typed.lower() == "end":
        return newest
    if found := re.fullmatch(r"([0-9]{1,3})%", typed):
        if int(found[1]) > 100:
            raise BadPlace(f"{typed}: the run ends at 100%")
        return round(int(found[1]) / 100 * newest)
    if found := _NUMBER.fullmatch(typed):
        sign, number, thousands = found.groups()
        count = int(number.replace(",", "")) * (1000 if thousands else 1)
        if not sign:
            return count
        return max(0, min(newest, shown + (-count if sign == "-" else count)))
    if found := _BEFORE.fullmatch(typed):
        count = min(int(found[1]), 10**6)
        return timedelta(hours=count) if found[2] == "h" else timedelta(minutes=count)
    if found := _CLOCK.fullmatch(typed):
        if int(found[1]) > 23 or int(found[2]) > 59:
            raise BadPlace(f"{typed}: not a time of day; the last one is 23:59")
        return time(int(found[1]), int(found[2]))
    said = safe_text(typed or "nothing", _MOST_CHARACTERS)
    raise BadPlace(f"{said} is not a place: try 12k, 50%, -100, 14:30, -2h or end")


def step_at(
    when: time | timedelta, steps: Sequence[int], times: Sequence[float], newest_s: float | None
) -> int:
    """The last step that was logged at ``when`` or before.

    Args:
        when: a time of day, the latest one of the run; or a time before the newest record.
        steps: of the history, and their ``times``: Unix seconds, NaN where none was logged.
        newest_s: time of the newest record, if logged.

    Raises:
        BadPlace: the run has no such time of day, or no times.
    """
    if newest_s is None or not len(times) or times[0] != times[0]:
        raise BadPlace("this log has no times: go to a step")
    if isinstance(when, timedelta):
        wanted = newest_s - when.total_seconds()
    else:
        wanted = _latest(when, times[0], newest_s)
    logged = list(zip(steps, times, strict=False))  # the reader may be adding some
    return next((step for step, at in reversed(logged) if at <= wanted), steps[0])


def parse_token(text: str, *, shown: int, tokens: int, experts: int) -> int | OfExpert:
    """The token, or the expert, that ``text`` means.

    Raises:
        BadPlace: it means none in a text of so many tokens; the message says what to type.
    """
    typed = text.strip()
    if found := re.fullmatch(r"e([0-9]{1,6})", typed):
        if (expert := int(found[1])) >= experts:
            raise BadPlace(f"no expert {expert:,}: there are 0 to {experts - 1:,}")
        return OfExpert(expert)
    try:
        place = parse_place(typed, shown=shown, newest=tokens - 1)
    except BadPlace:
        place = time()
    if not isinstance(place, int):
        said = safe_text(typed or "nothing", _MOST_CHARACTERS)
        raise BadPlace(f"{said} is not a token: try 12k, 50%, -100, end, or e17 for expert 17")
    if place >= tokens:
        raise BadPlace(f"no token {place:,}: there are 0 to {tokens - 1:,}")
    return place


def _latest(clock: time, first_s: float, newest_s: float) -> float:
    """The latest moment of the run at which the clocks here show ``clock``."""
    try:
        began, ended = datetime.fromtimestamp(first_s), datetime.fromtimestamp(newest_s)
    except (OverflowError, OSError, ValueError):
        raise BadPlace("this log has no clock times: go to a step") from None
    for back in range(3):
        moment = datetime.combine(ended.date() - timedelta(days=back), clock).timestamp()
        if first_s - _MINUTE_S < moment <= newest_s:
            return moment
    raise BadPlace(f"{clock:%H:%M} is outside this run: {began:%H:%M:%S} to {ended:%H:%M:%S}")
