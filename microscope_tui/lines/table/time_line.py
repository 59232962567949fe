"""The time ribbon, and the line of notes below it with the ticks of events."""

from collections.abc import Sequence

from microscope_tui.lines import words
from microscope_tui.lines.axis import DAYS_FROM_S, Axis, axis_label, shorter_labels
from microscope_tui.lines.glyphs import Glyphs
from microscope_tui.lines.spans import (
    ROLE_OF_SEVERITY,
    Line,
    Span,
    line_width,
    listed,
    merged,
    pad,
    spread,
    width_of,
)
from microscope_tui.lines.table.layout import TableLayout
from microscope_tui.watch import Mark, RunView, column_of

_HEIGHTS = {1: "~▂", 2: "!▄", 3: "#▇", 4: "?▆"}
_LEFT = 8  # cells before the first column, of the ribbon and of the notes


def ribbon(view: RunView, columns: int, glyphs: Glyphs, shown: str, axis: Axis = Axis.STEP) -> Line:
    """The window as one line: healthy, warning, critical; with the cursor at the shown step."""
    cells = _cells(view, ribbon_width(columns), glyphs)
    line = [Span(_start(view, axis), "dim"), *merged(cells)]
    now = axis_label(axis, view.step, view.record.time if view.record else None, _began(view))
    line.append(Span("▏", "accent" if view.cursor is None else "faint"))
    room = columns - line_width(line) - 2
    ends = [(n, s) for s in (shown, shown.split(", ")[0]) for n in shorter_labels(now)]
    now, shown = next(((n, s) for n, s in ends if width_of(n + s) < room), ends[-1])
    return pad([*line, Span(f" {now} ", "value"), Span(shown, "accent"), Span(" ")], columns)


def aligned_ribbon(
    view: RunView, columns: int, glyphs: Glyphs, plot: tuple[int, int], axis: Axis = Axis.STEP
) -> Line:
    """The ribbon right below a chart, column by column the same steps.

    ``plot``: where the time axis of the chart begins, and how wide it is.
    """
    left, width = plot
    cells = _cells(view, width, glyphs)
    start = pad([Span(_start(view, axis).strip(), "dim"), Span(" ")], left, "right")
    return pad([*start, *merged(cells)], columns)


def _cells(view: RunView, width: int, glyphs: Glyphs) -> list[Span]:
    ascii_only = glyphs is Glyphs.ASCII
    cells = [_cell(mark, ascii_only) for mark in view.ribbon[:width]]
    at = column_of(view.step, view.window, len(cells)) if cells else None
    if view.cursor is not None and at is not None:
        cells[at] = Span("|" if ascii_only else "┃", "accent")
    return cells


def ribbon_width(columns: int) -> int:
    """Columns of the time ribbon on a screen of ``columns`` cells."""
    return max(8, columns - (40 if columns >= 72 else 34))


def notes(
    view: RunView,
    layout: TableLayout,
    glyphs: Glyphs,
    watching: Sequence[str] = (),
    cursor: str = "",
) -> Line:
    """The line under the ribbon: events, and how much is hidden.

    Args:
        watching: how changes of the log are noticed, and what that limits.
        cursor: what the cursor is on; replaces the ticks.
    """
    columns = layout.columns
    right = list(layout.hidden)  # most important first: the last ones are dropped
    if marked := [layer for layer in view.layers if layer.without != ()]:
        more = f" and {len(marked) - 1} more" if len(marked) > 1 else ""
        right.append(f"* {marked[0].router.name}{more}: balance {words.without(marked[0].without)}")
    if view.defects:
        right.append(f"{view.defects:,} bad line{'s' if view.defects > 1 else ''}")
    if view.progress < 1.0:
        right.append(f"sampled, reading {view.progress:.0%}")
    elif view.judged < 1.0:
        right.append(f"diagnosis at {view.judged:.0%}")
    if view.memory_limit is not None:
        right.append(f"history coarser: {words.bytes_of(view.memory_limit)} memory")
    right.extend(watching)
    if view.step:
        first, last = view.window
        steps = max(1, round((last - first + 1) / ribbon_width(columns)))
        right.append(f"1 column = {steps:,} step{'s' if steps > 1 else ''}")
    if cursor:
        left: Line = [Span(f" {cursor}", "accent")]
        said = listed(right, columns - line_width(left) - 3)
        return pad(spread(left, [Span(f"{said} ", "faint")], columns), columns)
    said = listed(right, columns // 2 if _labels(view) else columns - _LEFT)
    ticks = tick_line(view, columns - width_of(said) - 2, ribbon_width(columns), glyphs)
    return pad([*ticks, Span(" " + said, "faint")], columns)


def tick_line(view: RunView, width: int, ribbon: int, glyphs: Glyphs) -> Line:
    """Onset, restarts and evaluations below their columns, each label where it fits."""
    cells = [Span(" ", "")] * max(0, width)
    tick = "'" if glyphs is Glyphs.ASCII else "╵"

    def put(at: int, text: str, role: str) -> bool:
        here = range(at, at + len(text))
        if at < 0 or at + len(text) > len(cells) or any(cells[i].text != " " for i in here):
            return False
        cells[at : at + len(text)] = [Span(char, role) for char in text]
        return True

    for step, text, role in _labels(view):
        column = column_of(step, view.window, ribbon)
        if column is None:
            continue
        at = _LEFT + column
        label = f"{text} {step:,}"
        if not (put(at - len(label), label + tick, role) or put(at, tick + label, role)):
            put(at, tick, role)
    for at, mark in enumerate(view.ribbon[:ribbon], start=_LEFT):
        if mark.evaluation:
            put(at, tick, "faint")
    return merged(cells)


def _labels(view: RunView) -> Sequence[tuple[int, str, str]]:
    """Step, word and role of what gets a label, the most important first."""
    labels = []
    if view.worst is not None:
        finding = view.worst[0]
        labels.append((finding.onset, "onset", ROLE_OF_SEVERITY[finding.severity]))
    return labels + [(step, "restart", "dim") for step in reversed(view.restarts)]


def _cell(mark: Mark, ascii_only: bool) -> Span:
    if mark.restart:
        return Span("|" if ascii_only else "╎", "accent")
    if mark.severity is None:
        return Span("-" if ascii_only else "▁", "faint")
    text = _HEIGHTS[mark.severity][0 if ascii_only else 1]
    return Span(text, ROLE_OF_SEVERITY[mark.severity])


def _start(view: RunView, axis: Axis) -> str:
    """The text before the first column, of constant width."""
    if axis is Axis.STEP:
        first = view.window.first
        text = "step 0" if first == 1 else words.short_number(first)
    else:
        known = [time for time in view.times if time is not None]
        time = view.times[0] if view.times else None
        labels = shorter_labels(axis_label(axis, view.window.first, time, _began(view)))
        if axis is Axis.CLOCK and known and known[-1] - known[0] > DAYS_FROM_S:
            labels = [labels[0].rsplit(" ", 1)[0]]  # the day is more useful
        text = next((label for label in labels if len(label) <= _LEFT - 2), labels[-1])
    return f" {text[: _LEFT - 2]:<{_LEFT - 2}} "


def _began(view: RunView) -> float | None:
    """Start time of the run, if logged."""
    return view.run.time if view.run is not None else None
