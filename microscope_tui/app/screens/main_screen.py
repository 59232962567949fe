"""The main screen: one row per layer."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal

from microscope_tui.app import keys
from microscope_tui.app.actions.look_actions import LookActions
from microscope_tui.app.widgets.rows import Rows, Tiles
from microscope_tui.lines import (
    Glyphs,
    Heat,
    Line,
    Measure,
    Span,
    TableLayout,
    expert_line,
    first_visible,
    fit,
    frame,
    has_legend,
    legend,
    matching,
    pad,
    plain,
    table,
    terms_of,
    time_line,
    words,
)
from microscope_tui.runlog import safe_text
from microscope_tui.watch import RunView


class MainScreen(LookActions):
    """Header, verdict, the table of layers, the time ribbon, the keys."""

    CSS = """
    #heads, #notes, #legend { height: 1; }
    #verdict { height: 2; }
    #table { overflow: hidden; }
    .part { margin-left: 2; }
    MainScreen.roomy #verdict { height: 3; margin: 1 0; }
    MainScreen #legend { display: none; }
    MainScreen.legend #legend { display: block; }
    MainScreen #notes { display: none; }
    MainScreen.noted #notes { display: block; }
    MainScreen.small #notes { display: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [*keys.MAIN]

    _layout: TableLayout | None = None
    _first = 0
    _drawn: RunView | None = None
    _drawn_content: tuple[object, ...] = ()

    def compose(self) -> ComposeResult:
        glyphs = self.session.glyphs
        yield Rows(glyphs, id="header")
        yield Rows(glyphs, id="verdict")
        yield Rows(glyphs, id="heads")
        with Horizontal(id="table"):
            yield Rows(glyphs, id="label")
            yield Tiles(glyphs, id="load")
            yield Rows(glyphs, id="balance", classes="part")
            yield Rows(glyphs, id="entropy", classes="part")
            yield Rows(glyphs, id="drop", classes="part")
        yield Rows(glyphs, id="legend")
        yield Rows(glyphs, id="ribbon")
        yield Rows(glyphs, id="notes")
        yield Rows(glyphs, id="keys")

    def page(self) -> int:
        return self._layout.visible_layers if self._layout else 10

    @property
    def leads_to_probe(self) -> bool:
        return self.session.anatomy.is_beside

    async def redraw(self) -> None:
        columns, rows = self.room
        session = self.session
        probe = session.view(1, 1, range(0))
        if probe is None or session.watch is None:
            return
        await session.anatomy.look(session.watch.path, session.version)
        self.follow_pinned()
        self.layers_shown = matching(probe, session.filter)
        say = session.expert is not None or bool(session.filter.text)
        layout = self._layout = fit(probe, columns, rows, shown=len(self.layers_shown), noted=say)
        self.set_class(layout.roomy, "roomy")
        self.set_class(layout.noted, "noted")
        self.set_class(layout.legend, "legend")
        self.query_one("#verdict").styles.height = layout.verdict_lines
        if self.draw_small(probe):
            self._drawn = None
            return
        self._first = self._scrolled(layout)
        await self._arrange(layout)
        content = self._content(probe, layout)
        if self._drawn is not None and content == self._drawn_content:
            self._draw_around(self._view(layout, ()), layout)  # the table is unchanged
            self._draw_labels(self._drawn, layout)
            return
        view = self._view(layout, self._visible(layout))
        self._draw_around(view, layout)
        self._draw_table(view, layout)
        self._drawn, self._drawn_content = view, content

    async def select(self) -> None:
        """Choose another layer: while it is in view, only the labels change."""
        view, layout = self._drawn, self._layout
        if view is None or layout is None or self.has_class("small"):
            await self.redraw()
            return
        if self.session.expert is not None:
            await self.redraw()
            return
        if self._scrolled(layout) != self._first:
            await self.redraw()
            return
        self._draw_labels(view, layout)

    def _scrolled(self, layout: TableLayout) -> int:
        """The first row to show, to keep the chosen one in view."""
        count = len(self.layers_shown)
        return first_visible(layout.visible_layers, self.position(), self._first, count)

    def _visible(self, layout: TableLayout) -> Sequence[int]:
        return self.layers_shown[self._first : self._first + layout.visible_layers]

    def _content(self, view: RunView, layout: TableLayout) -> tuple[object, ...]:
        """Everything that the table depends on, as a cache key."""
        watch, session = self.session.watch, self.session
        version = None if watch is None else (watch.path, watch.generation, watch.version)
        severities = tuple(layer.severity for layer in view.layers)
        chosen = (session.selected, session.expert) if session.expert is not None else None
        drawn_by = (session.look, session.steady)
        shown = (session.reference, session.time.window, *drawn_by)
        visible = tuple(self._visible(layout))
        return version, session.time.pin, layout, visible, severities, chosen, shown

    def _view(self, layout: TableLayout, visible: Sequence[int]) -> RunView:
        """The view, with the history of the visible layers only."""
        per_cell = 2 if self.session.glyphs is Glyphs.BRAILLE else 1
        points = max(24, layout.spark * per_cell)
        view = self.session.view(points, self.ribbon_columns(), visible)
        assert view is not None  # runs are never closed
        return view

    async def _arrange(self, layout: TableLayout) -> None:
        """Set the width of every part; Textual lays out again only on a change."""
        await self.query_one(Tiles).fit(layout.heat)
        curve = table.curve_width(layout)
        widths = {
            "#label": layout.label,
            "#load": layout.heat,
            "#balance": curve,
            "#entropy": curve,
            "#drop": layout.drop,
        }
        for selector, width in widths.items():
            self.query_one(selector).styles.width = width
        self.query_one("#table").styles.height = layout.table_rows
        self.query_one("#heads").styles.height = 2 if layout.numbered else 1

    def _draw_around(self, view: RunView, layout: TableLayout) -> None:
        """Everything except the table."""
        session = self.session
        lines, compact = layout.verdict_lines, not layout.roomy
        verdict = frame.verdict(view, layout.columns, lines, session.seen, compact=compact)
        heat = self._heat(view)
        samples = self._legend(view, layout, heat)
        if not layout.legend and not plain(verdict[-1]):
            verdict[-1] = samples
        self.query_one("#verdict", Rows).show(verdict, session.look.palette)
        self.query_one("#legend", Rows).show([samples], session.look.palette)
        heads = [table.column_heads(view, layout, heat, session.recent().steps)]
        if layout.numbered:
            heads.append(table.expert_numbers(view, layout, heat))
        self.query_one("#heads", Rows).show(heads)
        past = (session.time.past_of_pipe() or "").split(":")[0]
        watching = [*filter(None, [past]), session.how_it_watches()]
        chosen = expert_line(view, session.selected, session.expert, heat.terms)
        if not chosen and session.filter.text:
            count = f"{len(self.layers_shown)} of {len(view.layers)} layers"
            chosen = f"filter {safe_text(session.filter.text, 40)}: {count}"
        notes = time_line.notes(
            view, layout.columns, layout.hidden, session.glyphs, watching, chosen
        )
        self.query_one("#notes", Rows).show([notes])
        self.draw_frame(view)

    def _heat(self, view: RunView) -> Heat:
        session = self.session
        terms = terms_of(view.run, session.reference)
        return Heat(session.look, terms, not self.app.no_color)

    def _legend(self, view: RunView, layout: TableLayout, heat: Heat) -> Line:
        """What the colours of the cells mean, where there are cells; else why there are none."""
        room = layout.columns - layout.label
        if view.layers and not any(layer.load for layer in view.layers):
            return pad([Span(f" {words.no_counts(view)}", "faint")], layout.columns)
        if not has_legend(heat, view.layers):
            return pad([], layout.columns)
        return [Span(" " * layout.label, ""), *legend(heat, room, self.session.glyphs)]

    def _draw_table(self, view: RunView, layout: TableLayout) -> None:
        session, glyphs, cursor = self.session, self.session.glyphs, view.cursor
        visible = [view.layers[index] for index in self._visible(layout)]
        self._draw_labels(view, layout)
        parts: dict[str, list[Line]] = {
            "#balance": _flat(table.balance(row, layout, glyphs, cursor) for row in visible),
            "#entropy": _flat(table.entropy(row, layout, glyphs, cursor) for row in visible),
            "#drop": _flat(table.drop(layer, layout, glyphs) for layer in visible),
        }
        for selector, lines in parts.items():
            self.query_one(selector, Rows).show(lines)
        chosen = {session.selected: session.expert}
        loads, recent, heat = [], session.recent(), self._heat(view)
        for layer in visible:
            mean, noise = recent.of(layer)
            if heat.look.measure is Measure.BIAS:
                noise = 0.0  # a state of the router, not of a step
            steady = replace(heat, levels=partial(session.levels, noise=noise))
            loads += table.load(mean, layout, steady, chosen.get(layer.index))
        if not visible:
            loads = [pad([Span("no layer matches", "dim")], layout.heat)]
        self.query_one(Tiles).show(loads, session.look.palette)

    def _draw_labels(self, view: RunView, layout: TableLayout) -> None:
        chosen = self.session.selected
        visible = [view.layers[index] for index in self._visible(layout)]
        self.query_one("#label", Rows).show(
            _flat(table.label(layer, layout, layer.index == chosen) for layer in visible)
        )


def _flat(rows: Iterable[list[Line]]) -> list[Line]:
    return [line for row in rows for line in row]
