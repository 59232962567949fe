"""The map of a run: where a collapse begins, and how it spreads."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import ClassVar

from microscope_tui.draw.heat import Heat
from microscope_tui.draw.spans import Line, Span, dim, pad
from microscope_tui.draw.table import matching
from microscope_tui.draw.time_line import time_scale
from microscope_tui.kit import keys
from microscope_tui.kit.base import AIRY_FROM_ROWS
from microscope_tui.kit.chart_screen import PlotScreen
from microscope_tui.kit.glossary import ALERTS, CELLS, HEADER, LAYERS, TIME
from microscope_tui.kit.keys import key, pair
from microscope_tui.screens.map.text import (
    MapLayout,
    cell_columns,
    fit_map,
    levels_of,
    map_cursor,
    map_label,
    map_legend,
    map_line,
    map_title,
)
from microscope_tui.watch import Quantity, RunMap, RunView, run_map

_FRAME_ROWS = 7  # header, title, legend, ribbon, ticks, cursor, keys


_MAP = {
    "lowest, highest": "the worst value of the layer in the steps of one column",
    "measure": "what the cells show: balance c, max load, entropy H, dropped",
}


class MapScreen(PlotScreen):
    """Layers × time from the history in memory; the cursor repaints one line."""

    CSS = """
    #map-title, #map-legend, #map-cursor { height: 1; }
    #map-cells { height: 1fr; }
    MapScreen.roomy #map-title, MapScreen.roomy #map-legend { margin-top: 1; }
    """
    WORDS: ClassVar = {**_MAP, **LAYERS, **CELLS, **ALERTS, **HEADER, **TIME}
    BINDINGS: ClassVar = [
        keys.BACK,
        *keys.LAYERS,
        *pair(
            "time",
            key("map.earlier", "left,h", "column(-1)", "earlier steps"),
            key("map.later", "right,l", "column(1)", "later steps"),
        ),
        key("map.open", "enter", "open_layer", "open the layer at this step", "open"),
        key("map.next", "tab", "quantity(1)", "next measure", "measure"),
        key("map.previous", "shift+tab", "quantity(-1)", "previous measure"),
        *keys.ALERTS,
        *keys.TIME,
        keys.PALETTE,
        keys.FILTER,
        *keys.OUT,
        *keys.EVERYWHERE,
    ]
    PARTS = ("header", "map-title", "map-cells", "ribbon", "ticks", "map-legend", "map-cursor")

    quantity = Quantity.BALANCE
    step: int | None = None
    """The step of the cursor; ``None`` for the last column."""
    _found = RunMap((), ())
    _levels: Sequence[Sequence[int]] = ()
    _of: tuple[object, ...] = ()
    _label = 8
    _pinned: int | None = None

    def plot_area(self) -> tuple[int, int]:
        return self._label, max(8, self.room.width - self._label - 1)

    async def draw(self, view: RunView, columns: int, rows: int) -> None:
        session = self.session
        self.layers_shown = matching(view, session.filter)
        roomy = rows >= AIRY_FROM_ROWS
        self.set_class(roomy, "roomy")
        heat = Heat(session.look, colour=not self.app.no_color, glyphs=session.glyphs)
        shown = len(self.layers_shown)
        lines = rows - _FRAME_ROWS - 2 * roomy
        layout = fit_map(view, columns, lines, shown, halves=heat.halves)
        self._label = layout.label
        self._look_up(view, layout)
        pin = session.time.pin
        step = pin.step if pin is not None else None
        if step != self._pinned:  # other keys chose it
            self._pinned = self.step = step
        span = view.window.last - view.window.first + 1
        steps = max(1, round(span / max(1, len(self._found.axis))))
        self.show("map-title", [map_title(self.quantity, shown, steps, columns)])
        self.show("map-legend", [map_legend(self.quantity, view.layers, heat, columns)])
        self.show("map-cells", self._cells(view, layout, heat), session.look.palette)
        scale = time_scale(view, session.axis)
        self.show("ticks", [[Span(" " * layout.label), *scale.tick_line(layout.columns)]], height=1)
        cursor = pad([], columns)
        if session.selected < len(self._found.rows) and self._found.axis:
            layer = view.layers[session.selected]
            cursor = map_cursor(self._found, self.quantity, view, layer, self._at, columns)
        self.show("map-cursor", [cursor])

    def _look_up(self, view: RunView, layout: MapLayout) -> None:
        watch = self.session.watch
        assert watch is not None  # there is a view of it
        of = watch, watch.generation, watch.version, view.window, layout.columns, self.quantity
        if of != self._of:
            self._of = of
            self._found = run_map(watch, self.quantity, layout.columns, view.window)
            self._levels = levels_of(self._found, self.quantity, view.layers)

    @property
    def _at(self) -> int:
        axis = self._found.axis
        columns = len(axis)
        if self.step is not None:
            columns = bisect_right(axis, self.step)
        return max(0, columns - 1)

    def _cells(self, view: RunView, layout: MapLayout, heat: Heat) -> list[Line]:
        shown = self.layers_shown or ()
        if not shown or not self._found.measured:
            nothing = "no layer matches"
            if shown:
                nothing = f"{self.quantity}: nothing logged in this window"
            return [[dim(f"  {nothing}")]]
        columns = cell_columns(self._found.axis, view.window, layout.columns)
        per, position = layout.per_line, self.position()
        found: list[Line] = []
        for line in self.in_view(position // per, -(-len(shown) // per), layout.visible):
            layers = [view.layers[index] for index in shown[line * per : (line + 1) * per]]
            rows = [self._levels[layer.index] for layer in layers]
            here = (position % per, self._at) if line == position // per else None
            cells = map_line(rows, columns, heat, here)
            label = map_label(layers, layout, self.session.selected)
            found.append([*label, *cells])
            found += [[Span(" " * layout.label), *cells]] * (layout.height - 1)
        return found

    async def action_column(self, by: int) -> None:
        axis = self._found.axis
        if axis:
            at = max(0, self._at + by)
            self.step = axis[at] if at < len(axis) - 1 else None
            await self.redraw()

    async def action_quantity(self, by: int) -> None:
        quantities = list(Quantity)
        at = quantities.index(self.quantity) + by
        self.quantity = quantities[at % len(quantities)]
        await self.redraw()

    async def action_open_layer(self) -> None:
        if self.step is not None:
            await self.from_disk(self.session.time.go_to, self.step)
            if self.message_shown:  # why this step cannot be shown
                return
        await super().action_open_layer()
