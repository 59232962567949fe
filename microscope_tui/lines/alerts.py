"""All alerts of a run as lines: active, recovered, notes, and later ones; and one in detail.

One line per alert; the details of the chosen one are beside the list, or below it in narrow
windows, and its severity is drawn over the time axis of the ribbon.
"""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from microscope_tui.diagnosis import (
    Advice,
    CollapseLimits,
    DropLimits,
    Finding,
    Severity,
    StarvedLimits,
    key_of,
)
from microscope_tui.lines import frame
from microscope_tui.lines.glyphs import Glyphs
from microscope_tui.lines.pattern import Pattern
from microscope_tui.lines.spans import (
    ROLE_OF_SEVERITY,
    WORD_OF_SEVERITY,
    Line,
    Span,
    line_width,
    pad,
    shortened,
    spread,
    width_of,
    wrap,
)
from microscope_tui.watch import LayerView, RunView, worst_of_columns

BESIDE_FROM = 100
"""Width from which the details are beside the list."""
_MARK, _SEVERITY, _SEEN = 3, 9, 6
_LEAST_LAYERS, _LEAST_DETAIL = 8, 44
_NARROW, _MOST_RULE = 56, 11
"""Below this width severities are letters, and long rule names are cut."""
_GAP = "  "


class Standing(StrEnum):
    """State of an alert at the shown step."""

    ACTIVE = "active"
    RECOVERED = "recovered"
    NOTE = "note"
    LATER = "later"
    """Begins after the shown step."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One alert in the list."""

    finding: Finding
    advice: Advice
    standing: Standing
    key: str
    """Key of the alert in the set of seen alerts."""
    seen: bool

    @property
    def id(self) -> tuple[str, object]:
        """Distinguishes alerts of one key: faulty settings all begin at the first step."""
        return self.key, self.finding.worst.facts.get("cause")

    @property
    def text(self) -> str:
        """The text that a filter matches."""
        finding = self.finding
        word = WORD_OF_SEVERITY[finding.severity]
        return " ".join([finding.rule, word, self.standing, *finding.layers])


@dataclass(frozen=True, slots=True)
class AlertListLayout:
    """Widths in cells; 0 for a column that is left out."""

    columns: int
    severity: int
    rule: int
    layers: int
    onset: int
    end: int
    value: int


def entries_of(
    view: RunView,
    known: Iterable[tuple[Finding, Advice]],
    seen: Container[str],
    pattern: Pattern,
) -> list[Entry]:
    """The alerts that match ``pattern``: active, recovered, notes, later; each worst first.

    Args:
        known: what is known by the end of the log, for what begins behind the shown step.
    """
    later = [pair for pair in known if pair[0].onset > view.step]
    standings = [(pair, _standing(pair[0])) for pair in view.findings]
    standings += [(pair, Standing.LATER) for pair in later]
    entries = []
    for (finding, advice), standing in standings:
        key = key_of(view.name, finding)
        entries.append(Entry(finding, advice, standing, key, key in seen))
    order = list(Standing)
    entries.sort(key=lambda entry: order.index(entry.standing))
    return [entry for entry in entries if pattern.matches(entry.text)]


def title_line(entries: Sequence[Entry], width: int, said: str) -> Line:
    """Number of alerts of each kind; ``said`` is right-aligned."""
    line: Line = [Span(" alerts", "title")]
    if not entries:
        line.append(Span("   none", "dim"))
    for standing in Standing:
        count = sum(entry.standing is standing for entry in entries)
        if not count:
            continue
        worst = max((e.finding.severity for e in entries if e.standing is standing), default=None)
        active = standing is Standing.ACTIVE and worst is not None
        role = ROLE_OF_SEVERITY[worst] if active and worst is not None else "dim"
        word = f"{standing}s" if standing is Standing.NOTE and count > 1 else standing
        line.append(Span(f"   {count} {word}", role))
    return pad(spread(line, [Span(f"{said} ", "faint")], width), width)


def fit_alerts(entries: Sequence[Entry], width: int) -> AlertListLayout:
    """Column widths; in narrow windows the value goes first, then layer names shrink."""
    narrow = width < _NARROW
    rule = max([4, *(len(entry.finding.rule) for entry in entries)])
    rule = 1 + min(rule, _MOST_RULE) if narrow else 2 + rule
    onset = max([5, *(len(f"{entry.finding.onset:,}") for entry in entries)])
    end = max([6, *(len(_end(entry)) for entry in entries)])
    value = max([5, *(len(value_text(entry.finding)) for entry in entries)])
    names = max([6, *(width_of(_names(entry)) for entry in entries)])
    severity = 2 if narrow else _SEVERITY
    room = width - (_MARK + severity + rule + len(_GAP) + onset + 3 + end)
    room -= 0 if narrow else _SEEN
    if room - value - len(_GAP) < min(names, _LEAST_LAYERS):
        value = 0
    left = room - (value + len(_GAP) if value else 0)
    return AlertListLayout(width, severity, rule, max(1, min(names, left)), onset, end, value)


def list_width(entries: Sequence[Entry], columns: int) -> int:
    """Width of the list when the details are beside it."""
    full = fit_alerts(entries, 10**6)
    fixed = _MARK + full.severity + full.rule + len(_GAP) + full.onset + 3 + full.end + _SEEN
    wanted = max(_NARROW, fixed + full.layers + full.value + len(_GAP))
    most = max(_NARROW, columns // 2, fixed + _LEAST_LAYERS)
    return min(wanted, most, columns - _LEAST_DETAIL)


def heads(layout: AlertListLayout) -> Line:
    """The names of the columns."""
    value = [Span(_GAP), *pad([Span("value", "dim")], layout.value, "right")]
    return pad(
        [
            Span(" " * _MARK),
            *pad([Span("severity" if layout.severity > 2 else "", "dim")], layout.severity),
            *pad([Span("rule", "dim")], layout.rule),
            *pad([Span("layers", "dim")], layout.layers),
            Span(_GAP),
            *pad([Span("onset", "dim")], layout.onset, "right"),
            *pad([Span("   end", "dim")], 3 + layout.end),
            *(value if layout.value else []),
        ],
        layout.columns,
    )


def entry_line(entry: Entry, layout: AlertListLayout, glyphs: Glyphs, *, chosen: bool) -> Line:
    """One alert."""
    finding, standing = entry.finding, entry.standing
    role = ROLE_OF_SEVERITY[finding.severity] if standing is Standing.ACTIVE else "dim"
    bright = "value" if standing is Standing.ACTIVE or chosen else "dim"
    arrow = " > " if glyphs is Glyphs.ASCII else " → "
    end_role = role if standing is Standing.ACTIVE else "dim"
    value = [Span(_GAP), *pad([Span(value_text(finding), bright)], layout.value, "right")]
    names = shortened(_names(entry), layout.layers)
    rule = shortened(finding.rule, layout.rule - 1)
    severity = f"{finding.severity.letter} {finding.severity.label}"[: layout.severity]
    return pad(
        [
            Span(" ▶ " if chosen else " " * _MARK, "accent"),
            *pad([Span(severity, role)], layout.severity),
            *pad([Span(rule, "title" if chosen else bright)], layout.rule),
            *pad([Span(names, bright)], layout.layers),
            Span(_GAP),
            *pad([Span(f"{finding.onset:,}", bright)], layout.onset, "right"),
            *pad([Span(arrow, "faint"), Span(_end(entry), end_role)], 3 + layout.end),
            *(value if layout.value else []),
            Span("  seen" if entry.seen and layout.severity > 2 else "", "dim"),
        ],
        layout.columns,
    )


def track(entry: Entry, view: RunView, columns: int, cells: int, glyphs: Glyphs) -> Line:
    """Severity over time, in the columns of the ribbon below it; a letter where it changes."""
    marks = severities(entry, view, cells)
    ascii_only = glyphs is Glyphs.ASCII
    line: Line = [Span(f" {'alert':<7}", "dim")]
    before: Severity | None = None
    for mark in marks:
        if mark is None:
            text, role = "." if ascii_only else "·", "faint"
        else:
            text = mark.letter if mark is not before else "=" if ascii_only else "━"
            role = ROLE_OF_SEVERITY[mark]
        before = mark
        line.append(Span(text, role))
    since, severity, _ = entry.finding.worst.course()[-1]
    said = f"  {severity.label} from {since:,}"
    if entry.standing is Standing.LATER:
        said = "  later than the shown step"
    if line_width(line) + width_of(said) <= columns:
        line.append(Span(said, "dim"))
    return pad(line, columns)


def severities(entry: Entry, view: RunView, count: int) -> list[Severity | None]:
    """The worst severity in each of ``count`` equal parts of the window."""
    newest = view.newest_step if entry.standing is Standing.LATER else view.step
    return worst_of_columns(entry.finding.episodes, view.window, count, newest)


def value_text(finding: Finding) -> str:
    """The worst value against its limit, ``0.02 < 0.3``; empty where the rule has no number."""
    worst = finding.worst
    if not worst.limit:
        return f"{worst.value:.3g}" if worst.value else ""
    sign = "<" if worst.value < worst.limit else ">"
    return f"{worst.value:.3g} {sign} {worst.limit:.3g}"


def _standing(finding: Finding) -> Standing:
    if finding.severity is Severity.INFO:
        return Standing.NOTE
    return Standing.ACTIVE if finding.active else Standing.RECOVERED


def _names(entry: Entry) -> str:
    """The layers of an alert; the whole run has none."""
    layers = entry.finding.layers
    more = f" +{len(layers) - 2}" if len(layers) > 2 else ""
    return f"{', '.join(layers[:2])}{more}" if layers else "the run"


def _end(entry: Entry) -> str:
    """The step of its end, or ``active``."""
    finding = entry.finding
    if entry.standing is Standing.LATER:
        return "later"
    if finding.active:
        return "active"
    return f"{max(e.recovered_at or e.last for e in finding.episodes):,}"


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
    warn, share, drops = CollapseLimits().warn, StarvedLimits().share, DropLimits().warn
    means = (
        ("balance", f"c stays above {warn:g}; 1 is even, 0 collapsed"),
        ("experts", f"none dead, few below {share:g} of the fair share for long"),
        ("tokens", f"dropped ones stay below {drops:.0%}, no expert far overloaded"),
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
    facts.append(("confidence", worst.confidence))
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
