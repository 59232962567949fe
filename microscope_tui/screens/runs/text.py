"""The list of runs as lines.

Live and unhealthy runs are bright, finished ones dim; in narrow windows the loss is left out first,
then the step.
"""

from collections.abc import Sequence

from microscope_tui.draw import words
from microscope_tui.draw.columns import Column, Table
from microscope_tui.draw.frame import STATE_ROLES
from microscope_tui.draw.spans import (
    ROLE_OF_SEVERITY,
    Line,
    Span,
    dim,
    faded,
    line_width,
    plain,
    shortened,
    width_of,
)
from microscope_tui.sources import ForeignRun
from microscope_tui.watch import RunCard, RunState, Trouble, Verdict

_WIDE = 120
_ENOUGH = 200
"""Cells of a verdict that a filter matches."""
_GAP = 3
_LEAST_NAME, _LEAST_VERDICT, _MOST_VERDICT = 18, 16, 40
_LABELS, _MOST_LABEL = ("project", "group"), 20
_ASIDE = (RunState.FINISHED, RunState.ARCHIVED, RunState.WAITING)
"""States without colour in the list: live runs should stand out."""


def fit_list(cards: Sequence[RunCard], width: int) -> Table:
    """In narrow windows the labels go first, then the loss, then the step."""
    step = 2 + max([4, *(len(_step(card)) for card in cards)])
    loss = 2 + max([4, *(len(_loss(card)) for card in cards)])
    longest = max([3, *(width_of(card.file.name) for card in cards)])
    longest += max([len(_tag(card)) for card in cards], default=0)
    state = 4 + max([0, *(len(_state(card, width)) for card in cards)])
    columns = [
        Column("mark", 3, gap=0, head=""),
        Column("run", min(longest, _LEAST_NAME), gap=0),
        Column("state", max(12, state), gap=0, head="  state"),
        Column("age", 8, "right", gap=0),
        Column("step", step, "right", priority=3, gap=0),
        Column("loss", loss, "right", priority=2, gap=0),
        Column("verdict", _GAP + _LEAST_VERDICT, gap=0, head=" " * _GAP + "verdict"),
    ]
    columns[-1:-1] = [
        Column(name, max(len(name), cells), priority=1)
        for name in _LABELS
        if (cells := max([0, *(width_of(_label(card, name)) for card in cards)]))
    ]
    table = Table.fitting(columns, width)
    room = width - table.used("run", "verdict") - _GAP
    # The verdict matters most; names get what it leaves.
    most = _MOST_VERDICT if width < _WIDE else width // 2
    name = min(longest, max(room - most, min(room - _LEAST_VERDICT, width // 3)))
    return table.resized(run=max(8, name), verdict=_GAP + max(0, room - max(8, name)))


def run_line(card: RunCard, table: Table, *, chosen: bool) -> Line:
    """One row of the table of ``fit_list``; ``chosen``: at the cursor."""
    state = card.life.state
    role = "dim" if state in _ASIDE else STATE_ROLES.get(state, "dim")
    bright = "value" if state.live or card.open or card.findings or chosen else "dim"
    title = "title" if chosen else bright
    cursor = "▶ " if chosen else "  "
    selected = "✓" if card.selected else " "
    dot = "●" if state.live else "·"
    tag = _tag(card)
    name = shortened(card.file.name, max(1, table.width_of("run") - len(tag)))
    verdict = _verdict(card, table.width_of("verdict") - _GAP)
    if card.life.outdated:
        verdict = list(map(faded, verdict))
    return table.line(
        {
            "mark": [Span(f"{selected}{cursor}", "accent")],
            "run": [Span(name, title), Span(tag, "accent")],
            "state": [Span(f"  {dot} {_state(card, table.width)}", role)],
            "age": [dim(words.age(card.age_s))],
            "step": [Span(_step(card), bright)],
            "loss": [Span(_loss(card), bright)],
            **{name: [dim(_label(card, name))] for name in _LABELS},
            "verdict": [Span(" " * _GAP), *verdict],
        }
    )


def card_text(card: RunCard) -> str:
    """What a filter matches: the name, the labels, the state and the verdict."""
    labels = "".join(f"{_label(card, name)} " for name in _LABELS if _label(card, name))
    return f"{card.file.name} {labels}{_state(card)} {plain(_verdict(card, _ENOUGH))}"


def _state(card: RunCard, width: int = _WIDE) -> str:
    _, word, more = card.life
    return f"{word} ({more})" if more and width >= _WIDE else word


def _label(card: RunCard, name: str) -> str:
    about = card.file.about if isinstance(card.file, ForeignRun) else {}
    return shortened(about.get(name, ""), _MOST_LABEL)


def _tag(card: RunCard) -> str:
    tag = "  open" if card.open else ""
    if card.pinned:
        tag += "  pinned"
    return tag


def _step(card: RunCard) -> str:
    step = f"{card.step:,}" if card.step else "-"
    if card.planned_steps:
        step += f"/{words.short_number(card.planned_steps)}"
    return step


def _loss(card: RunCard) -> str:
    return words.decimal(card.loss) or "-"


def _verdict(card: RunCard, room: int) -> Line:
    if card.error:
        return [Span(card.error, "crit")]
    if card.findings:
        return _troubles(card.findings, room)
    if card.end_reason == "collapse":
        return [Span("stopped on collapse", "crit")]
    if card.verdict is not None and (card.queued or not 0.0 < card.judged < 1.0):
        return _calm(card, card.verdict, room)
    if not card.life.state and card.verdict is None:
        return []
    if 0.0 < card.judged < 1.0:
        return [dim(f"diagnosis at {card.judged:.0%}")]
    if card.queued:
        return [Span("to be judged", "faint")]
    if card.life.state is RunState.WAITING:
        return [Span("no steps yet", "faint")]
    return [Span("not judged", "faint")]


def _troubles(found: Sequence[Trouble], room: int) -> Line:
    worst = found[0]
    names = [
        Span(f"{trouble.severity.letter} {trouble.rule}", ROLE_OF_SEVERITY[trouble.severity])
        for trouble in found
    ]
    more = f" +{len(worst.layers) - 1}" if len(worst.layers) > 1 else ""
    where = f" {worst.layers[0]}{more}" if worst.layers else ""
    line = names[:1]
    others = [Span(f"  {name.text}", name.role) for name in names[1:]]
    for part in (Span(where), dim(f" since {worst.onset:,}"), *others):
        if line_width([*line, part]) <= room:
            line.append(part)
    return line


def _calm(card: RunCard, verdict: Verdict, room: int) -> Line:
    if verdict.no_verdict:
        short, bracket, rest = verdict.no_verdict.partition(" (")
        if verdict.evidence:
            return [dim(f"{short}, "), Span(verdict.evidence, "warn")]
        whole = width_of(verdict.no_verdict) <= room or not short.startswith("not judged")
        return [dim(f"{short}{bracket}{rest}" if whole else short)]
    if verdict.evidence:
        return [Span(verdict.evidence, "warn")]
    line = [Span("healthy", "ok" if card.life.state.live else "dim")]
    if card.recovered:
        was = card.recovered[0]
        line.append(dim(f", {was.severity.letter} {was.rule} recovered"))
    return line
