"""The list of runs as lines: state, age, progress, loss and what is wrong, one run a line."""

from collections.abc import Sequence

from microscope_tui.report import words
from microscope_tui.report.frame import STATE_ROLES
from microscope_tui.report.spans import ROLE_OF_SEVERITY, Line, Span, pad, width_of
from microscope_tui.watch.fleet import RunCard

_STATE, _AGE, _STEP, _LOSS = 9, 7, 17, 7
_MOST_NAME = 48


def run_heads(cards: Sequence[RunCard], columns: int) -> Line:
    """The names of the columns."""
    name = name_width(cards, columns)
    return pad(
        [
            Span("    "),
            *pad([Span("run", "dim")], name),
            *pad([Span("  state", "dim")], _STATE + 4),
            *pad([Span("age", "dim")], _AGE, "right"),
            *pad([Span("step", "dim")], _STEP, "right"),
            *pad([Span("loss", "dim")], _LOSS, "right"),
            Span("   verdict", "dim"),
        ],
        columns,
    )


def run_line(card: RunCard, name: int, columns: int, *, selected: bool) -> Line:
    """One run."""
    role = STATE_ROLES.get(card.state, "dim")
    step = f"{card.step:,}" if card.step else "-"
    if card.planned_steps:
        step += f"/{words.short_number(card.planned_steps)}"
    return pad(
        [
            Span(" > " if selected else "   ", "accent"),
            Span("*" if card.open else " ", "accent"),
            *pad([Span(card.file.name, "title" if selected else "value")], name),
            Span("  ● ", role),
            *pad([Span(card.state, role)], _STATE),
            *pad([Span(words.age(card.age_s), "dim")], _AGE, "right"),
            *pad([Span(step)], _STEP, "right"),
            *pad([Span(words.decimal(card.loss) or "-")], _LOSS, "right"),
            Span("   "),
            *_verdict(card),
        ],
        columns,
    )


def name_width(cards: Sequence[RunCard], columns: int) -> int:
    """Cells for the names: what the longest needs, as far as there is room."""
    room = columns - (4 + 4 + _STATE + _AGE + _STEP + _LOSS + 3 + 12)
    longest = max((width_of(card.file.name) for card in cards), default=0)
    return max(8, min(room, _MOST_NAME, max(12, longest)))


def _verdict(card: RunCard) -> Line:
    if card.error:
        return [Span(card.error, "crit")]
    if card.findings is None:
        return [Span("not followed", "faint")]
    if not card.findings and card.judged < 1.0:
        return [Span(f"diagnosis at {card.judged:.0%}", "dim")]
    if not card.findings:
        return [Span("healthy", "ok")]
    worst = card.findings[0]
    layers = worst.layers
    where = layers[0] + (f" +{len(layers) - 1}" if len(layers) > 1 else "") if layers else ""
    return [
        Span(f"{worst.severity.letter} ", ROLE_OF_SEVERITY[worst.severity]),
        Span(f"{worst.rule} {where} since {worst.onset:,}"),
    ]
