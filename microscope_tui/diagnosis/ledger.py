"""The ledger: all episodes of a run, which are open, how they change, and how they are dated."""

from collections.abc import Container, Iterable
from typing import Any

from microscope_tui import measures
from microscope_tui.diagnosis.context import COOLDOWN_STEPS, GROUP_STEPS, Context
from microscope_tui.diagnosis.episodes import (
    EXACT,
    WHOLE_RUN,
    Episode,
    Fact,
    Facts,
    Finding,
    Present,
    Reading,
    Severity,
)
from microscope_tui.diagnosis.rules import RULES
from microscope_tui.diagnosis.rules.base import Track
from microscope_tui.diagnosis.signals import StepView, Trail, median

MOST_EPISODES = 20
"""Episodes kept per rule and router: a flickering run must not fill the memory."""
_RECENT = 16
"""Kept values (128 steps) whose median is the usual value."""


class Ledger:
    """Episodes in the order of their alarms."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.episodes: list[Episode] = []
        self._running: dict[tuple[str, int], Episode] = {}
        self.past = Trail(every=8, size=160)
        """Effective experts of every eighth step, for the usual value before an onset."""
        self._view: StepView
        """The step that is evaluated; none before the first."""

    def see(self, view: StepView) -> None:
        """Take note of a step; call it before the evaluations of the step."""
        self._view = view
        if (effective := view.signal("effective_experts")) is not None:
            self.past.add(view.step, effective.values)

    def running(self, rule: str, index: int) -> Episode | None:
        """The open episode of a rule in a router that evaluations update, if any.

        ``index``: of the router, or ``WHOLE_RUN``.
        """
        return self._running.get((rule, index))

    def running_of(self, rule: str) -> list[Episode]:
        """The open episodes that evaluations update."""
        return [episode for (name, _), episode in self._running.items() if name == rule]

    def open(
        self,
        rule: str,
        index: int,
        step: int,
        reading: Reading,
        severity: Severity | None = None,
        track: Track | None = None,
    ) -> None:
        """Begin an episode, or reopen one that ended at most ``COOLDOWN_STEPS`` ago.

        Args:
            rule: name of the rule that reports it.
            index: of the router, or ``WHOLE_RUN``.
            step: the step of the alarm; the onset may be earlier.
            reading: the evaluation that raised it.
            severity: by default that of ``reading``.
            track: the evidence of the rule. Without one it is always a new episode, and no
                evaluation updates it.
        """
        severity = severity or reading.severity or Severity.INFO
        onset = self._onset(rule, index, step, reading, track)
        same = [e for e in self.episodes if (e.rule, e.router_index) == (rule, index)]
        if track is not None and same and onset <= (same[-1].recovered_at or 0) + COOLDOWN_STEPS:
            episode = same[-1]
            episode.recovered_at = None
            episode.led_to = ""
            episode.last = step
            self._take_numbers(episode, step, reading)
            episode.severity = max(episode.severity, severity)
        else:
            episode = self._begin(rule, index, step, reading, onset)
            episode.severity = severity
            episode.recurrence = same[-1].recurrence + 1 if same else 0
            self.episodes.append(episode)
            self._announce(episode)
            if len(same) >= MOST_EPISODES:
                least = min(same, key=lambda e: (e.active, e.severity, e.onset))
                self.episodes = [e for e in self.episodes if e is not least]
        self._grade(episode, step)
        if track is not None:
            self._running[rule, index] = episode
            self._take_present(episode, step, reading, track)

    def _onset(
        self, rule: str, index: int, step: int, reading: Reading, track: Track | None
    ) -> int:
        """Also that of a warning that it confirms."""
        dates = [step, reading.since, track.since if track is not None else None]
        dates += [warning.onset for warning in self._warnings_of(rule, index)]
        return min(at for at in dates if at is not None)

    def _begin(self, rule: str, index: int, step: int, reading: Reading, onset: int) -> Episode:
        facts = self._facts(rule, index, reading)
        if RULES[rule].tells_usual and (usual := self.past.before(onset, index)[-_RECENT:]):
            facts["usual"] = median(usual)
        if RULES[rule].wants_balance and (c := self._at_once(index, onset)) is not None:
            facts["at_once"] = c
        last = step
        if reading.until is not None:
            last = max(onset, reading.until - 1)
        return Episode(
            rule=rule,
            router_index=index,
            router=self.context.run.routers[index] if index != WHOLE_RUN else None,
            severity=Severity.INFO,
            onset=onset,
            alarm=step,
            last=last,
            value=reading.value,
            limit=reading.limit,
            facts=facts,
            confidence=self._words(reading),
            worst_at=step,
            recovered_at=reading.until,
        )

    def _at_once(self, index: int, onset: int) -> float | None:
        """c of the experts that are left, where the others stopped all at once."""
        counts = self._view.full_counts(index)
        before = len(self.past.before(onset, index))
        past = self.past.column(index, max(0, before - _RECENT))
        if counts is None or before < 4:
            return None
        left = [n for n in counts if 20 * n * len(counts) > sum(counts)]
        level, low = median(past[:4]), median(past[-4:])
        fall, gone = level - low, 1 - len(left) / len(counts)
        slow = sum(low + fall / 4 < value < level - fall / 4 for value in past) > 1
        if slow or not gone or fall < gone / 2 * level:
            return None
        top_k = self.context.run.routers[index].top_k
        return measures.collapse_index(measures.effective_experts(left), len(left), top_k)

    def update(self, episode: Episode, step: int, reading: Reading, track: Track) -> None:
        """Take the evaluation of ``step`` into an open episode: worse numbers, its severity, its
        end.

        ``track`` has observed the same reading before.
        """
        if reading.severity is not None and not reading.held:
            episode.last = step
            self._take_numbers(episode, step, reading)
        self._take_present(episode, step, reading, track)
        severity = reading.severity if reading.certain else track.severity
        if severity is not None and not reading.held and severity > episode.severity:
            if episode.severity is Severity.INFO:
                episode.alarm = step
            episode.severity = severity
            self._grade(episode, step)
            if episode.alarm == step:
                self._announce(episode)
        elif (cleared_at := track.cleared_at) is not None:
            episode.recovered_at = cleared_at
            episode.now = None
            del self._running[episode.rule, episode.router_index]

    def set_causes(self, rule: str, step: int, causes: Iterable[tuple[int, Reading]]) -> None:
        """An episode for each cause that holds from ``step`` on; those that hold no longer end
        there.

        ``causes``: router or ``WHOLE_RUN``, and a reading with the fact ``cause``.
        """
        held = {(e.router_index, e.reason): e for e in self.episodes if e.rule == rule and e.active}
        for index, reading in causes:
            episode = held.pop((index, reading.facts["cause"]), None)
            if episode is None:
                self.open(rule, index, step, reading)
                continue
            episode.facts = episode.facts | _plain(reading.facts)
            if (severity := reading.severity or Severity.INFO) > episode.severity:
                episode.severity = severity
                self._grade(episode, step)
        for episode in held.values():
            self._end(episode, step)

    def restart(self, step: int) -> list[Episode]:
        """Withdraw everything reported at ``step`` and later.

        Returns:
            Withdrawn episodes that began before ``step``: their evidence may continue.
        """
        withdrawn = [e for e in self.episodes if e.onset < step <= e.alarm]
        self.episodes = [episode for episode in self.episodes if episode.alarm < step]
        for episode in self.episodes:
            episode.forget_from(step)
            episode.now = None  # until the next evaluation
        self.past.forget_from(step)
        self.resume()
        return [episode for episode in withdrawn if not RULES[episode.rule].judges_settings]

    def resume(self) -> None:
        """Find the episodes that evaluations update and end; call it after ``episodes`` was
        replaced.
        """
        still = [e for e in self.episodes if e.active and not RULES[e.rule].judges_settings]
        self._running = {(e.rule, e.router_index): e for e in still}

    def end_others(self, rules: Container[str], step: int) -> None:
        """End the active episodes of all rules but these: they are not evaluated any more."""
        for episode in self.episodes:
            if episode.active and episode.rule not in rules:
                self._end(episode, step)

    def _grade(self, episode: Episode, step: int) -> None:
        """Record its severity; once it is critical, what warned of it is over."""
        episode.grade(step)
        if episode.severity >= Severity.CRITICAL:
            for warning in self._warnings_of(episode.rule, episode.router_index):
                warning.led_to = episode.rule
                self._end(warning, step)

    def _warnings_of(self, rule: str, index: int) -> list[Episode]:
        """Open ones, of the rules that warn of this one."""
        warning = (self.running(name, index) for name, r in RULES.items() if rule in r.ends_in)
        return [episode for episode in warning if episode is not None]

    def _end(self, episode: Episode, step: int) -> None:
        episode.recovered_at = step
        episode.now = None
        episode.last = max(episode.last, step - 1)
        self._running.pop((episode.rule, episode.router_index), None)

    def _words(self, reading: Reading) -> str:
        return self.context.confidence if reading.confidence == EXACT else reading.confidence

    def _take_numbers(self, episode: Episode, step: int, reading: Reading) -> None:
        if not _worse(reading, episode):
            return
        if reading.value != episode.value or "since" in reading.facts:  # it has the age, too
            episode.worst_at = step
        episode.value = reading.value
        episode.limit = reading.limit
        tells = RULES[episode.rule].tells_usual  # as of before the onset
        kept = ("at_once", "usual" if tells else "")
        usual = {k: v for k, v in episode.facts.items() if k in kept}
        episode.facts = self._facts(episode.rule, episode.router_index, reading) | usual
        episode.confidence = self._words(reading)

    def _take_present(self, episode: Episode, step: int, reading: Reading, track: Track) -> None:
        inside = reading.clear and (reading.severity is None or reading.held)
        if reading.severity is None and not inside and not reading.facts:
            episode.now = None
            return
        episode.now = Present(
            step=step,
            value=reading.value,
            limit=reading.limit,
            facts=_plain(reading.facts),
            inside=inside,
            left=track.leave - track.clear if inside else 0,
        )

    def _facts(self, rule: str, index: int, reading: Reading) -> dict[str, Fact]:
        facts = _plain(reading.facts)
        if RULES[rule].wants_balance:
            margin = self._view.signal("margin")  # the scale of the scores
            if margin is not None and margin.values[index] == margin.values[index]:
                facts["margin"] = float(margin.values[index])
        return facts

    def _announce(self, episode: Episode) -> None:
        """A rule that announces another, and is soon followed by it, was its first sign."""
        first_sign = self.running(RULES[episode.rule].announced_by, WHOLE_RUN)
        if first_sign is None or episode.severity < Severity.WARN:
            return
        limits: Any = self.context.limits.of(RULES[first_sign.rule].limits_type)
        soon = episode.alarm - first_sign.last <= limits.followed
        if soon and first_sign.severity < Severity.CRITICAL:
            first_sign.severity = Severity.CRITICAL
            first_sign.grade(episode.alarm)


def _worse(reading: Reading, episode: Episode) -> bool:
    """Two causes of one rule are measured in different units: there the graver one, and then how
    far it is beyond its limit.
    """
    if reading.facts.get("cause") != episode.reason:
        new = (reading.severity or 0, _beyond(reading))
        return new >= (episode.severity, _beyond(episode))
    if RULES[episode.rule].low_is_bad:
        return reading.value <= episode.value
    return reading.value >= episode.value


def _beyond(one: Reading | Episode) -> float:
    """How far it is beyond its limit, as a factor; where it has none, the value."""
    if one.limit > 0:
        return one.value / one.limit
    return one.value


def _plain(facts: Facts) -> dict[str, Fact]:
    """Numbers as floats, so that a saved state is the same when restored."""
    return {**facts, **{k: float(v) for k, v in facts.items() if isinstance(v, int)}}


def group(episodes: Iterable[Episode]) -> list[Finding]:
    """Findings, the worst first.

    The active episodes of a rule are one finding; those that are over, if they began together.
    """
    groups: list[list[Episode]] = []
    for episode in sorted(episodes, key=_order):
        first = groups[-1][0] if groups else episode  # not the last one: a chain has no end
        alike = _order(first)[:3] == _order(episode)[:3] and episode.router is not None
        soon = episode.active or episode.onset - first.onset <= GROUP_STEPS
        if groups and alike and soon:
            groups[-1].append(episode)
        else:
            groups.append([episode])
    for members in groups:
        members.sort(key=lambda e: (-e.severity, e.onset, e.router_index))
    return sorted(
        (Finding(tuple(members)) for members in groups),
        key=lambda f: (not f.active, -f.severity, RULES[f.rule].cause_rank, f.onset),
    )


def _order(episode: Episode) -> tuple[str, bool, str, int, int]:
    cause = str(episode.reason)
    return episode.rule, not episode.active, cause, episode.onset, episode.router_index
