"""Two steps side by side: A, the reference, and B, the shown one, of one run or of two."""

import asyncio
from collections.abc import Sequence
from typing import ClassVar

from textual.binding import BindingType

from microscope_tui.app import keys
from microscope_tui.app.keys import key
from microscope_tui.app.screens.base import AIRY_FROM_ROWS
from microscope_tui.app.screens.run_screen import RunScreen
from microscope_tui.lines import (
    Heat,
    Line,
    Look,
    Measure,
    Span,
    compare,
    matching,
    pad,
    with_notes,
    words,
)
from microscope_tui.watch import (
    Pin,
    Reference,
    RunView,
    RunWatch,
    aligned,
    pin,
    pin_at,
    reference_of,
)

_BRIEF_BELOW_ROWS = 16
_EARLY = 0.1


class CompareScreen(RunScreen):
    """What changed in every layer from A to B."""

    CSS = """
    #compare-heads, #moved { height: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        keys.BACK,
        *keys.LAYERS,
        keys.OPEN_LAYER,
        key("look.compare", "b", "compare", "compare with this step", "from here"),
        keys.PALETTE,
        *keys.TIME,
        *keys.FILTER,
        *keys.OUT,
        *keys.EVERYWHERE,
    ]
    PARTS = ("header", "moments", "compare-heads", "pairs", "moved", "ribbon", "keys")

    layers_shown: Sequence[int] = ()
    _own: Reference | None = None
    _why_own = ""
    _problem = ""
    _tried: tuple[object, ...] = ()

    def points(self) -> int:
        return 12

    async def draw(self, view: RunView, columns: int, rows: int) -> None:
        self.follow_pinned()
        self._choose_once(view)
        reference = self.session.reference or self._own
        if reference is None or view.run is None:
            self._draw_nothing(columns)
            return
        reference = aligned(reference, view.run)
        session = self.session
        self.layers_shown = matching(view, session.filter)
        at, count = self.position(), len(self.layers_shown)
        brief, airy = rows < _BRIEF_BELOW_ROWS, rows >= AIRY_FROM_ROWS
        remarks = self._remark(view, reference), Span(self.moment(view), "accent")
        top = compare.moment_lines(view, reference, columns, remarks, brief=brief)
        top = [[], *top, []] if airy else top
        self._show_top(top)
        layout = compare.fit_compare(view, reference, columns, rows - 5 - len(top), count)
        self.show("compare-heads", [layout.table.heads()])
        look = Look(measure=Measure.DIFFERENCE, palette=session.look.palette)
        heat = Heat(look, view.run, reference, not self.app.no_color, session.levels)
        lines: list[Line] = []
        for index in self.in_view(at, count, layout.visible_layers):
            layer = view.layers[self.layers_shown[index]]
            chosen = layer.index == session.selected
            lines += compare.layer_lines(layer, reference, layout, heat, chosen=chosen)
        if not self.layers_shown:
            lines = [pad([Span("  no layer matches", "dim")], columns)]
        self.show("pairs", lines, session.look.palette)
        self._draw_moved(view, reference, layout)

    def _draw_moved(
        self, view: RunView, reference: Reference, layout: compare.CompareLayout
    ) -> None:
        """What changed in the chosen layer, and how many layers are hidden."""
        session, columns = self.session, layout.table.width
        moved = ""
        if session.selected in self.layers_shown:
            moved = compare.moved_text(view.layers[session.selected], reference, columns - 3)
        left: Line = [Span(f" {moved}", "accent")]
        more = len(self.layers_shown) - layout.visible_layers
        notes = [
            compare.only_in_reference(view, reference),
            self.filter_said(),
            words.plural(more, "more layer") if more > 0 else "",
            layout.table.no_room(", "),
        ]
        self.show("moved", [with_notes(left, notes, columns)])

    def _draw_nothing(self, columns: int) -> None:
        """Without a reference: how to set one."""
        problem = self._problem or self.session.pin_problem
        texts = [
            (problem or "looking for a step to compare with", "warn" if problem else "dim"),
            ("b sets A to this step: then move in time, or wait for the run", "dim"),
            ("r lists the runs, and p pins one as A, at the same step", "dim"),
        ]
        self._show_top([[], *([Span(f"  {text}", role)] for text, role in texts)])
        for name in ("compare-heads", "pairs", "moved"):
            self.show(name, [])

    def _show_top(self, lines: Sequence[Line]) -> None:
        columns = self.room.width
        self.show("moments", [pad(line, columns) for line in lines], height=len(lines))

    def _remark(self, view: RunView, reference: Reference) -> Span:
        """How A was chosen, or why it cannot be read."""
        session = self.session
        if session.reference is None:
            remark = self._why_own
        elif session.pinned is None:
            remark = "set with b"
        elif session.pin_problem:
            return Span(session.pin_problem, "warn")
        else:
            behind = reference.step < view.step
            remark = "pinned, its last step before B" if behind else "pinned, at the same step"
        if (reference.run, reference.step) == (view.name, view.step):
            return Span("the same step as B", "warn")
        return Span(remark, "dim")

    def _choose_once(self, view: RunView) -> None:
        """Choose A automatically if the user has not; again once the whole log is read."""
        session, watch = self.session, self.session.watch
        if watch is None or watch.latest is None or session.reference or session.pinned:
            return
        tried = (watch, watch.generation, watch.complete)
        if tried[:2] != self._tried[:2]:
            self._own = None
        if tried != self._tried:
            self._tried = tried
            self.run_worker(self._choose(watch, view), group="choose", exclusive=True)

    async def _choose(self, watch: RunWatch, view: RunView) -> None:
        step, said = _sensible(view)
        found = await asyncio.to_thread(self._moment, watch, step)
        if isinstance(found, Pin):
            self._own = reference_of(watch.file.name, found, watch.run)
            self._why_own, self._problem = said, ""
        else:
            self._problem = found
        await self.redraw_if_current()

    def _moment(self, watch: RunWatch, step: int) -> Pin | str:
        """A step of the run, or why it cannot be read. Reads from the disk."""
        try:
            found = pin_at(watch, step)
        except OSError as error:
            return f"cannot be read: {error.strerror or error}"
        return found or self.session.time.why_no_past() or "the log is still being read"

    async def action_compare(self) -> None:
        """Make the shown step A."""
        session, watch = self.session, self.session.watch
        moment = session.time.pin or (pin(watch) if watch is not None else None)
        if moment is None:
            self.tell("no step yet", "dim")
            return
        session.fleet.pinned = None
        session.compare_with(moment)
        self.tell(f"A is step {moment.step:,}: move in time with [ ] and :", "accent")
        await self.redraw()


def _sensible(view: RunView) -> tuple[int, str]:
    """A step to compare the shown one with, and why this one."""
    for finding, _ in view.alerts:
        if 1 < finding.onset <= view.step:
            return finding.onset - 1, f"before {finding.rule} began"
    return max(1, round(_EARLY * view.step)), f"{_EARLY:.0%} into the run"
