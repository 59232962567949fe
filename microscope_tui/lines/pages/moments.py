"""The two compared steps, one above the other, and their difference."""

import math
from collections.abc import Callable, Sequence

from microscope_tui.lines import words
from microscope_tui.lines.spans import Line, Span, pad, shortened, width_of
from microscope_tui.runlog import StepRecord
from microscope_tui.watch import Reference, RunView

_MARK, _GAP = 4, 3
_MOST_NAME = 32
_WIDE = 72


def moment_lines(
    view: RunView, reference: Reference, columns: int, remarks: tuple[Span, Span], *, brief: bool
) -> list[Line]:
    """A, B and the change from A to B, under their heads; A and B alone if ``brief``.

    Args:
        remarks: what is to be said of A and of B.
    """
    then, now = reference.record, view.record or reference.record
    heads = ("step", "loss", "lr", "tokens")[: 4 if columns >= _WIDE else 2]
    rows = [_values(then)[: len(heads)], _values(now)[: len(heads)]]
    change = _changes(then, now)[: len(heads)]
    widths = [max(5, *map(len, column)) for column in zip(heads, *rows, change, strict=True)]
    fixed = _MARK + sum(_GAP + width for width in widths)
    longest = max(width_of(reference.run), width_of(view.name), 6)
    name = max(8, min(longest, _MOST_NAME, columns - fixed - 12))

    def line(mark: str, of: str, values: Sequence[str], role: str, *remark: Span) -> Line:
        cells: Line = [Span(f" {mark:<{_MARK - 1}}", "accent")]
        cells += pad([Span(shortened(of, name), role)], name)
        for value, width in zip(values, widths, strict=True):
            cells += [Span(" " * _GAP), *pad([Span(value, role)], width, "right")]
        return pad([*cells, Span(" " * _GAP), *remark], columns)

    both = [
        line("A", reference.run, rows[0], "value", remarks[0]),
        line("B", view.name, rows[1], "value", remarks[1]),
    ]
    if brief:
        return both
    return [line("", "run", heads, "dim"), *both, line("", "change", change, "dim")]


def _values(record: StepRecord) -> list[str]:
    return [
        f"{record.step:,}",
        words.decimal(record.loss) or "-",
        "-" if record.learning_rate is None else f"{record.learning_rate:.3g}",
        words.short_number(record.tokens),
    ]


def _changes(then: StepRecord, now: StepRecord) -> list[str]:
    """The change."""
    return [
        _difference(then.step, now.step, lambda x: f"{x:+,}"),
        _difference(then.loss, now.loss, lambda x: f"{x:+.2f}"),
        _difference(then.learning_rate, now.learning_rate, lambda x: f"{x:+.2g}"),
        _difference(then.tokens, now.tokens, _more_tokens),
    ]


def _more_tokens(tokens: float) -> str:
    return f"{'+' if tokens > 0 else '-'}{words.short_number(abs(tokens))}"


def _difference(then: float | None, now: float | None, say: Callable[[float], str]) -> str:
    if then is None or now is None or not math.isfinite(now - then):
        return "-"
    return say(now - then) if now != then else "same"
