"""Help, generated from the bindings, and the reading of the main screen in a few lines."""

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen

from microscope_tui.app import keys
from microscope_tui.app.widgets.rows import Rows
from microscope_tui.report.glyphs import Glyphs
from microscope_tui.report.spans import Line, Span, pad

_READING = (
    "a row is a layer: load per expert, balance c, token entropy, dropped share",
    "load: grey is fair, amber to white overloaded, blue starving, × dead",
    "balance c: 1 is even, 0 collapsed on k experts; entropy cannot tell",
    "C critical, W warning, I note, M the measurement itself is at fault",
)


class HelpScreen(ModalScreen[None]):
    """Lists exactly the bindings of the screen that it was opened from."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q,enter", "dismiss_help", "close", id="help.close")
    ]

    def __init__(self, bindings: Sequence[Binding], glyphs: Glyphs) -> None:
        super().__init__()
        self._bindings_shown = bindings
        self._glyphs = glyphs

    def compose(self) -> ComposeResult:
        yield Rows(self._glyphs, id="help")

    def on_resize(self) -> None:
        close: Line = [Span("     esc", "accent"), Span(" closes this", "dim")]
        lines: list[Line] = [[Span("  Keys", "title"), *close], []]
        width = min(self.size.width, 96)
        lines += keys.help_lines(self._bindings_shown, self._glyphs, width - 4)
        lines += [[], [Span("  Reading the screen", "title")], []]
        lines += [[Span(f"  {text}", "dim")] for text in _READING]
        help_ = self.query_one("#help", Rows)
        help_.styles.width, help_.styles.height = width, min(self.size.height, len(lines) + 2)
        help_.show([pad(line, width - 2) for line in [[], *lines]])

    def action_dismiss_help(self) -> None:
        """Close the help."""
        self.dismiss()
