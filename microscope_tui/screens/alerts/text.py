"""All alerts of a run as lines: active, recovered, notes, and later ones; and one in detail."""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from microscope_tui.diagnosis import Advice, Finding, Severity, key_of
from microscope_tui.diagnosis.rules.base import ids_of
from microscope_tui.diagnosis.rules.collapse import CollapseLimits
from microscope_tui.diagnosis.rules.drops import DropLimits
from microscope_tui.diagnosis.rules.starved import StarvedLimits
from microscope_tui.draw import frame, words
from microscope_tui.draw.columns import Column, Table
from microscope_tui.draw.spans import (
    ROLE_OF_SEVERITY,
    WORD_OF_SEVERITY,
    Line,
    Span,
    dim,
    labelled,
    line_width,
    pad,
    shortened,
    spread,
    width_of,
    wrap,
)
from microscope_tui.draw.words import matches
from microscope_tui.watch import RunView
from microscope_tui.watch.view import worst_of_columns

BESIDE_FROM = 100
"""Width from which the details are beside the list."""
_LEAST_LAYERS, _LEAST_DETAIL = 8, 44
_NARROW, _MOST_RULE = 56, 11
"""Below this width severities are letters, and long rule names are cut."""
_LABEL = 13
_WIDEST = 120
_AIRY_FROM = 14
_MOST_EXPERTS = 24


class AlertState(StrEnum):
    ACTIVE = "active"
    RECOVERED = "recovered"
    NOTE = "note"
    LATER = "later"
    """Begins after the shown step."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One alert in the list, as it was at the shown step."""

    finding: Finding
    advice: Advice
    state: AlertState
    key: str
    """In the set of seen alerts."""
    seen: bool
    """Whether the user marked it as seen."""

    @property
    def id(self) -> tuple[str, object]:
        """Distinguishes alerts of one key: faulty settings all begin at the first step."""
        return self.key, self.finding.worst.facts.get("cause")

    @property
    def text(self) -> str:
        """What a filter matches: rule, severity, state and layers."""
        word = WORD_OF_SEVERITY[self.finding.severity]
        return " ".join([self.finding.rule, word, self.state, *self.finding.layers])

    @property
    def role(self) -> str:
        """The colour of its severity while it is active."""
        active = self.state is AlertState.ACTIVE
        return ROLE_OF_SEVERITY[self.finding.severity] if active else "dim"

    @property
    def names(self) -> str:
        """The layers of an alert; the whole run has none."""
        layers = self.finding.layers
        more = f" +{len(layers) - 2}" if len(layers) > 2 else ""
        return f"{', '.join(layers[:2])}{more}" or "the run"

    @property
    def end(self) -> str:
        """When it was over: a step, or a word."""
        if self.state is AlertState.LATER:
            return "later"
        if self.finding.active:
            return "active"
        return f"{max(e.recovered_at or e.last for e in self.finding.episodes):,}"

    @property
    def value(self) -> str:
        """The worst value against its limit, ``0.02 < 0.3``; empty for a rule without a number."""
        worst = self.finding.worst
        if not worst.limit and not worst.value:
            return ""
        if not worst.limit:
            return f"{worst.value:.3g}"
        sign = "<" if worst.value < worst.limit else ">"
        return f"{worst.value:.3g} {sign} {worst.limit:.3g}"


def entries_of(
    view: RunView, known: Iterable[tuple[Finding, Advice]], seen: Container[str], pattern: str
) -> list[Entry]:
    """Active ones first, then recovered, notes, and later ones; only those that match ``pattern``.

    ``known``: findings by the end of the log, for later ones; ``seen``: keys as in ``Entry.key``.
    """
    found = [(pair, _state_of(pair[0])) for pair in view.findings]
    found += [(pair, AlertState.LATER) for pair in known if pair[0].onset > view.step]
    entries = []
    for (finding, advice), state in found:
        key = key_of(view.name, finding)
        entries.append(Entry(finding, advice, state, key, key in seen))
    entries.sort(key=lambda entry: list(AlertState).index(entry.state))
    return [entry for entry in entries if matches(pattern, entry.text)]


def _state_of(finding: Finding) -> AlertState:
    if finding.severity is Severity.INFO:
        return AlertState.NOTE
    return AlertState.ACTIVE if finding.active else AlertState.RECOVERED


def title_line(entries: Sequence[Entry], view: RunView, width: int, right: str) -> Line:
    """How many there are of each state; ``right`` is dropped if there is no room."""
    line: Line = [Span(" alerts", "title")]
    if not entries:
        line.append(dim("   none"))
    for state in AlertState:
        group = [entry for entry in entries if entry.state is state]
        if group:
            word = f"   {len(group)} {state}"
            if state is AlertState.NOTE and len(group) > 1:
                word += "s"
            worst = max(group, key=lambda entry: entry.finding.severity)
            line.append(Span(word, worst.role))
    line.append(dim(f"   {words.unread(view)}"))
    return spread(line, [Span(f"{right} ", "faint")], width)


def fit_alerts(entries: Sequence[Entry], width: int) -> Table:
    """In narrow windows the value goes first, then layer names shrink."""
    rule = 2 + max([4, *(len(entry.finding.rule) for entry in entries)])
    names = max([6, *(width_of(entry.names) for entry in entries)])
    onset = max([5, *(len(f"{entry.finding.onset:,}") for entry in entries)])
    end = max([6, *(len(entry.end) for entry in entries)])
    value = max([5, *(len(entry.value) for entry in entries)])
    severity = Column("severity", 9, gap=0)
    seen = [Column("seen", 6, gap=0, head="")]
    if width < _NARROW:
        severity = Column("severity", 2, gap=0, head="")
        seen = []
        rule = min(rule - 1, 1 + _MOST_RULE)
    columns = [
        Column("mark", 3, gap=0, head=""),
        severity,
        Column("rule", rule, gap=0),
        Column("layers", min(names, _LEAST_LAYERS), gap=0),
        Column("onset", onset, "right"),
        Column("end", 3 + end, gap=0, head="   end"),
        Column("value", value, "right", priority=1),
        *seen,
    ]
    table = Table.fitting(columns, width)
    return table.resized(layers=max(1, min(names, width - table.used("layers"))))


def list_width(entries: Sequence[Entry], columns: int) -> int:
    """Cells of the list, where the details are beside it on a screen of ``columns``."""
    full = fit_alerts(entries, 10**6)
    most = max(_NARROW, columns // 2, full.used("layers") + _LEAST_LAYERS)
    return min(max(_NARROW, full.used()), most, columns - _LEAST_DETAIL)


def entry_line(entry: Entry, table: Table, *, chosen: bool) -> Line:
    """One row of the table of ``fit_alerts``."""
    finding, role = entry.finding, entry.role
    bright = "value" if entry.state is AlertState.ACTIVE or chosen else "dim"
    title = bright
    mark = ""
    if chosen:
        title = "title"
        mark = " ▶ "
    seen = "  seen" if entry.seen else ""
    severity = f"{finding.severity.letter} {finding.severity.label}"
    rule = shortened(finding.rule, table.width_of("rule") - 1)
    return table.line(
        {
            "mark": [Span(mark, "accent")],
            "severity": [Span(severity[: table.width_of("severity")], role)],
            "rule": [Span(rule, title)],
            "layers": [Span(shortened(entry.names, table.width_of("layers")), bright)],
            "onset": [Span(f"{finding.onset:,}", bright)],
            "end": [Span(" → ", "faint"), Span(entry.end, role)],
            "value": [Span(entry.value, bright)],
            "seen": [dim(seen)],
        }
    )


def track(entry: Entry, view: RunView, columns: int, cells: int) -> Line:
    """Severity over time, above the ribbon; a letter where it changes."""
    later = entry.state is AlertState.LATER
    line = [dim(f" {'alert':<7}")]
    newest = view.newest_step if later else view.step
    before = None
    for mark in worst_of_columns(entry.finding.episodes, view.window, cells, newest):
        if mark is None:
            line.append(Span("·", "faint"))
        elif mark is before:
            line.append(Span("━", ROLE_OF_SEVERITY[mark]))
        else:
            line.append(Span(mark.letter, ROLE_OF_SEVERITY[mark]))
        before = mark
    since, severity = entry.finding.worst.course()[-1]
    text = "later than the shown step" if later else f"{severity.label} from {since:,}"
    if line_width(line) + 2 + width_of(text) <= columns:
        line.append(dim(f"  {text}"))
    return pad(line, columns)


def unfolded(entry: Entry, width: int, height: int) -> list[Line]:
    """In at most ``height`` lines; cuts are marked."""
    room = min(width, _WIDEST) - 2
    lines: list[Line] = [
        [Span("▌", entry.role), Span(f" {part}", "title")]
        for part in wrap(entry.advice.verdict, room)
    ]
    if entry.seen:
        lines[-1].append(dim("  seen"))
    gap: list[Line] = [[]] if height >= _AIRY_FROM else []
    lines += gap
    if entry.advice.cause:
        lines += _part("cause", entry.advice.explanation, room)
    lines += _part("why", entry.advice.why, room) + _part("next", entry.advice.next, room) + gap
    for word, text in _facts(entry):
        lines += _part(word, text, room)
    if len(lines) > height > 2:
        more = len(lines) - height + 1
        lines = [*lines[: height - 1], [Span(f"  … {more} more lines", "faint")]]
    elif len(lines) > height > 0:
        lines[height - 1] = [*pad(lines[height - 1], width - 1), Span("…", "faint")]
    return [pad(line, width) for line in lines[: max(0, height)]]


def _part(word: str, text: str, width: int, role: str = "value") -> list[Line]:
    return labelled(word, wrap(text, max(16, width - _LABEL)), _LABEL, role)


def _facts(entry: Entry) -> Sequence[tuple[str, str]]:
    finding, worst = entry.finding, entry.finding.worst
    alarm = min(episode.alarm for episode in finding.episodes)
    facts = [("evidence", f"steps {finding.onset:,} to {finding.last:,}, alarm at {alarm:,}")]
    if worst.limit:
        where = f" in {worst.router.name}" if worst.router is not None else ""
        now = f"; {worst.now.value:.3g} now" if worst.now is not None and worst.now.facts else ""
        facts.append(("value", f"{entry.value}, the worst{where}{now}"))
    if experts := ids_of(worst, "experts"):
        facts.append(("experts", words.listed(experts, _MOST_EXPERTS)))
    if len(finding.layers) > 1:
        facts.append(("layers", ", ".join(finding.layers)))
    if len(worst.grades) > 1:
        steps = [f"{g.severity.label} from {g.step:,} ({g.value:.3g})" for g in worst.grades]
        facts.append(("grades", ", ".join(steps)))
    before = "the first time"
    if worst.recurrence:
        before = f"{worst.recurrence} earlier in this layer"
    facts.append(("before", before))
    facts.append(("confidence", worst.confidence))
    return facts


def no_alerts(view: RunView, width: int) -> list[Line]:
    """What a screen without alerts shows instead: what was judged, and by which limits."""
    warn, share, drops = CollapseLimits().warn, StarvedLimits().share, DropLimits().warn
    judged = view.judging.no_verdict or f"up to step {view.judging.last_step:,}"
    explain = "`moe-microscope explain` lists all rules and their limits"
    room = width - 4
    facts = list[Line]()
    for word, text, role in (
        ("balance", f"c stays above {warn:g}; 1 = even, 0 = collapsed", "value"),
        ("experts", f"none dead, few below {share:g} of the fair share for long", "value"),
        ("tokens", f"dropped ones stay below {drops:.0%}, no expert far overloaded", "value"),
        ("course", "logits, gradients and biases are steady, nothing swings", "value"),
        ("", "", "value"),
        ("judged", judged, "value"),
        ("rules", explain, "dim"),
    ):
        facts += [[Span("  "), *line] for line in _part(word, text, room, role)]
    healthy = dim("  no alerts; a healthy run is like this in every layer")
    lines = [frame.verdict(view, width, 1)[0], [], [healthy], *facts]
    return [pad(line, width) for line in lines]
