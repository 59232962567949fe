"""Keys that move between alerts, on every screen that shows layers."""

from microscope_tui.app.actions.base_screen import BaseScreen
from microscope_tui.diagnosis import key_of
from microscope_tui.watch import RunView


class AlertActions(BaseScreen):
    """Finds alerts, tracks which were seen, and jumps to their onsets."""

    async def action_next_alert(self) -> None:
        """Go to the next layer with an alert: unseen alerts first, then the worst."""
        view = self.session.view(1, 1, range(0))
        sick = self._sick(view) if view is not None else []
        if not sick:
            self.tell("no active alert", "dim")
            return
        here = self.session.selected
        at = sick.index(here) + 1 if here in sick else 0
        self.session.selected = sick[at % len(sick)]
        await self.redraw()

    def _sick(self, view: RunView) -> list[int]:
        """Layers with active alerts: unseen findings first, then by severity."""
        seen = self.session.seen
        findings = sorted(view.alerts, key=lambda pair: key_of(view.name, pair[0]) in seen)
        layers = [e.router_index for finding, _ in findings for e in finding.episodes if e.active]
        return list(dict.fromkeys(layer for layer in layers if layer >= 0))

    async def action_acknowledge(self) -> None:
        """Mark the alerts of the chosen layer, or the one on top, as seen."""
        view = self.session.view(1, 1, range(0))
        if view is None or not view.alerts:
            self.tell("no active alert", "dim")
            return
        here = self.session.selected
        chosen = [f for f, _ in view.alerts if any(e.router_index == here for e in f.episodes)]
        chosen = chosen or [view.alerts[0][0]]
        marks = {key_of(view.name, finding) for finding in chosen}
        seen = self.session.seen
        if marks <= seen.keys():
            self.session.seen = {key: None for key in seen if key not in marks}
            self.tell(f"{chosen[0].rule}: not seen", "accent")
        else:
            self.session.seen = seen | dict.fromkeys(sorted(marks))
            self.tell(f"{chosen[0].rule}: seen", "accent")
        await self.redraw()

    async def action_onset(self) -> None:
        """Go to the step where the alert of the chosen layer, or the one on top, began."""
        view = self.session.view(1, 1, range(0))
        if view is None or not view.alerts:
            self.tell("no active alert at this step", "dim")
            return
        here = self.session.selected
        onsets = [e for f, _ in view.alerts for e in f.episodes if e.router_index == here]
        episode = onsets[0] if onsets else view.alerts[0][0].worst
        if episode.router_index >= 0:
            self.session.selected = episode.router_index
        await self.from_disk(self.session.time.go_to, episode.onset)
