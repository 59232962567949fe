"""Two steps side by side: A, the reference, and B, the shown one, of one run or of two."""

import asyncio
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType

from microscope_tui.app import keys
from microscope_tui.app.actions.look_actions import LookActions
from microscope_tui.app.widgets.rows import Rows
from microscope_tui.lines import (
    Heat,
    Line,
    Look,
    Measure,
    Span,
    Terms,
    compare,
    first_visible,
    line_width,
    matching,
    pad,
    spread,
)
from microscope_tui.lines.spans import listed
from microscope_tui.runlog import safe_text
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
_AIRY_FROM_ROWS = 30
_EARLY = 0.1


class CompareScreen(LookActions):
    """What changed in every layer from A to B."""

    CSS = """
    #compare-heads, #moved { height: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [*keys.COMPARE]

    _own: Reference | None = None
    _why_own = ""
    _problem = ""
    _tried: tuple[object, ...] = ()
    _first = 0
    _visible = 10

    def compose(self) -> ComposeResult:
        glyphs = self.session.glyphs
        for name in ("header", "moments", "compare-heads", "pairs", "moved", "ribbon", "keys"):
            yield Rows(glyphs, id=name)

    @property
    def busy(self) -> bool:
        """A is still being read."""
        return any(worker.node is self and not worker.is_finished for worker in self.workers)

    def page(self) -> int:
        return self._visible

    async def redraw(self) -> None:
        session, (columns, rows) = self.session, self.room
        view = session.view(12, self.ribbon_columns(), range(0))
        if view is None or view.run is None:
            return
        if self.draw_small(view):
            return
        self.follow_pinned()
        self._choose_once(view)
        reference = session.reference or self._own
        if reference is None:
            self._draw_nothing(columns)
        else:
            self._draw(view, aligned(reference, view.run), columns, rows)
        self.draw_frame(view)

    def _draw(self, view: RunView, reference: Reference, columns: int, rows: int) -> None:
        session, glyphs = self.session, self.session.glyphs
        self.layers_shown = matching(view, session.filter)
        at = self.position()
        brief, airy = rows < _BRIEF_BELOW_ROWS, rows >= _AIRY_FROM_ROWS
        remarks = self._remark(view, reference), Span(self.moment(view), "accent")
        top = compare.moment_lines(view, reference, columns, remarks, brief=brief)
        self._show_top([[], *top, []] if airy else top)
        body = rows - 5 - (len(top) + 2 if airy else len(top))
        layout = compare.fit_compare(view, reference, columns, body, len(self.layers_shown))
        self._visible = visible = layout.visible_layers
        self._first = first_visible(visible, at, self._first, len(self.layers_shown))
        self.query_one("#compare-heads", Rows).show([compare.heads(layout)])
        look = Look(measure=Measure.DIFFERENCE, palette=session.look.palette)
        heat = Heat(look, Terms(reference=reference), not self.app.no_color, session.levels)
        lines: list[Line] = []
        for index in self.layers_shown[self._first : self._first + visible]:
            chosen = index == session.selected
            lines += compare.layer_lines(
                view.layers[index], reference, layout, heat, glyphs, chosen=chosen
            )
        if not self.layers_shown:
            lines = [pad([Span("  no layer matches", "dim")], columns)]
        self.query_one("#pairs", Rows).show(lines, session.look.palette)
        self._draw_moved(view, reference, layout)

    def _draw_moved(
        self, view: RunView, reference: Reference, layout: compare.CompareLayout
    ) -> None:
        """What changed in the chosen layer, and how many layers are hidden."""
        session, columns = self.session, layout.columns
        moved = ""
        if session.selected in self.layers_shown:
            moved = compare.moved_text(view.layers[session.selected], reference, columns - 3)
        left: Line = [Span(f" {moved}", "accent")]
        more = len(self.layers_shown) - layout.visible_layers
        filter_ = f"/{safe_text(session.filter.text, 40)}" if session.filter.text else ""
        said = [
            compare.only_in_reference(view, reference),
            filter_,
            f"{more} more layer{'s' if more > 1 else ''}" if more > 0 else "",
            layout.hidden,
        ]
        right = listed([text for text in said if text], columns - line_width(left) - 3)
        line = pad(spread(left, [Span(f"{right} ", "faint")], columns), columns)
        self.query_one("#moved", Rows).show([line])

    def _draw_nothing(self, columns: int) -> None:
        """Without a reference: how to set one."""
        why = self._problem or self.pin_problem or "looking for a step to compare with"
        texts = [
            (why, "warn" if self._problem or self.pin_problem else "dim"),
            ("b sets A to this step: then move in time, or wait for the run", "dim"),
            ("r lists the runs, and p pins one as A, at the same step", "dim"),
        ]
        lines = [pad([Span(f"  {text}", role)], columns) for text, role in texts]
        self._show_top([pad([], columns), *lines])
        for name in ("#compare-heads", "#pairs", "#moved"):
            self.query_one(name, Rows).show([])

    def _show_top(self, lines: list[Line]) -> None:
        rows = self.query_one("#moments", Rows)
        rows.styles.height = len(lines)
        rows.show([pad(line, self.room.width) for line in lines])

    def _remark(self, view: RunView, reference: Reference) -> Span:
        """How A was chosen, or why it cannot be read."""
        if self.session.reference is None:
            remark = self._why_own
        elif self.pinned is None:
            remark = "set with b"
        elif self.pin_problem:
            return Span(self.pin_problem, "warn")
        else:
            behind = reference.step < view.step
            remark = "pinned, its last step before B" if behind else "pinned, at the same step"
        if (reference.run, reference.step) == (view.name, view.step):
            return Span("the same step as B", "warn")
        return Span(remark, "dim")

    def _choose_once(self, view: RunView) -> None:
        """Choose A automatically if the user has not; again once the whole log is read."""
        watch = self.session.watch
        if watch is None or watch.latest is None or self.session.reference or self.pinned:
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
            self._own, self._why_own, self._problem = (
                reference_of(watch.file.name, found, watch.run),
                said,
                "",
            )
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
        if watch is None or moment is None:
            self.tell("no step yet", "dim")
            return
        session.fleet.pinned = None
        session.reference = reference_of(watch.file.name, moment, watch.run)
        session.look = session.look.compared(True)
        self.tell(f"A is step {moment.step:,}: move in time with [ ] and :", "accent")
        await self.redraw()


def _sensible(view: RunView) -> tuple[int, str]:
    """A step to compare the shown one with, and why this one."""
    for finding, _ in view.alerts:
        if 1 < finding.onset <= view.step:
            return finding.onset - 1, f"before {finding.rule} began"
    return max(1, round(_EARLY * view.step)), f"{_EARLY:.0%} into the run"
