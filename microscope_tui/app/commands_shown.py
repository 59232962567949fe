"""The command palette: every binding of the present screen, by what it does."""

from collections.abc import Iterable, Sequence
from functools import partial

from textual.app import App, SystemCommand
from textual.binding import Binding
from textual.screen import Screen

from microscope_tui.app.keymap import shown_key


def commands_of(
    app: App[None], screen: Screen[object], bindings: Sequence[Binding]
) -> Iterable[SystemCommand]:
    """One command per binding, with its keys as the help."""
    for binding in bindings:
        if binding.id == "app.palette":
            continue
        keys = "  ".join(shown_key(key) for key in binding.key.split(","))
        text = binding.tooltip or binding.description
        known = binding.description in ("", text) or binding.description in text
        title = text if known else f"{binding.description}: {text}"
        namespace = app if binding.action.startswith("app.") else screen
        yield SystemCommand(title, keys, partial(app.run_action, binding.action, namespace))
