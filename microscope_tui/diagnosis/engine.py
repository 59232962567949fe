"""The rule engine: records in, episodes out, in bounded memory.

The count matrices of a step are decoded only if a rule is suspicious.

A run without findings is healthy only once it is judged: see ``no_verdict`` and ``pending``.
``save`` is for a resumed training: after a restore, the same records give the same episodes as one
uninterrupted pass. It is msgpack of typed structs: nothing can execute, foreign bytes are refused.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from operator import add
from typing import NamedTuple

import msgspec

from microscope_tui.diagnosis.causes import EXPLAINING, Changes, Known, causes
from microscope_tui.diagnosis.context import AFTER_RESTART_STEPS, ANYTHING, Context, Criteria
from microscope_tui.diagnosis.episodes import (
    WHOLE_RUN,
    Episode,
    Finding,
    Reading,
    Readings,
    Severity,
)
from microscope_tui.diagnosis.ledger import Ledger
from microscope_tui.diagnosis.rules import RULES, AnyRule
from microscope_tui.diagnosis.rules.base import Track
from microscope_tui.diagnosis.rules.collapse import CollapseLimits
from microscope_tui.diagnosis.signals import (
    BiasSource,
    CountSource,
    Routers,
    StepView,
    Sums,
    Trail,
    see,
    why_blind,
)
from microscope_tui.runlog import EventRecord, RouterInfo, RunRecord, StepRecord, plural

STATE_VERSION = 7
_CLEAR = Reading(severity=None, clear=True)
_MOST_CHECKPOINTS = 1000
_GAPS = 8
_START_STEPS = 300
"""A warning of one of these rules that heals within so many steps of a start is information."""
_OF_STARTS = ("STARVED", "DEAD", "DROPS", "COLLAPSE")
_LAST_STEPS = 10
"""With a low balance: fewer are not judged when a run is over."""


@dataclass(kw_only=True, eq=False)
class _State:
    last_step: int = 0
    """The last one that was judged; 0 before the first."""
    gaps: list[int] = field(default_factory=list)
    """Between the last lines; the smallest is the spacing of the log."""
    restarted: bool = False
    """No step was seen since the restart."""
    warm_until: int = 0
    """Last step of the warm-up."""
    judged_since: int | None = None
    """First step past the warm-up; see ``warm_up_left``."""
    checkpoints: list[int] = field(default_factory=list)
    """Steps at which one was written, in order."""
    resumes: list[int] = field(default_factory=list)
    """First steps after a restart of the training."""
    changes: Changes = field(default_factory=Changes)
    seen: list[str] = field(default_factory=list)
    """See ``signals.see``."""
    too_few: str = ""
    """Why a single moment cannot be judged."""
    totals: dict[int, list[int]] = field(default_factory=dict)
    """Counts by router, summed over an evaluation."""


class Diagnosis(_State):
    """Judges one run. Feed it every record in order; read ``findings()`` at any time."""

    def __init__(self, run: RunRecord, criteria: Criteria = ANYTHING) -> None:
        super().__init__()
        self._criteria = criteria
        self.rules: dict[str, AnyRule] = {}
        self.ledger = Ledger(self._judge_by(run))
        self.warm_until = self.ledger.context.warm_up
        self.over = False
        """No step will follow; see ``conclude``."""
        self._at_end: list[Episode] = []
        self._record = StepRecord(0)
        self._unmeasured: frozenset[int] = frozenset()
        self._everyone = frozenset(range(WHOLE_RUN, len(run.routers)))

    @property
    def episodes(self) -> list[Episode]:
        """In the order of their alarms."""
        return self.ledger.episodes + self._at_end

    def observe(
        self, record: StepRecord, counts: CountSource, biases: BiasSource | None = None
    ) -> None:
        """Judge one step.

        Args:
            record: one at or below an earlier step is a restart (see ``restart``).
            counts: decodes the counts of one router; called only if a rule needs them.
            biases: the same for the selection bias.
        """
        self.conclude(over=False)
        self._record = record
        if record.step <= self.last_step:
            self.restart(record.step)
        self._go_to(record.step)
        view = StepView(record, self._routers, counts, biases)
        self.ledger.see(view)
        see(view, self.seen)
        if record.loss is not None:
            self.changes.add(record.step, record.loss)
        if self.ledger.context.one_step:
            from microscope_tui.diagnosis.at_end import too_few

            self.too_few = too_few(view, self.ledger.context)
        self._unmeasured = frozenset()
        view.sick = [
            e.router_index
            for name in ("COLLAPSE", "DEAD")
            for e in self.ledger.running_of(name)
            if e.now is None or not e.now.inside
        ]
        for rule in self.rules.values():
            self._report(rule, view)
            readings = rule.read(view)
            if readings or rule.tracks:
                self._take(rule, readings)
        if not self.ledger.context.trains and self.run.counts != "shares":
            self._add_counts(view)

    def _go_to(self, step: int) -> None:
        if self.last_step and not self.restarted:  # the gap at a restart is not the spacing
            before = min(self.gaps, default=0)
            self.gaps.append(step - self.last_step)
            del self.gaps[:-_GAPS]
            if min(self.gaps) != before:
                self.adapt()
        self.last_step = step
        self.restarted = False
        if self.judged_since is None and step > self.warm_until:
            self.judged_since = step

    def _add_counts(self, view: StepView) -> None:
        for index in range(len(self.run.routers)):
            if index not in self._unmeasured and (row := view.full_counts(index)):
                total = self.totals.get(index, [0] * len(row))
                self.totals[index] = list(map(add, total, row))

    def conclude(self, over: bool = True) -> None:
        """Judge the sums of a run that is over as one moment, until the next step."""
        if over == self.over or self.ledger.context.one_step:
            return
        self.over = over
        self._at_end = []
        self.too_few = ""
        if not over or not (sums := self._sums()).counts:
            return
        from microscope_tui.diagnosis.at_end import judge_sums

        found, self.too_few = judge_sums(self.run, self._criteria, sums)
        self._at_end = [e for e in found if not self.ledger.running(e.rule, e.router_index)]

    def _sums(self) -> Sums:
        """Of an evaluation all; of a training those of the last steps, where c is low."""
        if not self.ledger.context.trains:
            first = min(self.ledger.past.steps, default=self.last_step)
            return Sums(self._record, dict.fromkeys(self.totals, first), self.totals)
        sums = Sums(self._record)
        collapse = self.rules.get("COLLAPSE")
        if collapse is None or warm_up_left(self) is not None:
            return sums
        swings = {episode.router_index for episode in self.ledger.running_of("OSCILLATION")}
        least = self.last_step - _LAST_STEPS + 1
        for index, held in collapse.memory.suspects.items():
            low = held.since and held.since <= least
            if low and index not in self._unmeasured | swings:
                rows = held.summed.rows[-collapse.lines(_LAST_STEPS) :] if held.summed else []
                sums.since[index] = held.since
                sums.counts[index] = [sum(column) for column in zip(*rows, strict=True)]
        return sums

    def adapt(self) -> None:
        """Persistence counts steps: a sparse log needs fewer lines."""
        spacing = min(self.gaps, default=1)
        for rule in self.rules.values():
            rule.space(spacing)

    def _is_muted(self, rule: AnyRule, index: int, severity: int = Severity.INFO) -> bool:
        """Whether a rule has nothing worse to report than those that mute it."""
        muted = any(self._mutes(name, index, severity) for name in rule.muted_by)
        return muted or index in self._unmeasured

    def _mutes(self, name: str, index: int, severity: int) -> bool:
        """Whether a rule has such an episode in a router, or evidence for one, or a worse one."""
        rule = self.rules.get(name)
        if rule is None or index not in rule.tracks:
            return False
        episode = self.ledger.running(name, index)
        if episode is not None and episode.severity >= severity:
            return True
        track = rule.tracks[index]
        in_time = self.last_step - (track.since or 0) < rule.decides_in
        return in_time and (track.pending or 0) >= severity

    def observe_event(self, event: EventRecord) -> None:
        """Of checkpoints the advice names one."""
        step = event.step
        if event.event == "checkpoint" and step is not None and step not in self.checkpoints[-1:]:
            self.checkpoints.append(step)
            del self.checkpoints[:-_MOST_CHECKPOINTS]
        elif step is not None:
            self.changes.event(step, event.event)

    def restart(self, step: int, *, corrected: bool = False) -> None:
        """The run resumes at ``step``: later evidence no longer holds.

        ``corrected``: the process never stopped and only writes its last step again: no warm-up.
        """
        self.checkpoints = [saved for saved in self.checkpoints if saved < step]
        self.last_step = min(self.last_step, step - 1)
        self.restarted = True
        self.resumes = [at for at in self.resumes if at < step]
        if not corrected:
            self._resume_at(step)
        if self.judged_since is not None and self.judged_since >= step:
            self.judged_since = None
        self.changes.forget_from(step)
        withdrawn = self.ledger.restart(step)
        for rule in self.rules.values():
            rule.restart(step)
            for track in rule.tracks.values():
                track.forget_from(step)
            for episode in withdrawn:
                if episode.rule == rule.name:
                    track = rule.track(episode.router_index)
                    track.recall(episode.onset, step - 1, episode.grades[0].severity)
            running = [e.router_index for e in self.ledger.running_of(rule.name)]
            lasting = {index: track for index, track in rule.tracks.items() if track.over}
            rule.tracks = lasting | {index: rule.track(index) for index in running}

    def _resume_at(self, step: int) -> None:
        """The process starts again; at step 1 another run begins in the same file."""
        self.totals = {}
        if step > 1:
            self.resumes = [*self.resumes, step][-_MOST_CHECKPOINTS:]
        grace = step - 1 + AFTER_RESTART_STEPS
        # Not after every restart: a run that is pre-empted often would never be judged.
        if step <= self.warm_until + AFTER_RESTART_STEPS:
            grace = max(self.ledger.context.warm_up, min(self.warm_until, grace))
        self.warm_until = grace

    def change_header(self, run: RunRecord) -> None:
        """The same model has a new header: judge its settings again."""
        context = self._judge_by(run)
        self.ledger.context = context
        self.warm_until = max(self.warm_until, context.warm_up)
        self.ledger.end_others(self.rules, self.last_step + 1)
        self.adapt()

    def _judge_by(self, run: RunRecord) -> Context:
        """Rules in use keep their memory."""
        context = self._criteria.context(run)
        self.run = context.run
        self._routers = Routers(context.run.routers)
        for rule in self.rules.values():
            rule.change(context)
        names = [
            name
            for name, rule in RULES.items()
            if name not in self._criteria.ignore
            and (rule.judges_one_step or not context.one_step)
            and (context.trains or not rule.trains_only)
        ]
        self.rules = {name: self.rules.get(name) or RULES[name](context) for name in names}
        return context

    def blind_spots(self) -> dict[str, str]:
        """Rules that cannot be evaluated on this log, and why."""
        found: dict[str, str] = {}
        for name, rule in self.rules.items() if self.last_step else ():
            if reason := rule.blind_to() or why_blind(rule.needs, self.seen, self.run):
                found[name] = reason
        return found

    @property
    def known(self) -> Known:
        """What ``causes`` uses besides the episodes."""
        return Known(
            run=self.run,
            checkpoints=self.checkpoints,
            resumes=self.resumes,
            changes=[
                (at, what) for at, what in self.changes.found if at > self.ledger.context.warm_up
            ],
            swing=max((rule.swing() for rule in self.rules.values()), default=0.0),
            doubted=[router for rule in self.rules.values() for router in rule.doubted()],
            newest=self.last_step,
        )

    def findings(self) -> list[Finding]:
        """Grouped by cause and rule: active before recovered, worst first."""
        return [f for cause in causes(self.episodes, self.known) for f in cause.findings]

    def _report(self, rule: AnyRule, view: StepView) -> None:
        for index, reading in rule.events(view):
            if not self._is_muted(rule, index):
                self.ledger.open(rule.name, index, view.step, reading)
        silent = not rule.judges_settings or self._is_muted(rule, WHOLE_RUN)
        if not silent and (held := rule.held_causes(view)) is not None:
            self.ledger.set_causes(rule.name, view.step, held)

    def _take(self, rule: AnyRule, readings: Readings | None) -> None:
        if readings is not None:
            for index in [index for index in rule.tracks if index not in readings]:
                self._judge(rule, index, _CLEAR)
            for index, reading in readings.items():
                if reading is not None and (reading.severity is not None or index in rule.tracks):
                    self._judge(rule, index, reading)
        if rule.mutes_all:
            muted = {i for i in rule.tracks if self._mutes(rule.name, i, Severity.ERROR)}
            self._unmeasured |= self._everyone if WHOLE_RUN in muted else muted

    def _judge(self, rule: AnyRule, index: int, reading: Reading) -> None:
        unsure = self.run.unconfirmed and self.run.counts == "shares"
        if unsure and reading.severity is Severity.CRITICAL:  # they may be something else
            reading = msgspec.structs.replace(reading, severity=Severity.WARN)
        track = rule.track(index)
        step = self.last_step
        track.observe(step, reading.severity, reading.clear)
        track.dated = reading.since
        episode = self.ledger.running(rule.name, index)
        if episode is not None:
            if index not in self._unmeasured:  # a reported episode continues, whatever mutes it
                self.ledger.update(episode, step, reading, track)
                mild = episode.severity is Severity.WARN and rule.name in _OF_STARTS
                if mild and self._has_settled(episode):
                    episode.make_information()
        elif not track.over:
            del rule.tracks[index]
        elif (severity := self._alarm(rule, track, reading)) is not None and (
            not self._is_muted(rule, index, severity)  # the worse of the two is reported
            or (reading.certain and not self._reported(rule, index))  # evidence may come and go
        ):
            self.ledger.open(rule.name, index, step, reading, severity, track)

    def _has_settled(self, episode: Episode) -> bool:
        """Whether it was trouble of a start; at resumes only the first one of its rule."""
        start = max((at for at in self.resumes if at <= episode.onset), default=1)
        ended = episode.recovered_at
        if ended is None or ended > start + _START_STEPS or not self.ledger.context.trains:
            return False
        resumed = range(min(self.resumes, default=start), start)
        for other in self.episodes:
            lasted = (other.recovered_at or self.last_step) >= episode.onset
            explains = other.warns and other.reason in EXPLAINING
            explains = explains and other.router_index in (WHOLE_RUN, episode.router_index)
            if (explains and lasted) or (other.rule == episode.rule and other.onset in resumed):
                return False
        return True

    def _reported(self, rule: AnyRule, index: int) -> bool:
        running = (self.ledger.running(name, index) for name in rule.muted_by)
        return index in self._unmeasured or any(running)

    def _alarm(self, rule: AnyRule, track: Track, reading: Reading) -> Severity | None:
        if reading.held:
            return None
        if reading.certain or reading.severity is None:
            return reading.severity  # an alarm is never raised on a healthy step
        if self.last_step <= self.warm_until and not (rule.in_warm_up or reading.settled):
            return None
        return track.severity


class Pending(msgspec.Struct, frozen=True):
    """Evidence of at least a warning in one router that is not yet enough for an alarm."""

    rule: str
    """Its name."""
    router_index: int
    router: RouterInfo | None
    """``None`` for the whole run."""
    since: int
    """First step of the evidence."""
    steps: int
    """From there to the last step."""
    over: bool = False
    """The run ended: no alert can follow."""


def warm_up_left(diagnosis: Diagnosis, step: int | None = None) -> int | None:
    """The step until which the run is not judged; ``None`` once it is judged.

    That is past the warm-up, or with a finding of at least a warning, and stays so in a resume.
    ``step``: as of this step of the past.
    """
    step = diagnosis.last_step if step is None else step
    since = diagnosis.judged_since
    found = (e.warns and e.onset <= step for e in diagnosis.episodes)
    if (since is not None and since <= step) or any(found):
        return None
    return diagnosis.warm_until if since is None else diagnosis.ledger.context.warm_up


class NoVerdict(NamedTuple):
    why: str | None = None
    """In words; ``None``: there is one."""
    until: int | None = None
    """The step until which it is not judged, if that is why."""


NO_ROUTERS = "dense model: no routers"


def no_verdict(
    diagnosis: Diagnosis, unmeasured: Callable[[], str], step: int | None = None
) -> NoVerdict:
    """A finding of at least a warning is a verdict, if it is of more than a setting.

    Args:
        unmeasured: why no router has a balance; empty if one has.
        step: as of this step of the past.
    """
    if not diagnosis.run.routers:
        return NoVerdict(NO_ROUTERS)
    serious = {e.rule for e in diagnosis.episodes if e.warns}
    only_settings = all(RULES[rule].judges_settings for rule in serious)
    if only_settings and (reason := unmeasured() or diagnosis.too_few):
        return NoVerdict(reason)
    until = warm_up_left(diagnosis, step)
    if until is None:
        return NoVerdict()
    return NoVerdict(f"not judged yet (warm-up until step {until:,})", until)


def pending(diagnosis: Diagnosis) -> list[Pending]:
    """Evidence that builds up in routers without an alert: causes before effects, oldest first."""
    alerted = {e.router_index for e in diagnosis.episodes if e.active and e.warns}
    found: dict[int, Pending] = {}
    if diagnosis.over and not diagnosis.ledger.context.trains:
        return []  # it is judged by its sums
    for rule in sorted(diagnosis.rules.values(), key=lambda rule: rule.cause_rank):
        for index, track in rule.tracks.items():
            if index in alerted or index in found or (track.pending or 0) < Severity.WARN:
                continue
            router = diagnosis.run.routers[index] if index != WHOLE_RUN else None
            since = track.began or diagnosis.last_step
            steps = max(1, diagnosis.last_step - since + 1)
            found[index] = Pending(rule.name, index, router, since, steps, diagnosis.over)
    return sorted(found.values(), key=lambda p: (RULES[p.rule].cause_rank, p.since))


def gathering(found: Sequence[Pending], balance: Sequence[float | None]) -> str:
    """``L3 at .00 for 36 steps, gathering evidence``, by the present balance of every router."""
    if not found:
        return ""
    first = found[0]
    same = sum(p.rule == first.rule for p in found) - 1
    more = f" and {plural(same, 'more layer')}" if same else ""
    what, span = RULES[first.rule].subject.lower(), "for"
    if first.router is not None:
        c = balance[first.router_index] if first.router_index < len(balance) else None
        if first.rule != "COLLAPSE" or c is None:
            what = f"{what} in {first.router.name}{more}"
        elif c >= CollapseLimits().leave:  # not the look of a collapse
            what, span = f"{first.router.name}{more} uneven", "in most of the last"
        else:
            what = f"{first.router.name} at {f'{c:.2f}'.removeprefix('0')}{more}"
    state = "too few for an alert" if first.over else "gathering evidence"
    return f"{what} {span} {plural(first.steps, 'step')}, {state}"


class BadState(ValueError):
    """Not a saved state of this run; the message says why."""


@dataclass(kw_only=True)
class _Saved(_State):
    version: int
    routers: tuple[RouterInfo, ...]
    episodes: list[Episode]
    past: Trail
    tracks: dict[str, dict[int, Track]]
    memories: dict[str, bytes]


def save(diagnosis: Diagnosis) -> bytes:
    """The state after the last step, for ``restore`` in another process; the header is not in
    it.
    """
    encode = msgspec.msgpack.encode
    return encode(
        _Saved(
            version=STATE_VERSION,
            routers=diagnosis.run.routers,
            episodes=diagnosis.ledger.episodes,
            past=diagnosis.ledger.past,
            tracks={name: rule.tracks for name, rule in diagnosis.rules.items()},
            memories={name: encode(rule.memory) for name, rule in diagnosis.rules.items()},
            **{own.name: getattr(diagnosis, own.name) for own in fields(_State)},
        )
    )


def restore(data: bytes, run: RunRecord, criteria: Criteria = ANYTHING) -> Diagnosis:
    """What ``save`` wrote, to continue with the next record of ``run``.

    Raises:
        BadState: damaged, of another version, or of a model with other routers.
    """
    decode = msgspec.msgpack.decode
    try:
        saved = decode(data, type=_Saved)
        if saved.version != STATE_VERSION:
            raise BadState(f"the state has version {saved.version}, this is {STATE_VERSION}")
        if saved.routers != run.routers:
            raise BadState(
                f"the state is of {len(saved.routers)} other routers than the {len(run.routers)} "
                "of this run: judge it from its first step instead"
            )
        diagnosis = Diagnosis(run, criteria)
        for name, rule in diagnosis.rules.items():
            if name in saved.memories:
                rule.memory = decode(saved.memories[name], type=type(rule.memory))
                rule.tracks = saved.tracks.get(name, {})
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadState(f"not a saved judgement: {error}") from None
    for own in fields(_State):
        setattr(diagnosis, own.name, getattr(saved, own.name))
    diagnosis.ledger.past = saved.past
    # Episodes of rules that are ignored now would never end.
    diagnosis.ledger.episodes = [e for e in saved.episodes if e.rule in diagnosis.rules]
    diagnosis.ledger.resume()
    diagnosis.adapt()
    return diagnosis
