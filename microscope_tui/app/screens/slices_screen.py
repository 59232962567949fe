"""Which slice of the text each expert of a layer reads, and its most telling tokens."""

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType

from microscope_tui.app import probe_keys
from microscope_tui.app.actions.anatomy_actions import AnatomyActions
from microscope_tui.app.session import Session
from microscope_tui.app.widgets.rows import Rows
from microscope_tui.lines import (
    ExpertRow,
    NoTables,
    Ordering,
    SliceTable,
    Span,
    first_visible,
    pad,
    slice_table,
    slices,
)
from microscope_tui.report import slices_json
from microscope_tui.routing import BadRouting, Routing
from microscope_tui.watch import RunView

_AIRY_FROM_ROWS = 30
_FRAME_LINES = 6  # header, summary, identity, two heads, keys


class SlicesScreen(AnatomyActions):
    """A row is an expert; the cursor is on one."""

    CSS = """
    #slice-top, #slice-heads { height: 2; }
    .airy #slice-top, .airy #slice-heads, .airy #slice-detail { margin-top: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [*probe_keys.SLICES]

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._table: tuple[Routing, int, SliceTable] | None = None
        self._ordering = Ordering.TELLING
        self._order: Sequence[ExpertRow] = ()
        self._at = self._first = self._first_slice = 0
        self._visible = 10

    def compose(self) -> ComposeResult:
        for name in ("header", "slice-top", "slice-heads", "slice-rows", "slice-detail", "keys"):
            yield Rows(self.session.glyphs, id=name)

    async def redraw(self) -> None:
        view = self.session.view(1, 1, range(0))
        if view is None or self.draw_small(view):
            return
        routing = await self.opened(view)
        if routing is None:
            self.draw_nothing("#slice-rows")
        else:
            try:
                self._draw(routing)
            except NoTables as error:
                self._draw_no_tables(routing, str(error))
            except BadRouting as error:
                self.session.anatomy.problem = str(error)
                self.draw_nothing("#slice-rows")
        self.draw_header(view)

    def draw_nothing(self, selector: str) -> None:
        self.query_one(selector, Rows).styles.height = "1fr"
        super().draw_nothing(selector)

    def _draw(self, routing: Routing) -> None:
        anatomy, (columns, rows) = self.session.anatomy, self.room
        layer, names = anatomy.layer, routing.slices
        table = self._table_of(routing, layer)
        self._take(table)
        airy = rows >= _AIRY_FROM_ROWS
        self.set_class(airy, "airy")
        detail_rows = 6 if airy else 3
        self._visible = max(1, rows - _FRAME_LINES - detail_rows - 3 * airy)
        self._first = first_visible(self._visible, self._at, self._first, len(self._order))
        layout = slices.fit_slices(names, columns, self._first_slice)
        self._first_slice = layout.shown.start
        shown = self._order[self._first : self._first + self._visible]
        spare = self._visible - len(shown)
        lines = [
            slices.expert_line(
                row,
                layout,
                anatomy.name_of,
                chosen=at == self._at,
                colour=not self.app.no_color,
            )
            for at, row in enumerate(shown, self._first)
        ]
        heads = slices.heads(layout, names, self._ordering, table)
        self._show_top(routing, table)
        self.query_one("#slice-heads", Rows).show(heads)
        part = self.query_one("#slice-rows", Rows)
        part.styles.height = len(lines)
        part.show(lines, self.session.look.palette)
        blank = spare > 0 and not airy
        self._draw_detail(table, names, columns, detail_rows + spare, blank=blank)

    def _draw_detail(
        self, table: SliceTable, names: Sequence[str], columns: int, rows: int, *, blank: bool
    ) -> None:
        """Directly below the experts, with the rows that they leave free."""
        part = self.query_one("#slice-detail", Rows)
        part.styles.height = rows
        if self._order:
            named, row = self.session.anatomy.name_of, self._order[self._at]
            lines = slices.detail(row, table, names, named, columns, rows - blank)
            part.show([pad([], columns)] * blank + lines)

    def _show_top(self, routing: Routing, table: SliceTable) -> None:
        layer, shape, columns = self.session.anatomy.layer, routing.shape, self.room.width
        at, name = f"{layer + 1} of {len(shape.layers)}", shape.layer_names[layer]
        top = [
            slices.summary(table, routing.slices, name, at, columns),
            slices.identity(routing.tables, layer, shape.layer_names, self.session.glyphs, columns),
        ]
        self.query_one("#slice-top", Rows).show(top)

    def _draw_no_tables(self, routing: Routing, why: str) -> None:
        columns, self._order = self.room.width, ()
        for name in ("#slice-top", "#slice-heads", "#slice-detail"):
            self.query_one(name, Rows).show([])
        how = "its tokens are there: 7 shows them"
        lines = [pad([], columns), pad([Span(f"  {why}", "warn")], columns)]
        lines.append(pad([Span(f"  {how}", "dim")], columns))
        part = self.query_one("#slice-rows", Rows)
        part.styles.height = "1fr"
        part.show(lines)

    def _table_of(self, routing: Routing, layer: int) -> SliceTable:
        known = self._table
        if known is None or known[:2] != (routing, layer):
            shape = routing.shape
            table = slice_table(routing.tables, layer, len(routing.slices), shape.num_experts)
            known = self._table = (routing, layer, table)
        return known[2]

    def _take(self, table: SliceTable) -> None:
        """Order the experts; the chosen one stays chosen wherever it moved."""
        self._order = table.ordered(self._ordering)
        experts = [row.expert for row in self._order]
        if self.session.expert in experts:
            self._at = experts.index(self.session.expert)
        self._at = max(0, min(self._at, len(experts) - 1))

    def as_json(self, view: RunView) -> str:
        anatomy = self.session.anatomy
        if anatomy.routing is None:
            return super().as_json(view)
        return slices_json(anatomy.routing, anatomy.layer)

    async def action_expert(self, by: int) -> None:
        """Choose another expert, in the order that is shown."""
        if self._order:
            self._at = max(0, min(len(self._order) - 1, self._at + by))
            self.session.expert = self._order[self._at].expert
            await self.redraw()

    async def action_page(self, direction: int) -> None:
        """Move by a screenful of experts."""
        await self.action_expert(direction * self._visible)

    async def action_order(self) -> None:
        """Another order of the experts."""
        orders = list(Ordering)
        self._ordering = orders[(orders.index(self._ordering) + 1) % len(orders)]
        await self.redraw()

    async def action_more_slices(self, by: int) -> None:
        """Show the slices further left or right."""
        self._first_slice = max(0, self._first_slice + by)
        await self.redraw()

    async def action_open_tokens(self) -> None:
        """Show the next token of the expert at the cursor, with only this expert lit."""
        if not self._order:
            return
        self.session.expert = self._order[self._at].expert
        await self.from_disk(self.go_to_expert, False)
        if not self.has_said:
            await self.app.run_action("app.go('tokens')")
