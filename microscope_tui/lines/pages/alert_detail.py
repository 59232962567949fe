"""Details of one alert: verdict, why and next in full, and the evidence.

Without alerts: what healthy means, and how far the diagnosis has come.
"""

from collections.abc import Sequence

from microscope_tui.diagnosis import DEFAULTS, EXACT, Advice, Finding
from microscope_tui.lines.pages.alert_list import Entry, Standing, value_text
from microscope_tui.lines.spans import ROLE_OF_SEVERITY, Line, Span, line_width, pad, wrap
from microscope_tui.lines.table import frame
from microscope_tui.watch import LayerView, RunView

_LABEL = 13
_WIDEST = 84
"""Maximum width of text."""
_MOST_EXPERTS = 24


def unfolded(entry: Entry, width: int, height: int) -> list[Line]:
    """The alert in at most ``height`` lines of ``width`` cells; cuts are marked."""
    active = entry.standing is Standing.ACTIVE
    role = ROLE_OF_SEVERITY[entry.finding.severity] if active else "dim"
    room = min(width, _WIDEST) - 2
    lines: list[Line] = []
    for part in wrap(entry.advice.verdict, room):
        lines.append([Span("▌", role), Span(f" {part}", "title")])
    if entry.seen:
        lines[-1].append(Span("  seen", "dim"))
    if height >= 14:
        lines.append([])
    for word, text in (("why", entry.advice.why), ("next", entry.advice.next)):
        lines += _labelled(word, text, room, "value")
    if height >= 14:
        lines.append([])
    for word, text in _facts(entry):
        lines += _labelled(word, text, room, "value")
    if len(lines) > height > 2:
        more = len(lines) - height + 1
        lines = [*lines[: height - 1], [Span(f"  … {more} more lines", "faint")]]
    elif len(lines) > height > 0:
        lines[height - 1] = [*pad(lines[height - 1], width - 1), Span("…", "faint")]
    return [pad(line, width) for line in lines[: max(0, height)]]


def no_alerts(view: RunView, width: int) -> list[Line]:
    """What healthy means, and how far the diagnosis has come."""
    limits = DEFAULTS
    means = (
        ("balance", f"c stays above {limits.COLLAPSE.warn:g}; 1 is even, 0 collapsed"),
        ("experts", f"none dead, few below {limits.STARVED.share:g} of the fair share for long"),
        ("tokens", f"dropped ones stay below {limits.DROPS.warn:.0%}, no expert far overloaded"),
        ("course", "logits, gradients and biases are steady, nothing swings"),
    )
    lines: list[Line] = [frame.verdict(view, width, 1)[0], []]
    lines.append([Span("  no alerts; a healthy run is like this in every layer", "dim")])
    for word, text in means:
        lines += [[Span("  "), *line] for line in _labelled(word, text, width - 4, "value")]
    judged = view.no_verdict or f"up to step {view.judged_step:,}"
    if view.judged < 1.0:
        judged += f", {view.judged:.0%} of the log: the rest is not judged yet"
    lines += [
        [],
        *([Span("  "), *line] for line in _labelled("judged", judged, width - 4, "value")),
    ]
    explain = "`moe-microscope explain` lists all rules and their limits"
    lines += [[Span("  "), *line] for line in _labelled("rules", explain, width - 4, "dim")]
    return [pad(line, width) for line in lines]


def copied_text(entry: Entry, view: RunView) -> str:
    """The alert for a chat or a ticket."""
    finding, advice = entry.finding, entry.advice
    return (
        f"{view.name} step {view.step:,}: {finding.severity.label} {finding.rule}, "
        f"{entry.standing}\nVerdict: {advice.verdict}\nWhy: {advice.why}\nNext: {advice.next}"
    )


def _facts(entry: Entry) -> Sequence[tuple[str, str]]:
    """The evidence: values, steps and confidence."""
    finding, worst = entry.finding, entry.finding.worst
    alarm = min(episode.alarm for episode in finding.episodes)
    facts = [("evidence", f"steps {finding.onset:,} to {finding.last:,}, alarm at {alarm:,}")]
    if worst.limit:
        where = f" in {worst.router.name}" if worst.router is not None else ""
        now = f"; {worst.now.value:.3g} now" if worst.now is not None and worst.now.facts else ""
        facts.append(("value", f"{value_text(finding)}, the worst{where}{now}"))
    experts = worst.facts.get("experts", ())
    if isinstance(experts, tuple) and experts:
        more = f" and {len(experts) - _MOST_EXPERTS} more" if len(experts) > _MOST_EXPERTS else ""
        facts.append(("experts", ", ".join(map(str, experts[:_MOST_EXPERTS])) + more))
    if len(finding.layers) > 1:
        facts.append(("layers", ", ".join(finding.layers)))
    if len(grades := finding.worst.course()) > 1:
        said = [f"{severity.label} from {step:,} ({value:.3g})" for step, severity, value in grades]
        facts.append(("grades", ", ".join(said)))
    again = worst.recurrence
    facts.append(("before", f"{again} earlier in this layer" if again else "the first time"))
    known = "exact counts" if worst.confidence == EXACT else worst.confidence
    facts.append(("confidence", known))
    return facts


def _labelled(word: str, text: str, width: int, role: str) -> list[Line]:
    """``text`` wrapped after a label on the first line."""
    parts = wrap(text, max(16, width - _LABEL))
    return [
        [Span(f"  {word if at == 0 else '':<{_LABEL - 2}}", "dim"), Span(part, role)]
        for at, part in enumerate(parts)
    ]


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
