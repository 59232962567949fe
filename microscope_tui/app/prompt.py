"""A prompt in the last line of a screen: a step, a filter, what to copy.

Not a screen of its own: keys that are typed fast would still reach the screen below.
"""

from typing import Literal

from microscope_tui.lines import Glyphs, Line, Span

Kind = Literal["", "place", "filter", "copy", "token", "find"]

_MOST_CHARACTERS = 100
_LABELS = {
    "place": " go to step ",
    "filter": " filter ",
    "copy": " copy ",
    "token": " go to token ",
    "find": " find ",
}
COPY_CHOICES = {"v": "verdict", "r": "row", "x": "value"}


class Prompt:
    """The state of the prompt: its kind and the typed text."""

    def __init__(self) -> None:
        self.kind: Kind = ""
        """What the prompt is for; empty while it is closed."""
        self.typed = ""

    @property
    def open(self) -> bool:
        """Whether the prompt is open."""
        return bool(self.kind)

    def ask(self, kind: Kind, typed: str = "") -> None:
        """Open."""
        self.kind, self.typed = kind, typed

    def take(self, key: str, character: str | None) -> str | None:
        """Handle one key. Returns the text on enter; escape closes; other keys do nothing."""
        if self.kind == "copy":
            self.kind = ""
            return character if character in COPY_CHOICES else None
        if key == "backspace":
            self.typed = self.typed[:-1]
        elif key == "ctrl+u":
            self.typed = ""
        elif key in ("enter", "escape"):
            self.kind = ""
            return self.typed if key == "enter" else None
        elif character is not None and character.isprintable():
            self.typed = (self.typed + character)[:_MOST_CHARACTERS]
        return None

    def line(self, hint: str, problem: str | None, glyphs: Glyphs) -> Line:
        """The prompt as a line; ``problem`` replaces the hint."""
        if self.kind == "copy":
            choices: Line = [Span(_LABELS[self.kind], "accent")]
            for key, what in COPY_CHOICES.items():
                choices += [Span(f"  {key}", "accent"), Span(f" {what}", "dim")]
            return [*choices, Span("   esc", "accent"), Span(" cancel", "dim")]
        cursor = "_" if glyphs is Glyphs.ASCII else "▏"
        typed = [
            Span(_LABELS[self.kind], "accent"),
            Span(self.typed, "title"),
            Span(cursor, "accent"),
        ]
        if problem:
            return [*typed, Span(f"   {problem}", "warn")]
        return [
            *typed,
            Span(f"   {hint}   ", "dim"),
            Span("enter", "accent"),
            Span(" keep   " if self.kind == "filter" else " go   ", "dim"),
            Span("esc", "accent"),
            Span(" all" if self.kind == "filter" else " stay", "dim"),
        ]
