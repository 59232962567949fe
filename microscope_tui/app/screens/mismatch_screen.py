"""Where the probe of the pinned run (A) and that of the open one (B) chose other experts."""

import asyncio
from pathlib import Path
from typing import ClassVar

from textual.binding import BindingType

from microscope_tui.app import keys
from microscope_tui.app.keys import key
from microscope_tui.app.screens.run_screen import RunScreen
from microscope_tui.lines import Line, Span, mismatch, pad, wrap
from microscope_tui.report import compared_probes
from microscope_tui.routing import FILE_NAME, BadRouting, Mismatch, NotComparable
from microscope_tui.runlog import safe_text
from microscope_tui.watch import RunView

_FRAME_ROWS = 6  # header, title, two lines of text, heading of the layers, keys
_Key = tuple[object, ...]


class MismatchScreen(RunScreen):
    """A worker thread compares; the result is kept for the session."""

    CSS = """
    #mismatch-title { height: 1; }
    #mismatch-head { height: 2; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        keys.BACK,
        *keys.LAYERS,
        key("mismatch.pinned", "b", "app.go('runs')", "choose the run to compare with", "pick A"),
        keys.SVG,
        *keys.EVERYWHERE,
    ]
    PARTS = ("header", "mismatch-title", "mismatch-head", "mismatch-rows", "keys")

    _asked: _Key = ()

    async def draw(self, view: RunView, columns: int, rows: int) -> None:
        found = self._found()
        title: Line = [Span("mismatch", "brand")]
        if isinstance(found, str):
            waits = found.endswith("…")
            lines = (
                [[Span(line, "dim")] for line in wrap(found, columns)]
                if waits
                else mismatch.without_probe(found, columns)
            )
            head: list[Line] = []
            body = [pad(line, columns) for line in lines]
        else:
            session, layers = self.session, len(found.layers)
            session.selected = max(0, min(layers - 1, session.selected))
            self.in_view(session.selected, layers, max(1, rows - _FRAME_ROWS))
            pinned = session.fleet.pinned
            a = pinned.file.name if pinned is not None else ""
            title = [Span("mismatch ", "brand"), Span(f"A {a}, B the open run", "dim")]
            head = mismatch.head_lines(found, columns)
            body = mismatch.beside_each_other(
                found, columns, self.list_rows + 1, session.glyphs, session.selected, self.first
            )
        self.show("mismatch-title", [pad(title, columns)])
        self.show("mismatch-head", head)
        self.show("mismatch-rows", body)

    def _found(self) -> Mismatch | str:
        """The comparison, or why there is none."""
        watch, pinned = self.session.watch, self.session.fleet.pinned
        if watch is None:
            return "no run is open"
        mine = watch.path.with_name(FILE_NAME)
        if not mine.is_file():
            return f"{watch.file.name} has no probe (no {FILE_NAME} beside its log)."
        if pinned is None:
            return "Pin the run to compare with: 4 runs, then p. It is A, the open run is B."
        theirs = pinned.file.path.with_name(FILE_NAME)
        if theirs == mine:
            return "A, the pinned run, is also the open one: open another, which is B, on 4 runs."
        if not theirs.is_file():
            return f"A, {pinned.file.name}, has no probe (no {FILE_NAME} beside its log)."
        key = (*_state(theirs), *_state(mine))
        known = self.session.mismatches.get(key)
        if known is None and self._asked != key:
            self._asked = key
            self.run_worker(self._compare(key, theirs, mine), group="mismatch", exclusive=True)
        return known if known is not None else "comparing the choices of both probes …"

    async def _compare(self, key: _Key, theirs: Path, mine: Path) -> None:
        self.session.mismatches[key] = await asyncio.to_thread(_compared, theirs, mine)
        await self.redraw_if_current()


def _state(path: Path) -> _Key:
    try:
        found = path.stat()
    except OSError:
        return path, 0, 0
    return path, found.st_size, found.st_mtime_ns


def _compared(a: Path, b: Path) -> Mismatch | str:
    """The comparison, or why there is none. Reads from the disk."""
    try:
        return compared_probes(a, b)
    except NotComparable as error:
        return f"The probes cannot be compared: {safe_text(error, 300)}."
    except BadRouting as error:
        return safe_text(error, 300)
    except OSError as error:
        return safe_text(f"{error.filename}: {error.strerror or error}", 300)
