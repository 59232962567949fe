"""The keys of the heatmap: what its cells measure, their order and colours, and its cursor."""

from collections.abc import Sequence

from microscope_tui.app.actions.pin_actions import PinActions
from microscope_tui.app.actions.run_screen import RunScreen
from microscope_tui.lines import Pattern, order_of
from microscope_tui.watch import pin


class LookActions(RunScreen, PinActions):
    """Changes how loads are looked at, and moves among the layers that the filter shows."""

    layers_shown: Sequence[int] = ()
    """Indices of the layers that the filter shows, as they were last drawn."""

    def position(self) -> int:
        """Position of the chosen layer among the shown ones, or that of the nearest shown layer."""
        shown, selected = self.layers_shown, self.session.selected
        if shown and selected not in shown:
            self.session.selected = min(shown, key=lambda index: abs(index - selected))
        return list(shown).index(self.session.selected) if shown else 0

    async def action_move(self, by: int) -> None:
        """Choose another one of the shown layers."""
        shown = self.layers_shown
        if shown:
            at = max(0, min(len(shown) - 1, self.position() + by))
            if shown[at] != self.session.selected:
                self.session.selected = shown[at]
                await self.select()

    async def action_look(self, what: str) -> None:
        """Cycle through overlays, scales, orders or palettes."""
        look = self.session.look
        self.session.look = {
            "overlay": look.next_overlay,
            "scale": look.next_scale,
            "order": look.next_order,
            "palette": look.next_palette,
        }[what]()
        now = self.session.look
        said = {"order": f"experts by {now.order}", "palette": f"palette: {now.palette}"}
        self.tell(said.get(what, f"cells show: {now.measure}"), "accent")
        await self.redraw()

    async def action_expert(self, by: int) -> None:
        """Choose another expert of the layer, in the order that is shown."""
        session = self.session
        view = session.view(1, 1, range(0))
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

    async def action_open_layer(self) -> None:
        """Open the screen of the chosen layer."""
        if self.layer_count():
            await self.app.run_action("app.go('layer')")
