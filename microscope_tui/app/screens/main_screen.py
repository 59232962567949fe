"""The main screen: a row is a layer, and everything about that layer stands on its row."""

from collections.abc import Iterable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal

from microscope_tui.app import keys
from microscope_tui.app.screens.layer_screen import LayerScreen
from microscope_tui.app.screens.run_screen import RunScreen
from microscope_tui.app.screens.runs_screen import RunsScreen
from microscope_tui.app.session import Session
from microscope_tui.app.widgets.rows import Rows, Tiles
from microscope_tui.report import frame, layer_row
from microscope_tui.report.glyphs import Glyphs
from microscope_tui.report.layout import (
    MIN_COLUMNS,
    MIN_ROWS,
    Layout,
    first_visible,
    fit,
    worst_first,
)
from microscope_tui.report.spans import Line
from microscope_tui.watch.view import RunView


class MainScreen(RunScreen):
    """Header, verdict, the table of layers, the time ribbon, the keys."""

    BINDINGS: ClassVar[list[BindingType]] = [*keys.MAIN, *keys.EVERYWHERE]

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._layout: Layout | None = None
        self._first = 0
        self._drawn: RunView | None = None
        self._drawn_content: tuple[object, ...] = ()

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
        yield Rows(glyphs, id="ribbon")
        yield Rows(glyphs, id="notes")
        yield Rows(glyphs, id="keys")

    def page(self) -> int:
        return self._layout.visible_layers if self._layout else 10

    async def redraw(self) -> None:
        columns, rows = self.size or self.app.size
        probe = self.session.view(1, 1, range(0))
        if probe is None:
            return
        layout = self._layout = fit(probe, columns, rows)
        small = columns < MIN_COLUMNS or rows < MIN_ROWS
        self.set_class(small, "small")
        self.set_class(layout.roomy, "roomy")
        self.set_class(layout.noted and not small, "noted")
        if small:
            self._drawn = None
            self.query_one("#header", Rows).show(frame.smallest(probe, columns, rows))
            return
        layers, selected = len(probe.layers), self.session.selected
        self._first = first_visible(layout, selected, self._first, layers)
        await self._arrange(layout)
        content = self._content(probe, layout)
        if self._drawn is not None and content == self._drawn_content:
            self._draw_frame(self._view(layout, range(0)), layout)  # the table stays as it is
            self._draw_labels(self._drawn, layout)
            return
        view = self._view(layout, range(self._first, self._first + layout.visible_layers))
        self._draw_frame(view, layout)
        self._draw_table(view, layout)
        self._drawn, self._drawn_content = view, content

    async def select(self) -> None:
        """Another layer: while it is in view, only the labels change."""
        view, layout = self._drawn, self._layout
        if view is None or layout is None or self.has_class("small"):
            await self.redraw()
            return
        layers = len(view.layers)
        if first_visible(layout, self.session.selected, self._first, layers) != self._first:
            await self.redraw()
            return
        self._draw_labels(view, layout)

    def _content(self, view: RunView, layout: Layout) -> tuple[object, ...]:
        """All that the table depends on: while it is the same, the table is."""
        watch, session = self.session.watch, self.session
        version = None if watch is None else (watch.path, watch.generation, watch.version)
        severities = tuple(layer.severity for layer in view.layers)
        return version, session.pin, layout, self._first, severities

    def _view(self, layout: Layout, visible: range) -> RunView:
        """The view, with the history of the visible layers only."""
        per_cell = 2 if self.session.glyphs is Glyphs.BRAILLE else 1
        points = max(24, layout.spark * per_cell)
        view = self.session.view(points, frame.ribbon_width(layout), visible)
        assert view is not None  # there was one a moment ago, and runs are never closed
        return view

    async def _arrange(self, layout: Layout) -> None:
        """Give every part its width; Textual lays out again only if one changed."""
        await self.query_one(Tiles).fit(layout.heat)
        curve = layer_row.curve_width(layout)
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

    def _draw_frame(self, view: RunView, layout: Layout) -> None:
        glyphs, columns = self.session.glyphs, layout.columns
        lines = 3 if layout.roomy else 2
        self.query_one("#header", Rows).show([frame.header(view, columns, glyphs)])
        self.query_one("#verdict", Rows).show(frame.verdict(view, columns, lines))
        heads = [frame.column_heads(view, layout)]
        if layout.numbered:
            heads.append(frame.expert_numbers(view, layout))
        self.query_one("#heads", Rows).show(heads)
        moment = self.moment(view)
        self.query_one("#ribbon", Rows).show([frame.ribbon(view, layout, glyphs, moment)])
        self.query_one("#notes", Rows).show(
            [frame.ribbon_notes(view, layout, self.session.how_it_watches())]
        )
        self.draw_last_line()

    def _draw_table(self, view: RunView, layout: Layout) -> None:
        glyphs = self.session.glyphs
        colour = not self.app.no_color
        visible = view.layers[self._first : self._first + layout.visible_layers]

        self._draw_labels(view, layout)
        parts: dict[str, list[Line]] = {
            "#balance": _flat(layer_row.balance(layer, layout, glyphs) for layer in visible),
            "#entropy": _flat(layer_row.entropy(layer, layout, glyphs) for layer in visible),
            "#drop": _flat(layer_row.drop(layer, layout, glyphs) for layer in visible),
        }
        for selector, lines in parts.items():
            self.query_one(selector, Rows).show(lines)
        self.query_one(Tiles).show(
            _flat(layer_row.load(layer, layout, colour) for layer in visible)
        )

    def _draw_labels(self, view: RunView, layout: Layout) -> None:
        chosen = self.session.selected
        visible = view.layers[self._first : self._first + layout.visible_layers]
        self.query_one("#label", Rows).show(
            _flat(layer_row.label(layer, layout, layer.index == chosen) for layer in visible)
        )

    async def action_open_layer(self) -> None:
        """Open the screen of the chosen layer."""
        if self.layer_count():
            await self.app.push_screen(LayerScreen(self.session))

    async def action_open_runs(self) -> None:
        """Open the list of runs."""
        await self.app.push_screen(RunsScreen(self.session))

    async def action_next_alert(self) -> None:
        """Go to the next layer that has an alert, the worst first."""
        view = self.session.view(1, 1, range(0))
        if view is None:
            return
        sick = [index for index in worst_first(view) if view.layers[index].severity]
        if not sick:
            return
        here = self.session.selected
        at = sick.index(here) + 1 if here in sick else 0
        self.session.selected = sick[at % len(sick)]
        await self.redraw()


def _flat(rows: Iterable[list[Line]]) -> list[Line]:
    return [line for row in rows for line in row]
