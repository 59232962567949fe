"""What is wrong in one layer, in as many lines as there are: the worst first, the rest counted."""

from microscope_tui.diagnosis.advice import Advice
from microscope_tui.diagnosis.episodes import Finding
from microscope_tui.report.spans import ROLE_OF_SEVERITY, Line, Span, line_width, pad
from microscope_tui.report.wrap import wrap
from microscope_tui.watch.view import LayerView, RunView


def evidence(view: RunView, layer: LayerView, columns: int, most: int) -> list[Line]:
    """Verdict, why and next of every finding of this layer, in at most ``most`` lines."""
    lines: list[Line] = []
    for finding, advice in view.findings:
        if any(episode.router_index == layer.index for episode in finding.episodes):
            lines += _finding(finding, advice, columns)
    if not lines:
        return [pad([Span("  no alerts in this layer", "dim")], columns)]
    if len(lines) > most:
        left = len(lines) - most
        noun = "line" if left == 1 else "lines"
        more = [Span(f"  {left} more {noun}: ", "faint"), Span("3", "accent")]
        room = columns - line_width(more) - 1
        return [*lines[: most - 1], [*pad(lines[most - 1], room), *more, Span(" ")]]
    return lines


def _finding(finding: Finding, advice: Advice, columns: int) -> list[Line]:
    role = ROLE_OF_SEVERITY[finding.severity] if finding.active else "dim"
    width = max(20, columns - 12)
    lines: list[Line] = [
        pad([Span(f"  {finding.severity.label.upper():<6}", role), Span(advice.verdict)], columns)
    ]
    for word, text in (("why", advice.why), ("next", advice.next)):
        for at, part in enumerate(wrap(text, width)):
            head = word if at == 0 else ""
            lines.append(pad([Span(f"  {head:<6}", "dim"), Span(part)], columns))
    return lines
