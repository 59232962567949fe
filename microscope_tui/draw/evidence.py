"""The evidence for the alerts of one layer, as lines."""

from microscope_tui.draw.spans import Line, Span, dim, labelled, line_width, pad, role_of, wrap
from microscope_tui.runlog import plural
from microscope_tui.watch import RunView, RunWatch
from microscope_tui.watch.view import findings_of


def evidence(watch: RunWatch, view: RunView, layer: int, columns: int, most: int) -> list[Line]:
    """This layer's own findings, in at most ``most`` lines. It takes the lock of ``watch``."""
    lines: list[Line] = []
    width = max(20, columns - 12)
    with watch.lock:
        found = findings_of(watch, None if view.timeline.cursor is None else view.step, layer)
    for finding, advice in found:
        severity = Span(f"  {finding.severity.label.upper():<6}", role_of(finding))
        lines.append([severity, Span(advice.verdict)])
        lines += labelled("why", wrap(advice.why, width), 8)
        lines += labelled("next", wrap(advice.next, width), 8)
    lines = lines or [[dim("  no alerts in this layer")]]
    lines = [pad(line, columns) for line in lines]
    if len(lines) > most:
        left = plural(len(lines) - most, "more line")
        more = [Span(f"  {left}: ", "faint"), Span("3", "accent"), Span(" ")]
        last = pad(lines[most - 1], columns - line_width(more))
        lines = [*lines[: most - 1], [*last, *more]]
    return lines
