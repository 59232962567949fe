"""A screen of a run: the time machine, the alerts, the prompt, and moving between layers."""

from microscope_tui.app.actions.alert_actions import AlertActions
from microscope_tui.app.actions.prompt_actions import PromptActions
from microscope_tui.app.actions.time_actions import TimeActions


class RunScreen(TimeActions, AlertActions, PromptActions):
    """Base of the main, layer, expert, compare and course screens."""

    def layer_count(self) -> int:
        """Number of routers of the run."""
        watch = self.session.watch
        return len(watch.run.routers) if watch is not None and watch.run is not None else 0

    async def action_move(self, by: int) -> None:
        """Choose another layer."""
        last = self.layer_count() - 1
        selected = max(0, min(last, self.session.selected + by))
        if selected != self.session.selected:
            self.session.selected = selected
            await self.select()

    async def select(self) -> None:
        """Show that another layer was chosen."""
        await self.redraw()

    async def action_page(self, direction: int) -> None:
        """Move by a screenful of layers."""
        await self.action_move(direction * self.page())

    def page(self) -> int:
        """Layers in a screenful."""
        return 10
