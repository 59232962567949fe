"""Asks for a step in the last line of a screen: digits, enter.

Not a screen of its own: keys that are typed or pasted fast would still reach the one below.
"""

from microscope_tui.report.glyphs import Glyphs
from microscope_tui.report.spans import Line, Span

_MOST_DIGITS = 12


class StepPrompt:
    """What was typed so far; closed while nobody asks."""

    def __init__(self) -> None:
        self.open = False
        self._typed = ""

    def ask(self) -> None:
        """Open with nothing typed."""
        self.open, self._typed = True, ""

    def take(self, key: str, character: str | None) -> int | None:
        """One key. Returns the step once it is entered; any key but a digit closes."""
        if key == "backspace":
            self._typed = self._typed[:-1]
        elif character is not None and character in "0123456789":
            self._typed = (self._typed + character)[:_MOST_DIGITS]
        else:
            self.open = False
            if key == "enter" and self._typed:
                return int(self._typed)
        return None

    def line(self, last: int, problem: str | None, glyphs: Glyphs) -> Line:
        """The prompt as it stands on the screen; with ``problem`` if no step can be shown."""
        cursor = "_" if glyphs is Glyphs.ASCII else "▏"
        typed = [
            Span(" go to step ", "accent"),
            Span(self._typed, "title"),
            Span(cursor, "accent"),
        ]
        if problem:
            return [*typed, Span(f"   {problem}", "warn")]
        return [
            *typed,
            Span(f"   1 to {last:,}   ", "dim"),
            Span("enter", "accent"),
            Span(" go   ", "dim"),
            Span("esc", "accent"),
            Span(" stay", "dim"),
        ]
