"""News of a followed run: findings that opened, grew worse or recovered.

Each check compares the episodes with those of the previous one. Episodes of one rule that start
between two checks are one piece of news, however many layers they are in. The first check reports
what is active, and nothing that was already over.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from microscope_tui.diagnosis import Advice, Diagnosis, Episode, Finding, Severity
from microscope_tui.report.check import told

Event = Literal["opened", "worse", "recovered"]
_Key = tuple[str, int, int, int]


@dataclass(frozen=True, slots=True)
class News:
    """One piece of news."""

    event: Event
    step: int
    """The last judged step at that time."""
    finding: Finding
    advice: Advice


class Alerts:
    """Tracks what was reported. Pass it the diagnosis after every judged batch."""

    def __init__(self, since_step: int = 0) -> None:
        """``since_step``: earlier findings are not reported."""
        self._since_step = since_step
        self._known: dict[_Key, tuple[Severity, bool]] | None = None

    def news(self, diagnosis: Diagnosis | None) -> Sequence[News]:
        """Changes since the last check; an episode that is already over is ``opened`` only."""
        changed: dict[Event, list[Episode]] = {"opened": [], "worse": [], "recovered": []}
        known: dict[_Key, tuple[Severity, bool]] = {}
        for episode in diagnosis.episodes if diagnosis is not None else ():
            if episode.onset < self._since_step:
                continue
            key = (episode.rule, episode.router_index, episode.recurrence, episode.onset)
            known[key] = (episode.severity, episode.active)
            if (event := self._event(key, episode)) is not None:
                changed[event].append(episode)
        self._known = known  # an episode withdrawn by a restart may return, and is reported again
        if diagnosis is None:
            return ()
        return [
            News(event, diagnosis.last_step, finding, advice)
            for event, episodes in changed.items()
            for finding, advice in told(diagnosis, episodes)
        ]

    def _event(self, key: _Key, episode: Episode) -> Event | None:
        if self._known is None:  # the first check
            return "opened" if episode.active else None
        before = self._known.get(key)
        if before is None:
            return "opened"
        severity, active = before
        if episode.severity > severity:
            return "worse"
        if episode.active != active:
            return "opened" if episode.active else "recovered"
        return None
