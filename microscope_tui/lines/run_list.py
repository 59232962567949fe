"""The list of runs as lines: state, age, progress, loss and verdict, one run per line.

Live and unhealthy runs are bright, finished ones dim; in narrow windows the loss is left out first,
then the step, and hidden columns are named.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from microscope_tui.lines import words
from microscope_tui.lines.frame import STATE_ROLES
from microscope_tui.lines.glyphs import Glyphs
from microscope_tui.lines.spans import (
    ROLE_OF_SEVERITY,
    Line,
    Span,
    line_width,
    pad,
    plain,
    shortened,
    width_of,
)
from microscope_tui.watch import RunCard, RunState, Verdict

_MARK, _STATE, _AGE, _GAP = 3, 10, 8, 3
_ENOUGH = 200
"""Cells of a verdict that a filter matches."""
_LEAST_NAME, _LEAST_VERDICT, _MOST_VERDICT = 18, 16, 40
_ASIDE = (RunState.FINISHED, RunState.ARCHIVED, RunState.WAITING)
"""States without colour in the list: live runs should stand out."""


@dataclass(frozen=True, slots=True)
class RunListLayout:
    """Widths in cells; 0 for a column that is left out."""

    columns: int
    name: int
    step: int
    loss: int

    @property
    def hidden(self) -> str:
        """What was left out for lack of room, in words."""
        left_out = [word for word, width in (("step", self.step), ("loss", self.loss)) if not width]
        return f"no room for {' and '.join(left_out)}" if left_out else ""


def fit_list(cards: Sequence[RunCard], columns: int) -> RunListLayout:
    """Column widths: the name gets what the other columns leave."""
    step = 2 + max([4, *(len(_step(card)) for card in cards)])
    loss = 2 + max([4, *(len(_loss(card)) for card in cards)])
    longest = max([3, *(width_of(card.file.name) for card in cards)])
    longest += max([len(_tag(card)) for card in cards], default=0)
    fixed = _MARK + 2 + _STATE + _AGE + _GAP
    for step_, loss_ in ((step, loss), (step, 0), (0, 0)):
        room = columns - fixed - step_ - loss_
        if room - _LEAST_VERDICT >= min(longest, _LEAST_NAME):
            break
    # The verdict matters most; names get what it leaves.
    name = min(longest, max(room - _MOST_VERDICT, min(room - _LEAST_VERDICT, columns // 3)))
    return RunListLayout(columns, max(8, name), step_, loss_)


def run_heads(layout: RunListLayout) -> Line:
    """The names of the columns."""
    return pad(
        [
            Span(" " * _MARK),
            *pad([Span("run", "dim")], layout.name),
            *pad([Span("  state", "dim")], _STATE + 2),
            *pad([Span("age", "dim")], _AGE, "right"),
            *pad([Span("step"[: layout.step], "dim")], layout.step, "right"),
            *pad([Span("loss"[: layout.loss], "dim")], layout.loss, "right"),
            Span(" " * _GAP + "verdict", "dim"),
        ],
        layout.columns,
    )


def run_line(card: RunCard, layout: RunListLayout, glyphs: Glyphs, *, chosen: bool) -> Line:
    """One run."""
    role = "dim" if card.state in _ASIDE else STATE_ROLES.get(card.state, "dim")
    bright = "value" if card.state.live or card.open or card.findings or chosen else "dim"
    cursor = ">" if glyphs is Glyphs.ASCII else "▶"
    mark = "●" if card.state.live else "·"
    picked = " " if not card.selected else "+" if glyphs is Glyphs.ASCII else "✓"
    left = [
        Span(picked, "accent"),
        Span(f"{cursor} " if chosen else "  ", "accent"),
        *_name(card, layout.name, "title" if chosen else bright),
        Span(f"  {mark} ", role),
        *pad([Span(card.state, role)], _STATE - 2),
        *pad([Span(words.age(card.age_s), "dim")], _AGE, "right"),
        *pad([Span(_step(card), bright)] if layout.step else [], layout.step, "right"),
        *pad([Span(_loss(card), bright)] if layout.loss else [], layout.loss, "right"),
        Span(" " * _GAP),
    ]
    return pad([*left, *_verdict(card, layout.columns - line_width(left))], layout.columns)


def card_text(card: RunCard) -> str:
    """The text that a filter matches: name, state and verdict."""
    return f"{card.file.name} {card.state} {plain(_verdict(card, _ENOUGH))}"


def _tag(card: RunCard) -> str:
    """Marks after the name."""
    return "  open" * card.open + "  pinned" * card.pinned


def _name(card: RunCard, width: int, role: str) -> Line:
    tag = _tag(card)
    name = shortened(card.file.name, max(1, width - len(tag)))
    return pad([Span(name, role), Span(tag, "accent")], width)


def _step(card: RunCard) -> str:
    step = f"{card.step:,}" if card.step else "-"
    return f"{step}/{words.short_number(card.planned_steps)}" if card.planned_steps else step


def _loss(card: RunCard) -> str:
    return words.decimal(card.loss) or "-"


def _verdict(card: RunCard, room: int) -> Line:
    """The alerts, as many as fit."""
    if card.error:
        return [Span(card.error, "crit")]
    if card.findings:
        worst = card.findings[0]
        role = ROLE_OF_SEVERITY[worst.severity]
        more = f" +{len(worst.layers) - 1}" if len(worst.layers) > 1 else ""
        where = f" {worst.layers[0]}{more}" if worst.layers else ""
        line = [Span(f"{worst.severity.letter} {worst.rule}", role)]
        for part in (Span(where), Span(f" since {worst.onset:,}", "dim")):
            if line_width([*line, part]) <= room:
                line.append(part)
        return line
    if card.end_reason == "collapse":
        return [Span("stopped on collapse", "crit")]
    if card.verdict is None:
        return _unknown(card)
    if not card.queued and 0.0 < card.judged < 1.0:
        return [Span(f"diagnosis at {card.judged:.0%}", "dim")]
    return _calm(card, card.verdict, room)


def _unknown(card: RunCard) -> Line:
    """Progress of the diagnosis while there is no verdict."""
    if not card.state:
        return []
    if card.judged > 0.0:
        return [Span(f"diagnosis at {card.judged:.0%}", "dim")]
    if card.queued:
        return [Span("to be judged", "faint")]
    return [Span("no steps yet" if card.state is RunState.WAITING else "not judged", "faint")]


def _calm(card: RunCard, verdict: Verdict, room: int) -> Line:
    """Text without active alerts: the verdict, recovered alerts, or pending evidence."""
    if verdict.no_verdict:
        short, bracket, rest = verdict.no_verdict.partition(" (")
        if verdict.evidence:
            return [Span(f"{short}, ", "dim"), Span(verdict.evidence, "warn")]
        whole = width_of(verdict.no_verdict) <= room or not short.startswith("not judged")
        return [Span(f"{short}{bracket}{rest}" if whole else short, "dim")]
    if verdict.evidence:
        return [Span(verdict.evidence, "warn")]
    line = [Span("healthy", "ok" if card.state.live else "dim")]
    if card.recovered:
        was = card.recovered[0]
        line.append(Span(f", {was.severity.letter} {was.rule} recovered", "dim"))
    return line
