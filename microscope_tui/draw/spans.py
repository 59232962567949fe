"""Text with roles, independent of its appearance.

Roles: ``value`` ``dim`` ``faint`` ``ok`` ``warn`` ``crit`` ``accent`` ``brand``, the badges
``badge-warn`` ``badge-crit``, and ``heat:N`` for a load of N quarter octaves, ``heat:dead``,
``token:N`` ``also:N`` ``lit:N`` ``ink:N`` for expert colour N of a text.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from microscope_tui.diagnosis import Episode, Finding, Severity
from microscope_tui.runlog import cells_of


class Span(NamedTuple):
    """A text without line breaks, of one role."""

    text: str
    role: str = "value"
    """See above; ``value`` is the usual one."""


Line = list[Span]


def dim(text: str) -> Span:
    return Span(text, "dim")


ROLE_OF_SEVERITY = dict(zip(Severity, ("dim", "warn", "crit", "crit"), strict=True))
WORD_OF_SEVERITY = dict(zip(Severity, ("note", "warning", "critical", "error"), strict=True))


def role_of(trouble: Finding | Episode) -> str:
    """The colour of its severity while it is active."""
    return ROLE_OF_SEVERITY[trouble.severity] if trouble.active else "dim"


def cursor(here: bool) -> Span:
    """The first two cells of a row, which show whether the cursor is on it."""
    return Span("▶ " if here else "  ", "accent")


def row_label(name: str, severity: Severity | None, width: int, *, chosen: bool) -> Line:
    """Cursor, name and alert letter of a layer."""
    role = "value" if chosen or severity else "dim"
    letter = Span(" ")
    if severity:
        letter = Span(severity.letter, ROLE_OF_SEVERITY[severity])
    return [cursor(chosen), *pad([Span(shortened(name, width - 4), role)], width - 3), letter]


def in_turn(*texts: str, role: str = "value") -> Line:
    """Dim labels and values in ``role`` in turn."""
    line = [Span(text, role) for text in texts]
    line[::2] = map(dim, texts[::2])
    return line


def placed(cells: list[tuple[str, str]], at: int, text: str, role: str, margin: int = 0) -> bool:
    """Over blank cells with ``margin`` blanks around it; false if there is no room."""
    around = cells[max(0, at - margin) : at + len(text) + margin]
    if not 0 <= at <= len(cells) - len(text) or any(char != " " for char, _ in around):
        return False
    cells[at : at + len(text)] = [(char, role) for char in text]
    return True


def merged(cells: Iterable[tuple[str, str]]) -> Line:
    """Neighbours of the same role are merged: a span costs bytes."""
    line: Line = []
    for text, role in cells:
        if line and line[-1].role == role:
            line[-1] = Span(line[-1].text + text, role)
        else:
            line.append(Span(text, role))
    return line


def width_of(text: str) -> int:
    """Terminal cells of a text from ``safe_text``."""
    if text.isascii():
        return len(text)
    return sum(map(cells_of, text))


def line_width(line: Iterable[Span]) -> int:
    """Terminal cells of a line, whose texts come from ``safe_text``."""
    return sum(width_of(span.text) for span in line)


def crop(line: Sequence[Span], width: int) -> Line:
    """``line`` in at most ``width`` cells; if it was cut, the last one is ``…``."""
    if line_width(line) <= width:
        return list(line)
    out: Line = []
    left = width - 1
    for span in line:
        text = ""
        for char in span.text:
            size = width_of(char)
            if size > left:
                return [*out, Span(text, span.role), Span("…"[: max(0, width)], "dim")]
            text += char
            left -= size
        out.append(Span(text, span.role))
    return out


def shortened(text: str, width: int) -> str:
    """``text`` in at most ``width`` cells: names that differ at either end stay different."""
    if width_of(text) <= width:
        return text
    head, tail, room = "", "", max(0, width - 1)
    first, last = 0, len(text) - 1
    while first <= last:
        at_head = width_of(head) <= width_of(tail)
        char = text[first] if at_head else text[last]
        if width_of(head) + width_of(tail) + width_of(char) > room:
            break
        if at_head:
            head, first = head + char, first + 1
        else:
            tail, last = char + tail, last - 1
    return f"{head}…{tail}"[: max(0, width)]


def wrap(text: str, width: int) -> list[str]:
    """Break ``text`` at blanks; a word wider than ``width`` stays whole on its own line."""
    lines: list[str] = []
    line = ""
    for word in text.split(" "):
        longer = f"{line} {word}" if line else word
        if line and width_of(longer) > width:
            lines.append(line)
            line = word
        else:
            line = longer
    return [*lines, line] if line or not lines else lines


def labelled(
    word: str, parts: Iterable[str], width: int, role: str = "value", of_word: str = "dim"
) -> list[Line]:
    """Lines behind a word, which has ``width`` cells of the first one."""
    lines = []
    for part in parts:
        lines.append([Span(f"  {word:<{width - 2}}", of_word), Span(part, role)])
        word = ""  # on the first line only
    return lines


def faded(span: Span) -> Span:
    """The same in the role ``dim``."""
    return dim(span.text)


def pad(line: Sequence[Span], width: int, align: str = "left") -> Line:
    """``line`` cropped and filled with blanks to exactly ``width`` cells."""
    cut = crop(line, width)
    blank = Span(" " * (width - line_width(cut)), "")
    return [*cut, blank] if align == "left" else [blank, *cut]


def spread(left: Sequence[Span], right: Sequence[Span], width: int) -> Line:
    """``right`` is dropped if it does not fit."""
    room = width - line_width(left) - line_width(right)
    if room < 1:
        return pad(left, width)
    return [*left, Span(" " * room, ""), *right]


def first_fitting(texts: Iterable[str], room: int, default: str = "") -> str:
    """The first of ``texts`` with at most ``room`` cells; ``default`` if none has."""
    return next((text for text in texts if width_of(text) <= room), default)


def joined(parts: Sequence[str], room: int) -> str:
    """At most ``room`` cells; the last ``parts`` are dropped first."""
    while parts and width_of("  ·  ".join(parts)) > room:
        parts = parts[:-1]
    return "  ·  ".join(parts)


def with_notes(left: Sequence[Span], notes: Iterable[str], width: int, *, gap: int = 2) -> Line:
    """``left``, and at the other end of the line the first of the notes, as many as fit."""
    shown = joined([note for note in notes if note], width - line_width(left) - gap - 1)
    return spread(left, [Span(f"{shown} ", "faint")], width)


def plain(line: Iterable[Span]) -> str:
    """The text of a line, without blanks at its end."""
    return "".join(span.text for span in line).rstrip()
