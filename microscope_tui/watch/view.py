"""``RunView``: everything needed to draw one frame of a run, immutable.

Screens, snapshots and the JSON report use the same, so they always agree. The time ribbon has the
worst severity of each of its columns, never the mean: ten critical steps in a hundred thousand must
be visible.
"""

import math
from collections.abc import Container, Iterable, Sequence
from functools import partial
from itertools import chain, pairwise

import msgspec
from msgspec.structs import replace

from microscope_tui import measures
from microscope_tui.diagnosis import (
    Advice,
    Episode,
    Finding,
    Pending,
    Severity,
    pending,
    report,
    value_at,
)
from microscope_tui.runlog import EventRecord, RouterInfo, RunRecord, StepEntry, StepRecord
from microscope_tui.watch.history import Column, Curves, Window
from microscope_tui.watch.past_steps import Pin, pin
from microscope_tui.watch.run_watch import RunWatch
from microscope_tui.watch.scan import MEAN_OF, balance, balance_now, left_out_lately
from microscope_tui.watch.state import Life, RunState
from microscope_tui.watch.verdict import why_no_verdict


class Mark(msgspec.Struct):
    """One column of the time ribbon: what happened in the steps that it covers."""

    severity: Severity | None = None
    """The worst active alert; ``None`` without one."""
    restart: bool = False
    """Whether the run was resumed at one of these steps."""
    evaluation: bool = False
    """Whether the log has an evaluation at one of these steps."""


def ribbon_of(
    watch: RunWatch, restarts: Iterable[int], window: tuple[int, int], count: int
) -> list[Mark]:
    """``count`` marks for the steps of ``window``, both ends included. The caller has the lock.

    ``restarts``: where the run was resumed.
    """
    worst = worst_of_columns(watch.episodes, window, count, watch.last_step)
    marks = list(map(Mark, worst))
    for step in restarts:
        if (at := column_of(step, window, count)) is not None:
            marks[at].restart = True
    for event in watch.shown.evaluations:
        if event.step is not None and (at := column_of(event.step, window, count)) is not None:
            marks[at].evaluation = True
    return marks


def column_of(step: int, window: tuple[int, int], count: int) -> int | None:
    """Which of ``count`` equal columns of ``window`` has ``step``; ``None`` outside of the
    window.
    """
    first, last = window
    if not first <= step <= last:
        return None
    return min(count - 1, math.floor((step - first) * count / (last - first + 1)))


def worst_of_columns(
    episodes: Iterable[Episode], window: tuple[int, int], count: int, newest: int
) -> list[Severity | None]:
    """The worst severity in each of ``count`` columns of ``window``; ``None`` without an alert.

    ``newest``: the last step of the run, to which an active episode extends.
    """
    worst: list[Severity | None] = [None] * count
    for episode in episodes:
        for since, until, severity in episode.stretches(newest):
            first, last = max(since, window[0]), min(until, window[1])
            if first > last:
                continue
            a, b = (column_of(step, window, count) or 0 for step in (first, last))
            after = count
            if last < window[1]:  # a step may have several columns
                after = max(b + 1, column_of(last + 1, window, count) or 0)
            for at in range(a, after):
                worst[at] = max(worst[at] or severity, severity)
    return worst


class LayerView(msgspec.Struct, frozen=True):
    """What a screen shows of one router at the shown step; ``None`` where it was not logged.

    The histories are curves over the window of the view. They are empty for a router whose curves
    were not requested.
    """

    index: int
    """Position among the routers, in forward order."""
    router: RouterInfo
    counts: Sequence[int] | None
    """Assignments of each expert, at ``RunView.counts_step``."""
    load: Sequence[float] | None
    """Multiples of the fair share."""
    bias: Sequence[float] | None
    """The balancing bias of each expert, of the same step as the counts."""
    balance: float | None
    """The collapse index c of all experts: 0 collapsed, 1 balanced."""
    judged_balance: float | None
    """The same without an expert that (nearly) every token chooses."""
    without: tuple[int, ...] | None
    """As in ``BalanceNow``."""
    entropy: float | None
    """Of the router's probabilities for one token, mean over the tokens; nats, at most ln E."""
    mean_entropy: float | None
    """Of the mean of these probabilities; nats, at least ``entropy``."""
    drop_rate: float | None
    """Share of the assignments that were dropped, 0 … 1."""
    max_load: float | None
    """Load of the busiest expert, as a multiple of the fair share."""
    severity: Severity | None
    """The worst active finding with this router, notes included."""
    quadrant: str | None
    """``collapsed``, ``specialised``, ``uniform`` or ``undecided``, from balance and confidence."""
    balance_history: Sequence[Column]
    """Of ``balance``, from the logged effective experts."""
    entropy_history: Sequence[Column]
    mean_entropy_history: Sequence[Column]
    max_load_history: Sequence[Column]
    drop_history: Sequence[Column]


class Timeline(msgspec.Struct, frozen=True):
    """What the window of a view covers, in columns that all of its curves share."""

    cursor: float | None
    """Position in the curves, 0 … 1; ``None`` while following."""
    axis: Sequence[int]
    """First step of each column of the curves."""
    times: Sequence[float | None]
    """When these steps were logged, Unix seconds; ``None`` without a time."""
    entropy_ends: tuple[float, float] | None
    """Lowest and highest entropy of all routers in the whole run; ``None`` where no curves are
    drawn.
    """
    loss_history: Sequence[Column]
    """Columns like those of the layers."""
    ribbon: Sequence[Mark]
    """The time ribbon; it has columns of its own, of equal numbers of steps."""
    restarts: Sequence[int]
    """Steps in the window from which the run was resumed."""
    evaluations: Sequence[tuple[int, float | None]]
    """Steps in the window, and their validation losses."""


class LogView(msgspec.Struct, frozen=True):
    """How far the log was read, and what of it could not be used."""

    progress: float
    """Share of the log that was read, 0 … 1; below 1 the history is a sample."""
    memory_limit: int | None
    """In bytes, if it makes the history coarser."""
    parts: str
    """See ``Progress.parts``."""
    defects: int
    """Lines of the log that could not be used."""
    first_defects: Sequence[str]
    """Some of them in words, with their line numbers."""
    error: str | None
    """Why the log cannot be read, in words; what was read before is still shown."""
    busy: str
    """``busy since 12:04:31`` while the source is at work; usually empty."""


class JudgingView(msgspec.Struct, frozen=True):
    """How far the run was judged, and why not further."""

    share: float
    """Share of the log that the diagnosis has seen, 0 … 1."""
    last_step: int
    """The last step that the diagnosis has seen; 0 before the first."""
    again: str
    """Why a second process did not judge the log to its end, in words; usually empty."""
    no_verdict: str | None
    """Why the shown step has no verdict, in words; ``None`` where it has one."""
    pending: Sequence[Pending]
    """What has not lasted long enough for an alert. Empty at an earlier step, which has
    findings.
    """


class RunView(msgspec.Struct, frozen=True):
    """One frame of a run: all its parts were read under the same lock, so they belong together.

    ``None`` is *not known* or *not logged*, unless a field defines it otherwise.
    """

    name: str
    """Of the log below the watched folder, or as a pipe's header gives it."""
    run: RunRecord | None
    """The newest header; ``None`` before one was read."""
    state: RunState
    """Of the run now, also where an earlier step is shown."""
    life: Life
    """The same in the words of the screen, which waits longer after long pauses."""
    age_s: float | None
    """Seconds since the log last changed."""
    record: StepRecord | None
    """The shown step, without its matrices; ``None`` before the first one."""
    counts_step: int | None
    """The shown step, or the last one before it that logged counts."""
    layers: Sequence[LayerView]
    """One per router, in forward order; empty before the first step."""
    findings: Sequence[tuple[Finding, Advice]]
    """Each with its advice, as they were at the shown step; active and recovered, notes
    included.
    """
    window: Window
    """The steps that the curves and the ribbon cover."""
    newest_step: int
    """The last step that was read, which may be later than the shown one; 0 before the first."""
    held_out: EventRecord | None
    """The last evaluation with counts."""
    timeline: Timeline
    log: LogView
    judging: JudgingView

    @property
    def step(self) -> int:
        """The shown step; 0 before the first."""
        return self.record.step if self.record else 0

    @property
    def worst(self) -> tuple[Finding, Advice] | None:
        """The alert that a headline should show; ``None`` where no action is needed."""
        return self.alerts[0] if self.alerts else None

    @property
    def alerts(self) -> Sequence[tuple[Finding, Advice]]:
        """Those that need action, worst first."""
        return [p for p in self.findings if p[0].active and p[0].severity > Severity.INFO]

    @property
    def notes(self) -> Sequence[tuple[Finding, Advice]]:
        """Active findings of severity INFO, which need no action."""
        return [p for p in self.findings if p[0].active and p[0].severity is Severity.INFO]


def view_of(
    watch: RunWatch,
    columns: int = 24,
    ribbon: int = 96,
    at: Pin | None = None,
    only: Container[int] | None = None,
    window: Window | None = None,
) -> RunView:
    """A frame of the run as it is now. Any thread may call it: it takes the lock of ``watch``.

    Args:
        columns: most columns of the curves; below 2 ``entropy_ends`` is left out.
        ribbon: columns of the time ribbon.
        at: the step to show; by default, or if the log was replaced since, the newest one.
        only: indices of the routers whose curves are needed; by default all.
        window: steps that curves and ribbon cover; by default the whole run.
    """
    with watch.lock:
        if at is not None and not _is_there(watch, at):
            at = None
        shown = at or pin(watch)
        record = counts_step = step = None
        if shown is not None:
            record = shown.latest.record
            counts_step = shown.counts_step
        if at is not None:
            step = at.step
        window = window or Window(1, max(1, watch.last_step))
        curves = Curves(watch.history, columns, window)
        findings = findings_of(watch, step)
        state, age = watch.state()
        return RunView(
            name=watch.file.name,
            run=watch.run,
            state=state,
            life=watch.life(),
            age_s=age,
            record=record,
            counts_step=counts_step,
            layers=_layers(watch, shown, findings, curves, only),
            findings=findings,
            window=window,
            newest_step=watch.last_step,
            held_out=watch.shown.held_out,
            timeline=_timeline(watch, curves, step, columns, ribbon),
            log=_log(watch),
            judging=_judging(watch, step),
        )


def _timeline(
    watch: RunWatch, curves: Curves, step: int | None, columns: int, ribbon: int
) -> Timeline:
    cursor = None
    if step is not None:
        cursor = curves.share_of(step)
    axis = curves.axis()
    restarts = curves.restarts()
    marks: Sequence[Mark] = ()
    if watch.last_step:
        marks = ribbon_of(watch, restarts, curves.window, ribbon)
    return Timeline(
        cursor=cursor,
        axis=axis,
        times=curves.times(axis),
        entropy_ends=_entropy_ends(watch, columns),
        loss_history=curves.of("loss"),
        ribbon=marks,
        restarts=restarts,
        evaluations=_evaluations(watch, curves.window),
    )


def _log(watch: RunWatch) -> LogView:
    progress = watch.progress
    if watch.complete:
        progress = 1.0  # also while a little more is being read
    memory = None
    if watch.bounded_by_memory:
        memory = watch.memory_bytes
    return LogView(
        progress=progress,
        memory_limit=memory,
        parts=watch.source.parts,
        defects=watch.defects.count,
        first_defects=tuple(watch.defects.first),
        error=watch.error,
        busy=watch.busy(),
    )


def _judging(watch: RunWatch, step: int | None) -> JudgingView:
    """``step``: an earlier one that is shown."""
    last_step = 0
    waiting: Sequence[Pending] = ()
    if watch.diagnosis is not None:
        last_step = watch.diagnosis.last_step
        if step is None:
            waiting = pending(watch.diagnosis)
    return JudgingView(
        share=watch.judged,
        last_step=last_step,
        again=watch.judged_again,
        no_verdict=why_no_verdict(watch, step).why,
        pending=waiting,
    )


def _entropy_ends(watch: RunWatch, columns: int) -> tuple[float, float] | None:
    if columns < 2:
        return None
    routers = range(len(watch.routers))
    of_layers = chain(*(watch.history.columns("entropy", at, 1) for at in routers))
    known = [column for column in of_layers if math.isfinite(column.low + column.high)]
    if not known:
        return None
    return min(column.low for column in known), max(column.high for column in known)


def _is_there(watch: RunWatch, at: Pin) -> bool:
    """The log may have been replaced."""
    return at.generation == watch.generation and at.latest.routers == len(watch.routers)


def _evaluations(watch: RunWatch, window: Window) -> tuple[tuple[int, float | None], ...]:
    known = ((event.step, event.values.get("loss")) for event in watch.shown.evaluations)
    return tuple((step, loss) for step, loss in known if step and window.has(step))


def findings_of(
    watch: RunWatch, until: int | None, layer: int | None = None
) -> list[tuple[Finding, Advice]]:
    """Up to a step; of one layer, with its own numbers. The caller has the lock."""
    diagnosis = watch.diagnosis
    if diagnosis is None:
        return []
    episodes = diagnosis.episodes
    later = set()  # those with numbers of a later step
    if until is not None:
        later = {(e.rule, e.router_index, e.onset) for e in episodes if e.worst_at > until}
        episodes = [e.as_of(until) for e in episodes if e.onset <= until]
    found = []
    for finding, advice in report(diagnosis, episodes, lambda e: layer in (None, e.router_index)):
        worst = finding.worst
        if (worst.rule, worst.router_index, worst.onset) in later and worst.worst_at != until:
            whose = f"(numbers from step {worst.worst_at:,})"
            advice = replace(advice, verdict=f"{advice.verdict} {whose}")
        found.append((finding, advice))
    return found


def _layers(
    watch: RunWatch,
    shown: Pin | None,
    findings: Sequence[tuple[Finding, Advice]],
    curves: Curves,
    only: Container[int] | None,
) -> list[LayerView]:
    if shown is None:
        return []
    latest = shown.latest
    summary = latest.record.router
    severities = _severities(findings)
    matrices = None
    if shown.with_counts is not None:
        matrices = shown.with_counts.matrices()
    layers = []
    for index, router in enumerate(watch.routers):
        counts = of_step = bias = load = None
        if matrices is not None:
            counts = matrices.tokens_per_expert[index]
            bias = matrices.expert_bias[index]
        if counts:
            load = measures.load(counts)
        if shown.counts_step == shown.step:  # the balance is of the shown step
            of_step = counts
        lately = partial(left_out_lately, watch.history, index, router, shown.step)
        now = balance_now(summary, index, router, of_step, lately)
        without = now.without
        if without is None and counts:  # of an earlier step
            without = measures.balance(counts, router.top_k, measures.SLACK).without or None

        def curve(name: str, index: int = index) -> Sequence[Column]:
            if only is None or index in only:
                return curves.of(name, index)
            return ()

        layers.append(
            LayerView(
                index=index,
                router=router,
                counts=counts,
                load=load,
                bias=bias,
                balance=now.balance,
                judged_balance=now.judged,
                without=without,
                entropy=value_at(summary.entropy, index),
                mean_entropy=value_at(summary.mean_entropy, index),
                drop_rate=value_at(summary.drop_rate, index),
                max_load=value_at(summary.max_load, index),
                severity=severities.get(index),
                quadrant=_quadrant(latest, index, router, now.judged),
                balance_history=balance(curve("effective_experts"), router),
                entropy_history=curve("entropy"),
                mean_entropy_history=curve("mean_entropy"),
                max_load_history=curve("max_load"),
                drop_history=curve("drop_rate"),
            )
        )
    return layers


def _severities(findings: Sequence[tuple[Finding, Advice]]) -> dict[int, Severity]:
    worst: dict[int, Severity] = {}
    for finding, _ in findings:
        for episode in finding.episodes:
            if episode.active:
                before = worst.get(episode.router_index, episode.severity)
                worst[episode.router_index] = max(before, episode.severity)
    return worst


def _quadrant(
    latest: StepEntry, index: int, router: RouterInfo, judged: float | None
) -> str | None:
    summary = latest.record.router
    confidence = None
    mass = value_at(summary.selected_mass, index)
    if mass is not None and router.top_k:
        confidence = mass * router.num_experts / router.top_k
    information = measures.relative_mutual_information(
        value_at(summary.entropy, index), value_at(summary.mean_entropy, index)
    )
    return measures.quadrant(judged, information, confidence)


_ENOUGH = 512  # differences of two steps needed to estimate the noise
_OCTAVES = 1 / math.log(2)


class Recent(msgspec.Struct, frozen=True):
    """The last steps of a run, if any: a single step of a balanced router is half noise."""

    entries: Sequence[StepEntry] = ()

    @property
    def steps(self) -> int:
        return len(self.entries)

    def of(self, layer: LayerView) -> tuple[LayerView, float]:
        """``layer`` with its mean load over these steps, and the noise of that in octaves.

        The layer as it is and 0.0, if it has no counts or there are fewer than two steps.
        """
        if self.steps < 2 or layer.load is None:
            return layer, 0.0
        every = (entry.matrices().tokens_per_expert[layer.index] for entry in self.entries)
        rows = [row for row in every if row and len(row) == len(layer.load)]
        total = [sum(column) for column in zip(*rows, strict=True)]
        load = measures.load(total)
        if load is None:
            return layer, 0.0
        return replace(layer, load=load), _noise(rows)


def recent_of(watch: RunWatch) -> Recent:
    """The newest steps with counts, for a mean; not those of a pinned step."""
    with watch.lock:
        entries = tuple(watch.shown.recent)
    return Recent([e for e in entries if entries[-1].record.step - MEAN_OF < e.record.step])


def _noise(rows: Sequence[Sequence[int]]) -> float:
    """Noise from the differences of neighbours: a drifting mean is not noise."""
    pairs = list(pairwise(rows))[-max(1, _ENOUGH // len(rows[0])) :]
    squares = [
        min(1.0, ((a - b) / mean) ** 2)  # one that dies is not noise
        for before, after in pairs
        for a, b in zip(before, after, strict=True)
        if (mean := (a + b) / 2)
    ]
    return math.sqrt(sum(squares) / max(1, len(squares)) / 2 / len(rows)) * _OCTAVES
