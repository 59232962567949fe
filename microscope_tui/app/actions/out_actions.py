"""Keys that copy and export: text, tables, pictures."""

import asyncio
from pathlib import Path

from microscope_tui.app import copying
from microscope_tui.app.actions.base_screen import BaseScreen
from microscope_tui.app.new_file import free_name, write_new
from microscope_tui.app.widgets.rows import in_truecolor
from microscope_tui.lines import shortened
from microscope_tui.report import export
from microscope_tui.watch import RunView


class OutActions(BaseScreen):
    """Copies through the terminal (OSC 52); writes files to the working directory."""

    async def action_write(self, what: str) -> None:
        """Write the view as ``csv``, ``json`` or ``svg``, under an unused name."""
        view = self.session.view(1, 1)
        if view is None:
            return
        name = self.name_of_screen()
        try:
            if what == "svg":
                from microscope_tui.app.renderables.svg import (
                    stand_alone,  # imported late: keeps the start fast
                )

                with in_truecolor(self.app):
                    text = stand_alone(self.app.export_screenshot(simplify=True))
            else:
                text = export.view_csv(view) if what == "csv" else self.as_json(view)
            path = await asyncio.to_thread(_write, f"{view.name}-{view.step}-{name}", what, text)
        except OSError as error:
            reason = error.strerror or error
            self.tell(
                f"cannot write here: {reason}; start moe-microscope in a folder you can write to"
            )
        else:
            self.session.written.append(path)
            said = f"written: {path.name} in "
            self.tell(
                said + shortened(str(path.parent), max(8, self.size.width - len(said) - 2)), "ok"
            )

    def as_json(self, view: RunView) -> str:
        """What the screen shows, as data."""
        return export.view_json(view)

    def copy(self, what: str) -> None:
        """Copy a ``verdict``, ``row`` or ``value`` to the clipboard of the terminal."""
        session = self.session
        view = session.view(1, 1, range(0))
        if view is None or session.selected >= len(view.layers):
            return
        layer = view.layers[session.selected]
        text = {
            "verdict": lambda: copying.verdict_text(view),
            "row": lambda: copying.row_text(layer, view),
            "value": lambda: copying.value_text(layer, session.expert),
        }[what]()
        if not text:
            self.tell("no such value at this step")
            return
        self.put_in_clipboard(text, text.splitlines()[0])

    def name_of_screen(self) -> str:
        """The layer in file names."""
        return type(self).__name__.removesuffix("Screen").lower()


def _write(stem: str, suffix: str, text: str) -> Path:
    """Write to the working directory, in a thread: the disk may be slow."""
    path = free_name(Path.cwd(), stem, f".{suffix}")
    write_new(path, text)
    return path
