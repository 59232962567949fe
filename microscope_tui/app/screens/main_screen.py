"""The main screen: one row per layer."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal

from microscope_tui.app import keys
from microscope_tui.app.keys import key
from microscope_tui.app.rows import Rows, Tiles
from microscope_tui.app.screens.run_screen import RunScreen
from microscope_tui.lines import (
    Heat,
    Line,
    Measure,
    Pattern,
    Span,
    TableLayout,
    expert_line,
    fit,
    frame,
    has_legend,
    legend,
    matching,
    order_of,
    pad,
    plain,
    table,
    time_line,
    words,
)
from microscope_tui.runlog import safe_text
from microscope_tui.watch import RunView, pin


class MainScreen(RunScreen):
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
    BINDINGS: ClassVar[list[BindingType]] = [
        *keys.LAYERS,
        keys.OPEN_LAYER,
        *keys.EXPERTS,
        *keys.ALERTS,
        *keys.TIME,
        key("look.overlay", "v", "look('overlay')", "load, bias, over capacity, ranks", "view"),
        key("look.scale", "y", "look('scale')", "scale: load, share, log share"),
        key("look.order", "s", "look('order')", "experts by number, by load, in groups"),
        keys.PALETTE,
        key("look.compare", "b", "compare", "compare with this step; again: stop", "compare"),
        *keys.FILTER,
        *keys.OUT,
        key("main.clear", "escape", "clear", "clear the filter and the cursor"),
        *keys.EVERYWHERE,
    ]

    layers_shown: Sequence[int] = ()
    _layout: TableLayout | None = None
    _drawn: RunView | None = None
    _drawn_content: tuple[object, ...] = ()

    def compose(self) -> ComposeResult:
        glyphs = self.session.glyphs
        yield from (Rows(glyphs, id=name) for name in ("header", "verdict", "heads"))
        with Horizontal(id="table"):
            yield Rows(glyphs, id="label")
            yield Tiles(glyphs, id="load")
            yield from (
                Rows(glyphs, id=name, classes="part") for name in ("balance", "entropy", "drop")
            )
        yield from (Rows(glyphs, id=name) for name in ("legend", "ribbon", "notes", "keys"))

    async def redraw(self) -> None:
        columns, rows = self.room
        session = self.session
        probe = session.glance()
        if probe is None or session.watch is None:
            return
        self.leads_to_probe = await session.has_probe()
        self.follow_pinned()
        self.layers_shown = matching(probe, session.filter)
        say = session.expert is not None or bool(session.filter.text)
        layout = self._layout = fit(probe, columns, rows, shown=len(self.layers_shown), noted=say)
        for name in ("roomy", "noted", "legend"):
            self.set_class(getattr(layout, name), name)
        self.query_one("#verdict").styles.height = layout.verdict_lines
        if self.draw_small(probe):
            self._drawn = None
            return
        self.in_view(self.position(), len(self.layers_shown), layout.visible_layers)
        await self._arrange(layout)
        content = self._content(probe, layout)
        if self._drawn is not None and content == self._drawn_content:
            self._draw_around(self._view(layout, ()), layout)  # the table is unchanged
            self._draw_labels(self._drawn, layout)
            return
        view = self._view(layout, self._visible())
        self._draw_around(view, layout)
        self._draw_table(view, layout)
        self._drawn, self._drawn_content = view, content

    async def select(self) -> None:
        """Choose another layer: while it is in view, only the labels change."""
        view, layout, first = self._drawn, self._layout, self.first
        if view is not None and layout is not None and not self.has_class("small"):
            self.in_view(self.position(), len(self.layers_shown), layout.visible_layers)
            if self.first == first and self.session.expert is None:
                self._draw_labels(view, layout)
                return
        await self.redraw()

    def _visible(self) -> Sequence[int]:
        return self.layers_shown[self.first : self.first + self.list_rows]

    def _content(self, view: RunView, layout: TableLayout) -> tuple[object, ...]:
        """Everything that the table depends on, as a cache key."""
        watch, session = self.session.watch, self.session
        version = None if watch is None else (watch.path, watch.generation, watch.version)
        severities = tuple(layer.severity for layer in view.layers)
        chosen = (session.selected, session.expert) if session.expert is not None else None
        shown = (session.reference, session.time.window, session.look, session.steady)
        return version, session.time.pin, layout, tuple(self._visible()), severities, chosen, shown

    def _view(self, layout: TableLayout, visible: Sequence[int]) -> RunView:
        """The view, with the history of the visible layers only."""
        points = max(24, layout.spark * self.session.glyphs.points)
        view = self.session.view(points, self.ribbon_columns(), visible)
        assert view is not None  # runs are never closed
        return view

    async def _arrange(self, layout: TableLayout) -> None:
        """Set the width of every part; Textual lays out again only on a change."""
        await self.query_one(Tiles).fit(layout.heat)
        widths = {
            "#label": layout.label,
            "#load": layout.heat,
            "#balance": layout.curve,
            "#entropy": layout.curve,
            "#drop": layout.drop,
        }
        for selector, width in widths.items():
            self.query_one(selector).styles.width = width
        self.query_one("#table").styles.height = layout.table_rows

    def _draw_around(self, view: RunView, layout: TableLayout) -> None:
        """Everything except the table."""
        session, palette = self.session, self.session.look.palette
        lines, compact = layout.verdict_lines, not layout.roomy
        verdict = frame.verdict(view, layout.columns, lines, session.seen, compact=compact)
        heat = self._heat(view)
        samples = self._legend(view, layout, heat)
        if not layout.legend and not plain(verdict[-1]):
            verdict[-1] = samples
        self.show("header", [frame.header(view, layout.columns, session.glyphs)])
        self.show("verdict", verdict, palette)
        self.show("legend", [samples], palette)
        heads = [table.column_heads(view, layout, heat, session.recent().steps)]
        if layout.numbered:
            heads.append(table.expert_numbers(view, layout, heat))
        self.show("heads", heads, height=len(heads))
        past = (session.time.past_of_pipe() or "").split(":")[0]
        chosen = expert_line(view, session.selected, session.expert, heat)
        if not chosen and session.filter.text:
            count = f"{len(self.layers_shown)} of {len(view.layers)} layers"
            chosen = f"filter {safe_text(session.filter.text, 40)}: {count}"
        watching = [*filter(None, [past]), session.how_it_watches()]
        notes = time_line.notes(view, layout.columns, layout.hidden, watching, chosen)
        self.show("notes", [notes])
        self.show("ribbon", [self.ribbon(view)])
        self.draw_last_line()

    def _heat(self, view: RunView) -> Heat:
        session = self.session
        return Heat(session.look, view.run, session.reference, not self.app.no_color)

    def _legend(self, view: RunView, layout: TableLayout, heat: Heat) -> Line:
        """What the colours of the cells mean, where there are cells; else why there are none."""
        if view.layers and not any(layer.load for layer in view.layers):
            return pad([Span(f" {words.no_counts(view)}", "faint")], layout.columns)
        if not has_legend(heat, view.layers):
            return pad([], layout.columns)
        room = layout.columns - layout.label
        return [Span(" " * layout.label, ""), *legend(heat, room, self.session.glyphs)]

    def _draw_table(self, view: RunView, layout: TableLayout) -> None:
        session, glyphs, cursor = self.session, self.session.glyphs, view.cursor
        visible = [view.layers[index] for index in self._visible()]
        self._draw_labels(view, layout)
        self.show("balance", _flat(table.balance(row, layout, glyphs, cursor) for row in visible))
        self.show("entropy", _flat(table.entropy(row, layout, glyphs, cursor) for row in visible))
        self.show("drop", _flat(table.drop(layer, layout, glyphs) for layer in visible))
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
        visible = [view.layers[index] for index in self._visible()]
        self.show(
            "label",
            _flat(table.label(layer, layout, layer.index == chosen) for layer in visible),
        )

    async def action_expert(self, by: int) -> None:
        """Choose another expert of the layer, in the order that is shown."""
        session, view = self.session, self.session.glance()
        if view is None or session.selected >= len(view.layers):
            return
        order = list(order_of(view.layers[session.selected], session.look.order))
        if not order:
            self.tell("no counts in this layer at this step")
            return
        at = order.index(session.expert) + by if session.expert in order else 0
        session.expert = order[max(0, min(len(order) - 1, at))]
        await self.redraw()

    async def action_compare(self) -> None:
        """Compare loads with the shown step; again: stop comparing."""
        session, watch = self.session, self.session.watch
        if session.reference is not None:
            session.compare_with(None)
            self.tell("no comparison", "accent")
        elif watch is not None:
            session.compare_with(session.time.pin or pin(watch))
            self.tell("comparing with this step: move in time, or open 5 compare", "accent")
        await self.redraw()

    async def action_clear(self) -> None:
        """Clear the filter and the cursor."""
        self.session.filter, self.session.expert = Pattern.parse(""), None
        await self.redraw()


def _flat(rows: Iterable[list[Line]]) -> list[Line]:
    return [line for row in rows for line in row]
