"""Where the probe of the pinned run (A) and that of the open one (B) chose other experts."""

import asyncio
from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType

from microscope_tui.app import probe_keys
from microscope_tui.app.actions.run_screen import RunScreen
from microscope_tui.app.widgets.rows import Rows
from microscope_tui.lines import Line, Span, first_visible, frame, mismatch, pad, wrap
from microscope_tui.report import compared_probes
from microscope_tui.routing import FILE_NAME, BadRouting, Mismatch, NotComparable
from microscope_tui.runlog import safe_text

_FRAME_ROWS = 6  # header, title, two lines of text, heading of the layers, keys
_Key = tuple[object, ...]


class MismatchScreen(RunScreen):
    """A worker thread compares; the result is kept for the session."""

    CSS = """
    #mismatch-title { height: 1; }
    #mismatch-head { height: 2; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [*probe_keys.MISMATCH]

    _asked: _Key = ()
    _first = 0
    _visible = 10

    def compose(self) -> ComposeResult:
        for name in ("header", "mismatch-title", "mismatch-head", "mismatch-rows", "keys"):
            yield Rows(self.session.glyphs, id=name)

    @property
    def busy(self) -> bool:
        """The probes are still being compared."""
        return any(worker.node is self and not worker.is_finished for worker in self.workers)

    def page(self) -> int:
        return self._visible

    async def redraw(self) -> None:
        session, columns = self.session, self.room.width
        view = session.view(1, 1, range(0))
        if view is None or self.draw_small(view):
            return
        self.query_one("#header", Rows).show([frame.header(view, columns, session.glyphs)])
        found = self._found()
        if isinstance(found, str):
            self._draw_problem(found)
        else:
            self._draw(found)
        self.draw_last_line()

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
        found = await asyncio.to_thread(_compared, theirs, mine)
        self.session.mismatches[key] = found
        await self.redraw_if_current()

    def _draw(self, found: Mismatch) -> None:
        session, (columns, rows) = self.session, self.room
        layers = len(found.layers)
        session.selected = max(0, min(layers - 1, session.selected))
        self._visible = max(1, rows - _FRAME_ROWS)
        self._first = first_visible(self._visible, session.selected, self._first, layers)
        self._show_title(
            [Span("mismatch ", "brand"), Span(f"A {self._name_of_a()}, B the open run", "dim")]
        )
        self.query_one("#mismatch-head", Rows).show(mismatch.head_lines(found, columns))
        body = mismatch.beside_each_other(
            found, columns, self._visible + 1, session.glyphs, session.selected, self._first
        )
        self.query_one("#mismatch-rows", Rows).show(body)

    def _name_of_a(self) -> str:
        pinned = self.session.fleet.pinned
        return pinned.file.name if pinned is not None else ""

    def _draw_problem(self, problem: str) -> None:
        columns = self.room.width
        self._show_title([Span("mismatch", "brand")])
        self.query_one("#mismatch-head", Rows).show([])
        lines: list[Line]
        if problem.endswith("…"):
            lines = [[Span(line, "dim")] for line in wrap(problem, columns)]
        else:
            lines = mismatch.without_probe(problem, columns)
        self.query_one("#mismatch-rows", Rows).show([pad(line, columns) for line in lines])

    def _show_title(self, line: Line) -> None:
        self.query_one("#mismatch-title", Rows).show([pad(line, self.room.width)])

    async def action_pinned(self) -> None:
        """Choose the run to compare with."""
        await self.app.run_action("app.go('runs')")


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
