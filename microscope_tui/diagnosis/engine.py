"""The rule engine: records in, changed episodes out, in constant memory.

It runs over years of history in the background, beside a live run, and inside ``check``. It works
on the per-router summaries and asks for the count matrices of a step only where a rule is
suspicious.
"""

from collections.abc import Collection

from microscope_tui.diagnosis import thresholds
from microscope_tui.diagnosis.episodes import Episode, Finding, Reading, Severity, group
from microscope_tui.diagnosis.evidence import CountSource, StepView
from microscope_tui.diagnosis.meter import Meter
from microscope_tui.diagnosis.persistence import Persistence
from microscope_tui.diagnosis.rules import Collapse, Dead, Drops, Rule
from microscope_tui.runlog.records import EventRecord, RunRecord, StepRecord


class _Track:
    """One rule on one router: its evidence and its running episode."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.evidence = Persistence(rule.enter, rule.leave)
        self.urgent = Persistence(
            thresholds.COLLAPSE.urgent_steps, 2 * thresholds.COLLAPSE.urgent_steps
        )
        self.episode: Episode | None = None


class Diagnosis:
    """Judges one run. Feed it every record in order; read ``findings()`` at any time."""

    def __init__(self, run: RunRecord, ignore: Collection[str] = ()) -> None:
        """``ignore``: names of rules that are left out, and so mute nothing either."""
        self.run = run
        self.episodes: list[Episode] = []
        self.last_step = 0
        self.checkpoints: list[int] = []
        self._warm_up = thresholds.warm_up(run.planned_steps)
        self._tracks = [
            [_Track(rule) for rule in _rules_for(run, index) if rule.name not in ignore]
            for index in range(len(run.routers))
        ]

    def observe(self, record: StepRecord, counts: CountSource) -> list[Episode]:
        """Judge one step; return the episodes that began, grew worse or ended with it.

        Args:
            record: the step; a step at or below an earlier one is a restart (see ``restart``).
            counts: decodes the counts of one router of this step; called only where a rule asks.
        """
        if record.step <= self.last_step:
            self.restart(record.step)
        self.last_step = record.step
        view = StepView(record, counts)
        changed: list[Episode] = []
        for index, tracks in enumerate(self._tracks):
            self._observe_router(view, index, tracks, changed)
        return changed

    def observe_event(self, event: EventRecord) -> None:
        """Remember checkpoints: the advice names one to roll back to."""
        if event.event == "checkpoint" and event.step is not None:
            self.checkpoints.append(event.step)

    def restart(self, step: int) -> None:
        """The run goes on from ``step`` again: what was said about later steps no longer holds."""
        self.episodes = [episode for episode in self.episodes if episode.onset < step]
        self.checkpoints = [saved for saved in self.checkpoints if saved < step]
        self.last_step = min(self.last_step, step - 1)
        for episode in self.episodes:
            episode.last = min(episode.last, step - 1)
            if episode.recovered_at is not None and episode.recovered_at >= step:
                episode.recovered_at = None  # it recovered in a future that no longer is
        running = {(e.router_index, e.rule): e for e in self.episodes if e.active}
        for index, tracks in enumerate(self._tracks):
            for track in tracks:
                track.rule.reset()
                track.evidence.forget_from(step)
                track.urgent.forget_from(step)
                track.episode = running.get((index, track.rule.name))

    def findings(self) -> list[Finding]:
        """All trouble so far, grouped over routers: active before over, worst first."""
        return group(self.episodes)

    def _observe_router(
        self, view: StepView, index: int, tracks: list[_Track], changed: list[Episode]
    ) -> None:
        muted = collapsing = False
        for track in tracks:
            reading = track.rule.read(view)
            if reading is not None:
                track.evidence.observe(view.step, reading.severity, reading.clear)
                if reading.urgent or track.urgent.pending:
                    urgent = reading.severity if reading.urgent else None
                    track.urgent.observe(view.step, urgent, reading.clear)
            if muted or (collapsing and track.rule.name == "DEAD"):
                continue  # the meter is broken, or the collapse already says who is dead
            if reading is not None and self._update(track, view.step, index, reading):
                assert track.episode is not None
                changed.append(track.episode)
                if not track.episode.active:
                    track.episode = None
            if track.rule.name == "METER":
                muted = track.episode is not None or track.evidence.pending
            elif track.rule.name == "COLLAPSE":
                collapsing = track.episode is not None or track.evidence.pending

    def _update(self, track: _Track, step: int, index: int, reading: Reading) -> bool:
        """Open, worsen or end the episode of ``track``; true if it changed."""
        episode = track.episode
        if episode is None:
            severity = self._alarm(track, step)
            if severity is None:
                return False
            track.episode = self._open(track, step, index, severity, reading)
            return True
        if reading.severity is not None:
            episode.last = step
            if _worse(reading, episode):
                episode.value, episode.facts = reading.value, reading.facts
                episode.confidence = reading.confidence
        severity = track.evidence.severity
        if severity is not None and severity > episode.severity:
            episode.severity, episode.limit = severity, reading.limit
            return True
        if (cleared_at := track.evidence.cleared_at) is not None:
            episode.recovered_at = cleared_at
            return True
        return False

    def _alarm(self, track: _Track, step: int) -> Severity | None:
        if track.rule.name == "METER" or step > self._warm_up:
            return track.evidence.severity
        return track.urgent.severity

    def _open(
        self, track: _Track, step: int, index: int, severity: Severity, reading: Reading
    ) -> Episode:
        router, name = self.run.routers[index], track.rule.name
        since = step if track.evidence.since is None else track.evidence.since
        if reading.since is not None:
            # The window may still have held sound steps when the trouble began, but no more.
            since = min(since, max(reading.since, since - track.rule.enter))
        earlier = [e for e in self.episodes if e.rule == name and e.router_index == index]
        episode = Episode(
            rule=name,
            router_index=index,
            router=router,
            severity=severity,
            onset=since,
            alarm=step,
            last=step,
            value=reading.value,
            limit=reading.limit,
            facts=reading.facts,
            confidence=reading.confidence,
            recurrence=len(earlier),
        )
        self.episodes.append(episode)
        return episode


def _worse(reading: Reading, episode: Episode) -> bool:
    """Low is bad for an index with a lower limit, high is bad for a rate or a number."""
    if episode.rule == "COLLAPSE":
        return reading.value <= episode.value
    return reading.value >= episode.value


def _rules_for(run: RunRecord, index: int) -> list[Rule]:
    """The rules of one router. The meter comes first: it mutes the others."""
    router = run.routers[index]
    return [
        Meter(index, router, run.counts),
        Collapse(index, router),
        Dead(index, router),
        Drops(index, router),
    ]
