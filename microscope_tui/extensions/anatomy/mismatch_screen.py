"""The probes of two runs beside each other: where they chose different experts."""

import asyncio
from pathlib import Path
from typing import ClassVar

from microscope_tui.draw.spans import Line, Span, dim, pad, wrap
from microscope_tui.extensions.anatomy import mismatch_text as mismatch
from microscope_tui.extensions.anatomy.compare import (
    Mismatch,
    NotComparable,
    compare as compare_choices,
)
from microscope_tui.extensions.anatomy.layout import BadRouting
from microscope_tui.extensions.anatomy.opened import anatomy_of
from microscope_tui.extensions.anatomy.routing_file import Routing
from microscope_tui.kit import keys
from microscope_tui.kit.glossary import HEADER, LAYER, MARGIN
from microscope_tui.kit.keys import key
from microscope_tui.kit.run_screen import RunScreen
from microscope_tui.runlog import ROUTING_NAME, Stamp, safe_text, stamp_of
from microscope_tui.watch import RunView

_FRAME_ROWS = 4  # header, title, heading of layers, keys
_Key = tuple[object, ...]


_MISMATCH = {
    "A, B": "A: the probe of the pinned run; B: that of the open one, of the same tokens",
    "differ": "share of (token, layer) choices whose set of experts is not the same",
    "tenths": "the choices in ten parts of equal size, the smallest margins first",
    "swap": "the expert that only A chose, and the one that B chose in its place",
}


class MismatchScreen(RunScreen):
    """A is the pinned run, B the open one. The result is kept for the session."""

    WORDS: ClassVar = {**_MISMATCH, **MARGIN, **LAYER, **HEADER}
    BINDINGS: ClassVar = [
        keys.BACK,
        *keys.LAYERS,
        key("mismatch.pinned", "b", "app.go('runs')", "choose the run to compare with", "pick A"),
        keys.SVG,
        *keys.EVERYWHERE,
    ]
    PARTS = ("header", "mismatch-head", "mismatch-rows")

    _asked: _Key = ()

    async def draw(self, view: RunView, columns: int, rows: int) -> None:
        found = self._found()
        title: Line = [Span("mismatch", "brand")]
        head: list[Line] = [[], []]
        if isinstance(found, str):
            lines = [[dim(line)] for line in wrap(found, columns)]
            if not found.endswith("…"):
                lines = mismatch.without_probe(found, columns)
            body = [pad(line, columns) for line in lines]
        else:
            session, layers = self.session, len(found.layers)
            session.selected = max(0, min(layers - 1, session.selected))
            head = mismatch.head_lines(found, columns) + mismatch.finding_lines(found, columns)
            del head[rows // 2 :]
            self.in_view(session.selected, layers, max(1, rows - _FRAME_ROWS - len(head)))
            pinned = session.fleet.pinned
            a = pinned.file.name if pinned is not None else ""
            title = [Span("mismatch ", "brand"), dim(f"A {a}, B the open run")]
            body = mismatch.beside_each_other(
                found, columns, self.list_rows + 1, session.glyphs, session.selected, self.first
            )
        self.show("mismatch-head", [pad(title, columns), *head], height=1 + len(head))
        self.show("mismatch-rows", body)

    def _found(self) -> Mismatch | str:
        watch, pinned = self.session.watch, self.session.fleet.pinned
        if watch is None:
            return "no run is open"
        mine = watch.path.with_name(ROUTING_NAME)
        if (stamp := _stamp(mine)) is None:
            return f"{watch.file.name} has no probe (no {ROUTING_NAME} beside its log)."
        if pinned is None:
            return "Pin the run to compare with: 4 runs, then p. It is A, the open run is B."
        theirs = pinned.file.path.with_name(ROUTING_NAME)
        if theirs == mine:
            return "The pinned run, A, is also the open one: open another run, B, on 4 runs."
        if (their_stamp := _stamp(theirs)) is None:
            return f"A, {pinned.file.name}, has no probe (no {ROUTING_NAME} beside its log)."
        key = (theirs, their_stamp, mine, stamp)
        found = anatomy_of(self.session).mismatches
        if key not in found and self._asked != key:
            self._asked = key
            self.run_worker(self._compare(key, theirs, mine), group="mismatch", exclusive=True)
        return found.get(key, "comparing the choices of both probes …")

    async def _compare(self, key: _Key, theirs: Path, mine: Path) -> None:
        anatomy_of(self.session).mismatches[key] = await asyncio.to_thread(_compared, theirs, mine)
        await self.redraw_if_current()


def _stamp(path: Path) -> Stamp | None:
    try:
        return stamp_of(path.stat())
    except OSError:
        return None


def _compared(a: Path, b: Path) -> Mismatch | str:
    try:
        with Routing(a) as first, Routing(b) as second:
            return compare_choices(first, second)
    except (NotComparable, BadRouting) as error:
        return f"The probes cannot be compared: {safe_text(error, 300)}."
    except OSError as error:
        return safe_text(f"{error.filename}: {error.strerror or error}", 300)
