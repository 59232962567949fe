"""Labels at both ends of the time ribbon are whole, whatever the axis counts."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from microscope_tui.draw.spans import plain
from microscope_tui.draw.time_line import Axis, ribbon
from microscope_tui.watch import RunView, RunWatch, view_of

HOUR, DAY = 3600.0, 86400.0
BEGAN = 1_795_560_003.0


@pytest.fixture
def whole(synthetic: Callable[..., RunWatch]) -> RunView:
    return view_of(synthetic("healthy", routers=2, steps=60))


def lasting(view: RunView, seconds: float) -> RunView:
    columns = len(view.timeline.axis)
    times = [BEGAN + seconds * at / columns for at in range(columns)]
    record: Any = view.record
    changed = type(record)(**{name: getattr(record, name) for name in record.__struct_fields__})
    changed.time = BEGAN + seconds
    return replace(
        view,
        run=replace(view.run, time=BEGAN),
        record=changed,
        timeline=replace(view.timeline, times=times),
    )


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
@pytest.mark.parametrize("shown", ["live", "PLAYING 16x, now 12,345"])
@pytest.mark.parametrize("seconds", [90.0, 2 * HOUR, 20 * HOUR, 40 * DAY])
@pytest.mark.parametrize("axis", [Axis.CLOCK, Axis.RUN_TIME])
def test_no_label_of_time_is_cut(
    whole: RunView, axis: Axis, seconds: float, shown: str, columns: int
) -> None:
    text = plain(ribbon(lasting(whole, seconds), columns, shown, axis))
    assert len(text) <= columns
    start, end = text[:8].strip(), text.split("▏")[-1].strip()
    clock, day = r"\d\d:\d\d(:\d\d)?", r"\d\d [A-Z][a-z]{2}"
    if axis is Axis.CLOCK:
        assert re.fullmatch(day if seconds > 2 * DAY else r"\d\d:\d\d", start), text
        assert re.match(rf"({day} )?{clock} ", end + " "), text
    else:
        assert re.fullmatch(r"\d+[smhd]( \d\d[smh])?", start), text
        assert re.match(r"\d+[smhd]( \d\d[smh])? ", end + " "), text
    word = re.split("[, ]", shown)[0]
    assert word in end, text
    assert not re.search(r"now [\d,]*$", end) or shown.split(", ", 1)[1] in end, text
