"""Prompts: questions in the last line, and what is done with the answer.

A prompt with a screen of its own would lose keys that are typed fast to the screen below.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from textual.app import App

from microscope_tui.draw.glyphs import Glyphs
from microscope_tui.draw.spans import Line, Span
from microscope_tui.kit.key_line import said
from microscope_tui.kit.session import Session
from microscope_tui.runlog import safe_text

_MOST_CHARACTERS = 100


class AskingScreen(Protocol):
    """What a prompt needs of the screen that asks."""

    session: Session
    prompt: "Prompt | None"
    pattern: str

    @property
    def app(self) -> App[Any]: ...
    def draw_last_line(self) -> None: ...
    def show_message(self, text: str | None, role: str = "warn") -> None: ...
    async def redraw(self) -> None: ...
    async def from_disk(self, work: Callable[..., str | None], *arguments: object) -> None: ...


class Prompt:
    """A question, and the text that is typed as its answer. A subclass is a kind of question."""

    LABEL: ClassVar[str]
    """In front of what is typed."""
    ENTER = "go"
    ESCAPE = "stay"
    """What these keys do, in words."""

    screen: AskingScreen

    def __init__(self, screen: Any) -> None:
        self.screen = screen
        self.session = screen.session
        self.typed = ""

    async def begin(self) -> None:
        """Ask it, if there is a run."""
        if self.session.has_run:
            self.open()

    def open(self) -> None:
        """Show it in place of the keys."""
        self.screen.prompt = self
        self.screen.draw_last_line()

    def close(self) -> None:
        """Show the keys again."""
        self.screen.prompt = None
        self.screen.draw_last_line()

    def hint(self) -> tuple[str, str | None]:
        """What can be typed, and why it cannot be used now (``None``: it can)."""
        return "", None

    async def answered(self, text: str) -> None:
        """``text`` was entered; it is not empty."""

    def takes(self, character: str) -> bool:
        """Whether the answer may contain this character."""
        return character.isprintable()

    async def take(self, key: str, character: str | None) -> None:
        """Take a key: enter answers, escape closes."""
        if key in ("enter", "escape"):
            self.close()
            if key == "enter" and self.typed:
                await self.answered(self.typed)
            return
        if key == "backspace":
            self.typed = self.typed[:-1]
        elif key == "ctrl+u":
            self.typed = ""
        elif character is not None and self.takes(character):
            self.typed = (self.typed + character)[:_MOST_CHARACTERS]
        self.screen.draw_last_line()

    def line(self) -> Line:
        """As the last line; a problem replaces what can be typed."""
        hint, problem = self.hint()
        cursor = "_" if self.session.glyphs is Glyphs.ASCII else "▏"
        label = Span(f" {self.LABEL} ", "accent")
        typed: Line = [label, Span(self.typed, "title"), Span(cursor, "accent")]
        if problem:
            return [*typed, Span(f"   {problem}", "warn")]
        keys = [("enter", f" {self.ENTER}   "), ("esc", f" {self.ESCAPE}")]
        return [*typed, Span(f"   {hint}   ", "dim"), *said(keys)]


class GoTo(Prompt):
    """To a step, or a time."""

    LABEL = "go to step"

    def hint(self) -> tuple[str, str | None]:
        time = self.session.time
        return f"1 to {time.newest_step:,}, 50%, -100, 14:30, -2h", time.why_no_past()

    async def answered(self, text: str) -> None:
        await self.screen.from_disk(self.session.time.go, text)


class Filter(Prompt):
    """The pattern of the screen; applied while it is typed, and escape clears it."""

    LABEL = "filter"
    ENTER = "keep"
    ESCAPE = "all"

    def open(self) -> None:
        self.typed = self.screen.pattern
        super().open()

    def hint(self) -> tuple[str, str | None]:
        return "text, !text", None

    async def take(self, key: str, character: str | None) -> None:
        await super().take(key, character)
        self.screen.pattern = self.typed if key != "escape" else ""
        await self.screen.redraw()


class TopK(Prompt):
    """The k of a run of another tool, whose proposed keys are then used."""

    LABEL = "k"

    async def begin(self) -> None:
        if self.session.lacks_top_k:
            self.open()
        else:
            await self.answered("0")

    def hint(self) -> tuple[str, str | None]:
        return "experts per token? 0: unknown", None

    def takes(self, character: str) -> bool:
        return character.isdecimal()

    async def answered(self, text: str) -> None:
        self.screen.show_message(self.session.confirm_keys(int(text[:5])), "accent")
        await self.screen.redraw()


def filter_note(pattern: str, cells: int = 40) -> str:
    """The filter for a title, cut to so many cells; empty without one."""
    return f"/{safe_text(pattern, cells)}" if pattern else ""
