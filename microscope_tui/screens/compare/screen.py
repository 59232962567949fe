"""A beside B: two steps of one run or of two, or the probes of two runs."""

import asyncio
from collections.abc import Sequence
from typing import ClassVar

from microscope_tui.draw.heat import Heat, Look, Measure
from microscope_tui.draw.spans import Line, Span, dim, pad, with_notes
from microscope_tui.draw.table import matching
from microscope_tui.kit import keys
from microscope_tui.kit.base import AIRY_FROM_ROWS
from microscope_tui.kit.glossary import CONDITIONS, HEADER, LAYERS, TIME
from microscope_tui.kit.keys import key
from microscope_tui.kit.prompts import filter_note
from microscope_tui.kit.run_screen import RunScreen
from microscope_tui.runlog import plural
from microscope_tui.screens.compare import text as compare
from microscope_tui.watch import Reference, RunView, aligned, pin, pin_at, reference_of

_BRIEF_BELOW_ROWS = 16
_BEFORE = 30  # steps before an onset: by then loads are on their way
_EARLY = 0.1


_COMPARE = {
    "A, B": "A is the reference (b sets it), B the step or run shown",
    "change": "B minus A",
    "lr, tokens": "learning rate; tokens of the step",
}


class CompareScreen(RunScreen):
    CSS = """
    #compare-heads, #moved { height: 1; }
    """
    WORDS: ClassVar = {**_COMPARE, **LAYERS, **CONDITIONS, **HEADER, **TIME}
    BINDINGS: ClassVar = [
        keys.BACK,
        *keys.LAYERS,
        keys.OPEN_LAYER,
        key("look.compare", "b", "compare", "compare with this step", "from here"),
        keys.PALETTE,
        *keys.TIME,
        keys.FILTER,
        *keys.OUT,
        *keys.EVERYWHERE,
    ]
    PARTS = ("header", "moments", "compare-heads", "pairs", "moved", "ribbon")

    layers_shown: Sequence[int] = ()
    """Indices of the layers that the filter leaves."""
    _own: Reference | None = None
    _why_own = ""
    _problem = ""
    _tried: tuple[object, ...] = ()

    def points(self) -> int:
        return 12

    async def draw(self, view: RunView, columns: int, rows: int) -> None:
        self.follow_pinned()
        await self._choose(view)
        reference = self.session.reference or self._own
        if reference is None or view.run is None:
            said = dim("  looking for a step to compare with")
            if problem := self._problem or self.session.pin_problem:
                said = Span(f"  {problem}", "warn")
            texts = [
                Span(""),
                said,
                dim("  b sets A to this step: then move in time, or wait for the run"),
                dim("  r lists the runs, and p pins one as A, at the same step"),
            ]
            how = [pad([text], columns) for text in texts]
            self.show("moments", how, height=len(how))
            for name in ("compare-heads", "pairs", "moved"):
                self.show(name, [])
            return
        reference = aligned(reference, view.run)
        session = self.session
        self.layers_shown = matching(view, session.filter)
        at, count = self.position(), len(self.layers_shown)
        brief, airy = rows < _BRIEF_BELOW_ROWS, rows >= AIRY_FROM_ROWS
        remarks = self._remark(view, reference), Span(self.session.moment(view), "accent")
        top = compare.moment_lines(view, reference, columns, remarks, brief=brief)
        if airy:
            top = [[], *top, []]
        self.show("moments", [pad(line, columns) for line in top], height=len(top))
        layout = compare.fit_compare(view, reference, columns, rows - 5 - len(top), count)
        self.show("compare-heads", [layout.table.heads()])
        look = Look(measure=Measure.DIFFERENCE, palette=session.look.palette)
        colour = not self.app.no_color
        heat = Heat(look, view.run, reference, colour, session.levels, glyphs=session.glyphs)
        lines: list[Line] = []
        for index in self.in_view(at, count, layout.visible_layers):
            layer = view.layers[self.layers_shown[index]]
            chosen = layer.index == session.selected
            lines += compare.layer_lines(layer, reference, layout, heat, chosen=chosen)
        if not self.layers_shown:
            lines = [pad([dim("  no layer matches")], columns)]
        self.show("pairs", lines, session.look.palette)
        moved = ""  # what changed in the chosen layer
        if session.selected in self.layers_shown:
            moved = compare.moved_text(view.layers[session.selected], reference, columns - 3)
        left: Line = [Span(f" {moved}", "accent")]
        notes = [compare.only_in_reference(view, reference), filter_note(self.pattern)]
        if count > layout.visible_layers:
            notes.append(plural(count - layout.visible_layers, "more layer"))
        notes.append(layout.table.no_room(", "))
        self.show("moved", [with_notes(left, notes, columns)])

    def _remark(self, view: RunView, reference: Reference) -> Span:
        session = self.session
        if session.reference is None:
            remark = self._why_own
        elif session.pinned is None:
            remark = "set with b"
        elif session.pin_problem:
            return Span(session.pin_problem, "warn")
        elif reference.step < view.step:
            remark = "pinned, its last step before B"
        else:
            remark = "pinned, at the same step"
        if (reference.run, reference.step) == (view.name, view.step):
            return Span("the same step as B", "warn")
        return dim(remark)

    async def _choose(self, view: RunView) -> None:
        """Choose A if the user has not; again once the whole log is read."""
        session, watch = self.session, self.session.watch
        if watch is None or watch.latest is None or session.reference or session.pinned:
            return
        tried = (watch, watch.generation, watch.complete)
        if tried == self._tried:
            return
        self._tried = tried
        step = max(1, round(_EARLY * view.step))
        self._why_own = f"{_EARLY:.0%} into the run"
        for finding, _ in view.alerts:
            if 1 < finding.onset <= view.step:
                step, self._why_own = finding.onset - _BEFORE, f"before {finding.rule} began"
                break
        try:
            found = await asyncio.to_thread(pin_at, watch, max(1, step))
            why = session.time.why_no_past() or "the log is still being read"
        except OSError as error:
            found = None
            why = f"cannot be read: {error.strerror or error}"
        self._own = None
        self._problem = why
        if found is not None:
            self._own = reference_of(watch.file.name, found, watch.run)
            self._problem = ""

    async def action_compare(self) -> None:
        session, watch = self.session, self.session.watch
        moment = session.time.pin
        if moment is None and watch is not None:
            moment = pin(watch)
        if moment is None:
            self.show_message("no step yet", "dim")
            return
        session.fleet.pinned = None
        session.compare_with(moment)
        self.show_message(f"A is step {moment.step:,}: move in time with [ ] and :", "accent")
        await self.redraw()
