"""Layout of charts: stacks of equal width, each as high as fits.

The focused chart is always shown; charts without room are named.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from microscope_tui.lines.charts.chart import GUTTER

TWO_STACKS_FROM = 72
_GAP = 2
_LEAST = 5  # a title, three lines, and one below
_TIGHT = 4
_ALL_FROM = 3.5  # minimum height of a chart before charts are left out


@dataclass(frozen=True, slots=True)
class Placed:
    """One chart and its size."""

    name: str
    width: int
    height: int
    last: bool
    """Last of its stack: the axis labels are below it."""


@dataclass(frozen=True, slots=True)
class ChartLayout:
    """The charts of a screen, in stacks from left to right."""

    stacks: Sequence[Sequence[Placed]]
    hidden: Sequence[str]


def arranged(
    stacks: Sequence[Sequence[str]], focus: str, size: tuple[int, int], *, enlarged: bool = False
) -> ChartLayout:
    """Place charts in ``size`` cells.

    Args:
        stacks: their names, those of a stack from the most useful to the least.
        enlarged: the one in focus alone.
    """
    columns, rows = size
    names = [name for stack in stacks for name in stack]
    if enlarged:
        alone = [Placed(focus, columns, rows, last=True)]
        return ChartLayout([alone], [name for name in names if name != focus])
    stacks = [stack for stack in stacks if stack]
    if columns < TWO_STACKS_FROM and len(stacks) > 1:
        stacks = [_by_turns(stacks)]
    width = _stack_width(columns, len(stacks))
    placed = [_stacked(stack, names, focus, width, rows) for stack in stacks]
    shown = {chart.name for stack in placed for chart in stack}
    return ChartLayout(placed, [name for name in names if name not in shown])


def plot_area(columns: int, stacks: int = 1) -> tuple[int, int]:
    """Start and width of the time axis of the charts in the last of ``stacks``."""
    stacks = stacks if columns >= TWO_STACKS_FROM else 1
    width = _stack_width(columns, stacks)
    return (stacks - 1) * (width + _GAP) + GUTTER, max(1, width - GUTTER)


def _stack_width(columns: int, stacks: int) -> int:
    return (columns - _GAP * (stacks - 1)) // max(1, stacks)


def _by_turns(stacks: Sequence[Sequence[str]]) -> Sequence[str]:
    """All in one stack: the first of each, then the second of each."""
    longest = max(map(len, stacks))
    return [stack[at] for at in range(longest) for stack in stacks if at < len(stack)]


def _stacked(
    names: Sequence[str], order: Sequence[str], focus: str, width: int, rows: int
) -> Sequence[Placed]:
    """As many of ``names`` as fit, by ``order`` from the top."""
    all_fit = rows - 1 >= _ALL_FROM * len(names)
    room = len(names) if all_fit else max(1, (rows - 1) // _TIGHT)
    shown = list(names[:room])
    if focus in names and focus not in shown:
        shown[-1] = focus
    shown.sort(key=order.index)
    heights = _heights(rows - 1, len(shown))
    heights[-1] += 1
    last = len(shown) - 1
    return [
        Placed(name, width, height, last=at == last)
        for at, (name, height) in enumerate(zip(shown, heights, strict=True))
    ]


def _heights(rows: int, charts: int) -> list[int]:
    """The first one is twice as high if all are high enough."""
    height, rest = divmod(rows, charts + 1)
    if charts > 1 and height >= _LEAST:
        return [2 * height + rest, *[height] * (charts - 1)]
    height, rest = divmod(rows, charts)
    return [height + (at < rest) for at in range(charts)]
