"""The lines above the table: header, verdict, column heads; see ``time_line`` for those below."""

import math
from collections.abc import Container, Sequence

from microscope_tui.diagnosis import CollapseLimits, Severity, gathering, key_of
from microscope_tui.lines import words
from microscope_tui.lines.glyphs import Glyphs, spark
from microscope_tui.lines.spans import (
    ROLE_OF_SEVERITY,
    Line,
    Span,
    crop,
    line_width,
    merged,
    pad,
    plain,
    shortened,
    spread,
    width_of,
    wrap,
)
from microscope_tui.watch import Column, RunState, RunView

STATE_ROLES = {
    RunState.LIVE: "ok",
    RunState.FINISHED: "ok",
    RunState.SLOW: "warn",
    RunState.STALE: "warn",
    RunState.STOPPED: "warn",
    RunState.CRASHED: "crit",
    RunState.FAILED: "crit",
    RunState.DELETED: "crit",
}
MIN_COLUMNS, MIN_ROWS = 40, 10
"""The smallest window that has a table."""
_LEAST_NAME = 12
_BADGES = {
    Severity.INFO: "NOTE",
    Severity.WARN: "WARNING",
    Severity.CRITICAL: "CRITICAL",
    Severity.ERROR: "METER",
}


def header(view: RunView, width: int, glyphs: Glyphs, *, brand: bool = True) -> Line:
    """Run, state and age, progress, loss and speed on one line; a long name is cut first."""
    wide = width >= 110
    gap = Span("   " if width >= 72 else "  ")
    left: Line = [Span("MoE Microscope", "brand"), gap] if brand and wide else []
    planned = view.run.planned_steps if view.run else None
    rest = _after_name(view, planned, wide, gap, glyphs)
    room = width - line_width([*left, *rest]) - 2
    if room < width_of(view.name):  # the run's name matters more than ours
        left, room = [], room + line_width(left)
    if room < min(_LEAST_NAME, width_of(view.name)):
        rest = _after_name(view, None, wide, gap, glyphs)
        room = width - line_width(rest) - 2
    name = shortened(view.name, max(_LEAST_NAME, room))
    left = [Span(" "), *left, Span(name, "title"), *rest]
    record = view.record
    speed: Line = []
    if record is not None and record.tokens_per_s:
        speed = [Span(f"{words.short_number(record.tokens_per_s)} tok/s", "dim")]
    return pad(spread(left, [*speed, Span(" ")], width), width)


def verdict(
    view: RunView,
    width: int,
    lines: int,
    seen: Container[str] = frozenset(),
    *,
    compact: bool = False,
) -> list[Line]:
    """The worst alert in ``lines`` lines, or that the run is healthy.

    Args:
        seen: keys of alerts that were acknowledged; the worst of the others stands here.
        compact: what and what next, as few lines have room for; otherwise also why.
    """
    unseen = [pair for pair in view.alerts if key_of(view.name, pair[0]) not in seen]
    worst = unseen[0] if unseen else view.worst
    if view.error:
        line = [Span(" "), Span(view.error, "crit")]
        return [pad(line, width)] + [pad([], width)] * (lines - 1)
    if worst is None:
        return [pad([Span(" "), *_all_well(view)], width)] + [pad([], width)] * (lines - 1)
    finding, advice = worst
    role = ROLE_OF_SEVERITY[finding.severity]
    badge = Span(f" {_BADGES[finding.severity]} ", f"badge-{role}" if role != "dim" else "dim")
    active = len(view.alerts)
    count = f"1 of {active} alerts" if active > 1 else ""
    known = f"{active - len(unseen)} seen" if unseen else "seen"
    said = "  ".join(part for part in (count, known if len(unseen) < active else "") if part)
    more = [Span(f"{said} ", "dim")] if said else []
    edge = [Span(" "), Span("▌", role)]
    if compact or lines < 3:
        first = spread(crop([Span(" "), badge, Span(f" {advice.short}")], width), more, width)
        return [pad(first, width), *_next(advice.next, width, lines - 1)]
    title = spread([*edge, Span(" "), badge, Span(f" {advice.verdict}", "title")], more, width)
    next_lines = min(lines - 2, len(wrap(advice.next, width - _HEAD)))
    rows = [
        *_beside("why", advice.why, width, lines - 1 - next_lines, edge),
        *_beside("next", advice.next, width, next_lines, edge),
    ]
    return [pad(title, width), *rows, *[pad([], width)] * (lines - 1 - len(rows))]


_HEAD = 10
"""Cells before the words of a verdict: the edge, and what they are."""


def _beside(name: str, text: str, width: int, lines: int, edge: Line) -> list[Line]:
    """``text`` beside its name, in at most ``lines`` lines."""
    return [
        pad([*edge, Span(f"  {'' if at else name:<6}", "dim"), Span(row)], width)
        for at, row in enumerate(_cut(text, width - _HEAD, lines))
    ]


def _next(text: str, width: int, lines: int) -> list[Line]:
    """The advice, cut between words: half a step number would be wrong."""
    head = "  next "
    rows = _cut(text, width - len(head), lines)
    rows += [""] * (lines - len(rows))
    return [
        pad([Span(" " * len(head) if at else head, "dim"), Span(row)], width)
        for at, row in enumerate(rows)
    ]


def _cut(text: str, width: int, lines: int) -> list[str]:
    """``text`` in at most ``lines`` lines, cut between words."""
    rows = wrap(text, width)
    if len(rows) > lines:
        rows = [*rows[: lines - 1], *wrap(" ".join(rows[lines - 1 :]), width - 2)]
        rows[lines - 1] += " …"
    return rows[:lines]


def _state(view: RunView) -> Line:
    role = STATE_ROLES.get(view.state, "dim")
    shown = f"{view.state} {words.age(view.age_s)}".rstrip()
    if view.state.ended and view.state != RunState.CRASHED and view.age_s is not None:
        shown = f"{view.state} {words.age(view.age_s)} ago"
    return [Span("● ", role), Span(shown, role)]


def _after_name(view: RunView, planned: int | None, wide: bool, gap: Span, glyphs: Glyphs) -> Line:
    """State, step and loss of the run, for the header."""
    step: Line = [Span("step ", "dim"), Span(f"{view.step:,}", "value")]
    if planned:
        step.append(Span(f" / {planned:,}", "dim"))
        if wide:
            step += [Span(" "), *_progress(view.step / planned, 16, glyphs)]
    loss = words.decimal(view.record.loss if view.record else None) or "-"
    line = [gap, *_state(view), gap, *step, gap, Span("loss ", "dim"), Span(loss)]
    if wide and view.loss_history:
        line += [Span(" "), Span(_loss_curve(view.loss_history, glyphs), "dim")]
    return line


def _loss_curve(history: Sequence[Column], glyphs: Glyphs) -> str:
    """The loss scaled between its lowest and highest value: shows its shape only."""
    values = [column.mean for column in history if math.isfinite(column.mean)]
    if not values:
        return ""
    bottom, top = min(values), max(values)
    means = [column.mean - bottom for column in history]
    return spark([Column(m, m, m) for m in means], 12, (top - bottom) or 1.0, glyphs)[0]


def _progress(share: float, width: int, glyphs: Glyphs) -> Line:
    done = round(max(0.0, min(1.0, share)) * width)
    full, rest = ("=", "-") if glyphs is Glyphs.ASCII else ("━", "━")
    return [Span(full * done, "accent"), Span(rest * (width - done), "faint")]


def _not_judged_yet(view: RunView) -> Line:
    """While the diagnosis reads the history: its progress, and the current balance."""
    reading = f"diagnosis at step {view.judged_step:,} ({view.judged:.0%})"
    if view.progress < 1.0:
        reading = f"scanning the log ({view.progress:.0%})"
    low = [
        layer
        for layer in view.layers
        if layer.collapse_index is not None and layer.collapse_index < CollapseLimits().warn
    ]
    if not low:
        return [Span(f"nothing found so far, {reading}", "dim")]
    worst = min(low, key=lambda layer: layer.collapse_index or 0.0)
    more = f" and {len(low) - 1} more" if len(low) > 1 else ""
    shown = f"balance {words.index(worst.collapse_index)} in {worst.router.name}{more} now"
    return [Span(shown, "warn"), Span(f"; verdict to come, {reading}", "dim")]


def _all_well(view: RunView) -> Line:
    if not view.layers:
        return [Span("no steps yet", "dim")]
    if view.judged < 1.0:
        return _not_judged_yet(view)
    evidence = gathering(view.pending, [layer.collapse_index for layer in view.layers])
    suspects = {found.router_index for found in view.pending}
    well = sum(layer.index not in suspects for layer in view.layers)
    balances = [
        (c, layer.router.name) for layer in view.layers if (c := layer.collapse_index) is not None
    ]
    lowest = ""
    if balances:
        c, name = min(balances, key=lambda pair: pair[0])
        lowest = f", lowest balance {words.index(c)} in {name}"
    noun = "layer" if well == 1 else "layers"
    if view.no_verdict:
        line = [Span(view.no_verdict + (", " if evidence else lowest), "dim")]
        line.append(Span(evidence, "warn"))
    elif evidence:
        other = "other " if well < len(view.layers) else ""
        rest = f"; {well} {other}{noun} healthy" if well else ""
        line = [Span(evidence, "warn"), Span(rest, "dim")]
    else:
        line = [Span(f"{well} {noun} healthy", "ok"), Span(lowest, "dim")]
    text = f"; note: {view.notes[0][1].short.split(':')[0]}" if view.notes else ""
    over = sum(1 for f, _ in view.findings if not f.active and f.severity > Severity.INFO)
    if over:
        text += f"; {over} earlier alert{'s' if over > 1 else ''}, recovered"
    return merged(span for span in [*line, Span(text, "dim")] if span.text)


def smallest(view: RunView, columns: int, rows: int) -> list[Line]:
    """For a window too small for a table: the state in one line, and the required size."""
    worst = view.worst
    text = worst[1].short if worst else plain(_all_well(view))
    role = ROLE_OF_SEVERITY[worst[0].severity] if worst else "ok"
    loss = words.decimal(view.record.loss if view.record else None) or "-"
    lines: list[Line] = [
        [Span(f"step {view.step:,} loss {loss}")],
        [Span(part, role) for part in [text.strip()]],
        [Span(f"needs {MIN_COLUMNS}x{MIN_ROWS}, has {columns}x{rows}", "dim")],
    ]
    return [pad(line, columns) for line in lines[:rows]]
