"""The rule engine: records in, changed episodes out, in bounded memory.

It runs over long histories in the background, beside a live run, and inside ``check``. It uses the
per-router summaries and decodes the count matrices of a step only if a rule is suspicious.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from microscope_tui.diagnosis.context import AFTER_RESTART_STEPS, ANYTHING, WHEN, Context, Criteria
from microscope_tui.diagnosis.episodes import (
    WHOLE_RUN,
    Episode,
    Finding,
    Reading,
    Readings,
    Severity,
)
from microscope_tui.diagnosis.ledger import Ledger, group
from microscope_tui.diagnosis.rules import RULES, AnyRule
from microscope_tui.diagnosis.rules.base import Track
from microscope_tui.diagnosis.signals import (
    BiasSource,
    CountSource,
    StepView,
    expected,
    see,
    why_blind,
)
from microscope_tui.runlog import EventRecord, RunRecord, StepRecord

_CLEAR = Reading(severity=None, clear=True)
_MOST_CHECKPOINTS = 1000
Muted = Mapping[int, Severity]
"""Routers in which a rule is muted, unless it has something worse to report."""
_GAPS = 8


class Diagnosis:
    """Judges one run. Feed it every record in order; read ``findings()`` at any time."""

    def __init__(self, run: RunRecord, criteria: Criteria = ANYTHING) -> None:
        self._criteria = criteria
        self.rules: list[AnyRule] = []
        context = self._judge_by(run)
        self.ledger = Ledger(context)
        self.last_step = 0
        self.gaps: list[int] = []
        """Gaps between the last lines; the smallest is the spacing of the log."""
        self.checkpoints: list[int] = []
        self.warm_until = context.warm_up
        self.judged_since: int | None = None
        """First step past the warm-up; see ``standing.warm_up_left``."""
        self.seen: set[str] = set()
        """The numbers that the log has: see ``signals.see``."""
        self.too_few = ""
        """Why a single moment cannot be judged; empty if it can, and for any other run."""
        self._unmeasured: frozenset[int] = frozenset()
        self.restarted = False
        """No step was seen since the restart."""
        self._everyone = frozenset(range(WHOLE_RUN, len(run.routers)))

    @property
    def episodes(self) -> list[Episode]:
        """All episodes so far, in the order of their alarms."""
        return self.ledger.episodes

    def observe(
        self, record: StepRecord, counts: CountSource, biases: BiasSource | None = None
    ) -> list[Episode]:
        """Judge one step; return the episodes that began, grew worse or ended with it.

        Args:
            record: the step; a step at or below an earlier one is a restart (see ``restart``).
            counts: decodes the counts of one router of this step; called only where a rule asks.
            biases: the same for the selection bias.
        """
        if record.step <= self.last_step:
            self.restart(record.step)
        self._space(record.step - self.last_step)
        self.last_step = record.step
        if self.judged_since is None and record.step > self.warm_until:
            self.judged_since = record.step
        view = StepView(record, self.run.routers, counts, biases)
        self.ledger.see(view)
        see(view, self.seen)
        if self.ledger.context.moment:
            self.too_few = _too_few(view, self.ledger.context)
        changed: list[Episode] = []
        self._unmeasured = frozenset()
        for rule in self.rules:
            silent = self._silent(rule)
            for index, reading in rule.events(view):
                if index not in silent:
                    changed.append(self.ledger.open(rule.name, index, record.step, reading))
            if WHOLE_RUN not in silent and (causes := rule.standing(view)) is not None:
                changed += self.ledger.stand(rule.name, record.step, causes)
            readings = rule.read(view)
            if readings is not None:
                changed += self._take(rule, readings, record.step, silent)
            if rule.mutes_all:
                muted = self._troubled(rule).keys()
                self._unmeasured |= self._everyone if WHOLE_RUN in muted else muted
        return changed + list(self._end_warnings(changed))

    def _end_warnings(self, changed: Sequence[Episode]) -> Iterator[Episode]:
        """End the episodes that warned of this one."""
        for episode in changed:
            if episode.severity < Severity.CRITICAL or not episode.active:
                continue
            for rule in self.rules:
                if episode.rule in rule.ends_in:
                    yield from self.ledger.lead_to(rule.name, episode, self.last_step)
                    rule.tracks.pop(episode.router_index, None)

    def _space(self, gap: int) -> None:
        if self.restarted or not self.last_step:
            self.restarted = False
            return  # the gap at a restart is not the spacing
        self.gaps.append(gap)
        del self.gaps[:-_GAPS]
        self.adapt()

    def adapt(self) -> None:
        """Persistence counts steps: a sparse log needs fewer lines."""
        for rule in self.rules:
            rule.space(min(self.gaps, default=1))

    def _silent(self, rule: AnyRule) -> Muted:
        """Routers with episodes of the muting rules, and their severity."""
        silent = dict.fromkeys(self._unmeasured, Severity.ERROR)
        for other in self._muting[rule.name]:
            for index, severity in self._troubled(other).items():
                silent[index] = max(severity, silent.get(index, severity))
        return silent

    def observe_event(self, event: EventRecord) -> None:
        """Remember checkpoints: the advice names one to roll back to."""
        step = event.step
        if event.event == "checkpoint" and step is not None and step not in self.checkpoints[-1:]:
            self.checkpoints.append(step)
            del self.checkpoints[:-_MOST_CHECKPOINTS]

    def restart(self, step: int, *, corrected: bool = False) -> None:
        """The run resumes at ``step``: later evidence no longer holds.

        Args:
            corrected: The process never stopped, it only writes the last step again: no warm-up.
        """
        self.checkpoints = [saved for saved in self.checkpoints if saved < step]
        self.last_step = min(self.last_step, step - 1)
        self.restarted = True
        grace = step - 1 + AFTER_RESTART_STEPS
        # Not after every restart: a run that is pre-empted often would never be judged.
        if corrected:
            grace = self.warm_until
        elif step <= self.warm_until + AFTER_RESTART_STEPS:
            grace = max(self.ledger.context.warm_up, min(self.warm_until, grace))
        self.warm_until = grace
        if self.judged_since is not None and self.judged_since >= step:
            self.judged_since = None
        withdrawn = self.ledger.restart(step)
        for rule in self.rules:
            rule.restart(step)
            for track in rule.tracks.values():
                track.forget_from(step)
            for episode in withdrawn:
                if episode.rule == rule.name:
                    track = rule.track(episode.router_index)
                    track.recall(episode.onset, step - 1, episode.grades[0].severity)
            for index, track in list(rule.tracks.items()):
                if track.idle and self.ledger.running(rule.name, index) is None:
                    del rule.tracks[index]
            self.keep_looking(rule, self.ledger.running_of(rule.name))

    def go_on(self, run: RunRecord) -> None:
        """The same model has a new header: judge its settings again."""
        context = self._judge_by(run)
        self.ledger.context = context
        self.warm_until = max(self.warm_until, context.warm_up)
        self.ledger.end_others({rule.name for rule in self.rules}, self.last_step + 1)

    def _judge_by(self, run: RunRecord) -> Context:
        """Choose the rules for a header; those that are at work keep their memory."""
        context = self._criteria.context(run)
        self.run = replace(run, profile=context.profile)
        """The header, with the profile by which it is judged."""
        known = {rule.name: rule for rule in self.rules}
        for rule in self.rules:
            rule.change(context)
        self.rules = [known.get(rule.name) or rule(context) for rule in self._wanted(context)]
        self._muting = {
            rule.name: [other for other in self.rules if other.name in rule.muted_by]
            for rule in self.rules
        }
        return context

    def keep_looking(self, rule: AnyRule, episodes: Sequence[Episode]) -> None:
        """Have a rule evaluate open episodes until they end."""
        for episode in episodes:
            rule.track(episode.router_index)
        if episodes:
            rule.keep_looking(episodes)

    def blind_spots(self) -> dict[str, str]:
        """Rules that cannot be evaluated on this log, and why."""
        if not self.last_step:
            return {}
        reasons = {
            rule.name: rule.blind_to() or why_blind(rule.inputs(), self.seen, self.run)
            for rule in self.rules
        }
        return {name: reason for name, reason in reasons.items() if reason}

    def findings(self) -> list[Finding]:
        """All episodes grouped over routers: active before recovered, worst first."""
        return group(self.episodes)

    def _wanted(self, context: Context) -> Iterator[type[AnyRule]]:
        for rule in RULES.values():
            fits = rule.judges_moment if context.moment else context.trains or not rule.trains_only
            if fits and rule.name not in self._criteria.ignore:
                yield rule

    def _take(
        self, rule: AnyRule, readings: Readings, step: int, silent: Muted
    ) -> Iterator[Episode]:
        for index in [index for index in rule.tracks if index not in readings]:
            yield from self._evaluate(rule, index, step, _CLEAR, silent.get(index))
        for index, reading in readings.items():
            if reading is not None:
                yield from self._evaluate(rule, index, step, reading, silent.get(index))

    def _evaluate(
        self, rule: AnyRule, index: int, step: int, reading: Reading, said: Severity | None
    ) -> Iterator[Episode]:
        if index not in rule.tracks and reading.severity is None:
            return
        track = rule.track(index)
        track.observe(step, reading.severity, reading.clear)
        track.dated = reading.since
        episode = self.ledger.running(rule.name, index)
        if episode is not None:
            if index not in self._unmeasured:  # a reported episode continues, whatever mutes it
                yield from self.ledger.update(episode, step, reading, track)
        elif track.idle:
            del rule.tracks[index]
        elif (severity := self._alarm(rule, track, step, reading)) is not None and (
            said is None or severity > said  # of two the worse is reported
        ):
            yield self.ledger.open(rule.name, index, step, reading, severity, track)

    def _alarm(self, rule: AnyRule, track: Track, step: int, reading: Reading) -> Severity | None:
        if reading.held:
            return None
        if reading.certain or reading.severity is None:
            return reading.severity  # an alarm is never raised on a healthy step
        if step <= self.warm_until and not (rule.in_warm_up or reading.settled):
            return None
        return track.severity

    def _troubled(self, rule: AnyRule) -> dict[int, Severity]:
        """Routers in which this rule has an episode, or evidence for one, and their severity."""
        found: dict[int, Severity] = {}
        for index, track in rule.tracks.items():
            episode, pending = self.ledger.running(rule.name, index), track.pending
            if episode is not None:
                found[index] = max(episode.severity, pending or episode.severity)
            elif pending is not None:
                found[index] = pending
        return found


def _too_few(view: StepView, context: Context) -> str:
    """Why the assignments of a moment do not suffice for a verdict; empty if they do."""
    effective = view.signal("effective_experts")
    if effective is None:
        return ""  # no load at all: that is the reason then
    found = {
        index: expected(view, index, context.run)
        for index, value in enumerate(effective.values)
        if math.isfinite(value)
    }
    if not found:
        return ""
    limits = [context.limits.of(rule.limits_type) for rule in RULES.values() if rule.judges_moment]
    needed = max(getattr(mine, "evidence", 0) for mine in limits)
    least = min(found, key=lambda index: found[index] or 0.0)
    known = found[least]
    if known is None:
        return f"not judged: assignments per expert unknown {WHEN}, {needed:g} are needed"
    if known >= needed:
        return ""
    name = context.run.routers[least].name
    return f"not judged: {name} has {known:.3g} assignments per expert {WHEN}, needs {needed:g}"
