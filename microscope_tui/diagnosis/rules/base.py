"""Base of all rules: name, persistence, evaluation of a step, and texts; advice on balancing.

State between steps is in its ``memory``, a msgspec struct, so that a judgement can be saved in the
middle of a run. What follows from the header is set up apart: a resumed run may have another one.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from operator import itemgetter
from typing import ClassVar, Generic, Literal, TypeGuard, TypeVar, cast, get_args

import msgspec

from microscope_tui.diagnosis.context import ENTER_SHARE, LEAST_LINES, Context, L, RuleLimits
from microscope_tui.diagnosis.episodes import Episode, Present, Reading, Readings, Severity
from microscope_tui.diagnosis.signals import StepView, expected
from microscope_tui.runlog import RunRecord

M = TypeVar("M", bound=msgspec.Struct)

KNOBS = {"bias": "bias_update_rate", "aux": "aux_weight"}
"""Balancing methods with a strength in the header."""
BACK = "go back to an earlier checkpoint"
"""The generic advice of a rule; ``go_back`` names the step for one finding."""
_BRIDGED_IN = 100
"""As many updates bridge the margin of the scores: one expert falls while another rises, so they
swap places in half as many."""
LEAST_SWING = 0.3
"""That OSCILLATION reports: the amplitude, of the fair share …"""
MOST_SWING = 0.2
"""… and above this one no setting is raised: there is room for less than half as much again."""
_SEVERITY = itemgetter(1)
_BESIDE = "add a sequence-wise auxiliary loss for the uneven layers"
_USUAL_RATE = 0.001
"""Of published models; where the scale of the scores is unknown, no more is advised at once."""
_OF_LOGITS = 0.05
"""In a run on softmax logits 0.001 left four of six layers collapsed; 0.05 kept all at c > 0.7."""


class Nothing(msgspec.Struct):
    """Of a rule without state."""


class Track(msgspec.Struct):
    """The evidence of one rule on one router: hysteresis. A healthy router has none.

    An alarm starts when enough (usually 90 %) of the last evaluations were over the limit, is dated
    back to the first of them, and ends after some in a row well inside it.
    """

    window: int
    """How many of the last evaluations count."""
    needed: int
    """Evaluations over the limit, of the last ``window``, that raise an alarm."""
    leave: int
    """Clear evaluations in a row that end an episode."""
    recent: list[tuple[int, int]] = []
    """Step and severity (0: inside) of the last evaluations."""
    over: int = 0
    """Evaluations over the limit in ``recent``."""
    clear: int = 0
    """Clear evaluations in a row."""
    clear_since: int | None = None
    """Step of the first one of these."""
    since: int | None = None
    """First step of the evidence; ``None`` while most evaluations are inside."""
    dated: int | None = None
    """The onset given by the rule at the last evaluation."""

    def observe(self, step: int, severity: Severity | None, clear: bool) -> None:
        """Add the evaluation of a step; ``clear``: inside the limit by the margin that recovery
        needs.
        """
        recent, over, window = self.recent, self.over + (severity is not None), self.window
        while len(recent) >= window:
            over -= recent.pop(0)[1] > 0
        recent.append((step, int(severity or 0)))
        self.over = over
        if not clear:
            self.clear = 0
            self.clear_since = None
        else:
            self.clear_since = self.clear_since if self.clear else step
            self.clear += 1
        if 2 * over * window < len(recent) * self.needed or not over:
            self.since = None
        elif self.since is None and severity is not None:
            self.since = self._first_evidence()

    @property
    def began(self) -> int | None:
        """``since``, or the onset given by the rule if earlier."""
        return self.since and min(self.since, self.dated or self.since)

    @property
    def pending(self) -> Severity | None:
        """The worst of the evidence that is building up."""
        if self.since is None:
            return None
        return Severity(max(map(_SEVERITY, self.recent)))

    @property
    def severity(self) -> Severity | None:
        """The highest severity that enough of the last evaluations reach."""
        if self.over < self.needed:
            return None
        return Severity(sorted(map(_SEVERITY, self.recent))[-self.needed])

    @property
    def cleared_at(self) -> int | None:
        """First of ``leave`` clear evaluations in a row."""
        return self.clear_since if self.clear >= self.leave else None

    def forget_from(self, step: int) -> None:
        """The run resumes at ``step``."""
        self.recent = [(at, severity) for at, severity in self.recent if at < step]
        self.over = sum(severity > 0 for _, severity in self.recent)
        self.clear = 0
        self.clear_since = None
        if not self.over or (self.since is not None and self.since >= step):
            self.since = None

    def recall(self, since: int, last: int, severity: Severity) -> None:
        """Restore evidence from ``since`` to ``last`` that the window has lost."""
        if not self.over:
            self.recent = [(last, int(severity))]
            self.over = 1
            self.since = since

    def _first_evidence(self) -> int:
        """The earliest step from which enough evaluations are over the limit."""
        over, first = 0, self.recent[-1][0]
        for total, (step, severity) in enumerate(reversed(self.recent), start=1):
            over += severity > 0
            if severity and over * self.window >= self.needed * total:
                first = step
        return first


class Rule(ABC, Generic[L, M]):
    """One rule on all routers of a run, ``Rule[its limits, its memory]``.

    The engine calls ``read`` (or ``events``, ``held_causes``) once per step, ``restart`` at a
    resume and ``change`` for a new header. What is kept between steps is in ``memory`` and
    ``tracks``.
    """

    limits_type: ClassVar[type[RuleLimits]]
    memory_type: ClassVar[type[msgspec.Struct]]
    name: ClassVar[str]
    """As in the config file and in findings."""
    subject: ClassVar[str]
    """Name in texts."""
    means: ClassVar[str]
    """What an alert of it means, for the help."""
    formula: ClassVar[str]
    """When it fires."""
    turn: ClassVar[int]
    """Rules evaluate a step in this order: each after those in its ``muted_by``."""
    cause_rank: ClassVar[int]
    """Of equally severe findings the lowest rank comes first: a collapse also drops tokens."""
    low_is_bad: ClassVar[bool] = False
    """Whether lower values are worse; else higher ones."""
    in_warm_up: ClassVar[bool] = False
    """Active during the warm-up."""
    trains_only: ClassVar[bool] = False
    """Not evaluated in an evaluation run."""
    judges_one_step: ClassVar[bool] = False
    """Evaluated where there is a single step."""
    needs: tuple[str, ...] = ()
    """Numbers without which it is blind, by the names of ``StepView`` and of the header."""
    judges_settings: ClassVar[bool] = False
    """Needs no measurement: it reports the causes of ``held_causes``."""
    muted_by: ClassVar[tuple[str, ...]] = ()
    """Rules that mute this one while active in the same router."""
    mutes_all: ClassVar[bool] = False
    """While active, in a router or in the whole run, all other rules are muted."""
    announced_by: ClassVar[str] = ""
    """The rule whose episode becomes critical if this one fires within its limit ``followed``."""
    ends_in: ClassVar[tuple[str, ...]] = ()
    """Rules that it warns of: their critical episode ends its own, and is dated to its onset."""
    family: ClassVar[Literal["", "starvation", "divergence"]] = ""
    """Starvation: one of them leads to the next in the same router. Divergence: the signs of an
    explosion, which a fall of the load follows."""
    wants_balance: ClassVar[bool] = False
    """It advises stronger balancing, which does not help after a divergence or in a swing."""
    rolls_back_in: ClassVar[tuple[str, ...]] = ()
    """Profiles in which the remedy includes an earlier checkpoint."""
    remedy_by_cause: ClassVar[bool] = False
    """The advice depends on the cause."""
    decides_in: ClassVar[float] = math.inf
    """Steps for which its evidence mutes other rules."""
    ends_after: ClassVar[int | None] = None
    """Clear steps that end an episode; by default twice the limit ``persistence``."""
    ends_below: ClassVar[float] = 0.0
    """Share of the limit below which an evaluation counts towards the end; 0: another measure."""
    tells_usual: ClassVar[bool] = False
    """The text compares the effective experts with their usual value before the onset."""

    def __init_subclass__(cls) -> None:
        cls.limits_type, cls.memory_type = get_args(cls.__dict__["__orig_bases__"][0])

    def __init__(self, context: Context) -> None:
        self.routers = context.run.routers
        self.window, self.needed, self.leave = 25, 23, 50
        self.spacing = 1
        """Steps between lines of the log."""
        self.tracks: dict[int, Track] = {}
        self.memory: M
        Rule.change(self, context)  # that of a subclass changes the memory
        self.start()

    def set_up(self) -> None:
        """Set what follows from the context, besides a limit ``persistence``."""

    def start(self) -> None:
        """Begin with an empty memory; overridden where that depends on the limits or the
        routers.
        """
        self.memory = cast(M, self.memory_type())

    def change(self, context: Context) -> None:
        """The same model continues under another header; the memory is kept."""
        self.context = context
        self.limits = cast(L, context.limits.of(self.limits_type))
        self._persist()
        self.set_up()

    def _persist(self) -> None:
        """90 % of the lines of the limit ``persistence``, and ``ends_after`` to end."""
        if steps := getattr(self.limits, "persistence", 0):
            self.window = self.lines(steps)
            self.leave = self.lines(2 * steps if self.ends_after is None else self.ends_after)
            self.needed = max(1, math.ceil(ENTER_SHARE * self.window))

    def lines(self, steps: int) -> int:
        """Lines that cover this many steps; at least five where possible."""
        if self.context.one_step:
            return 1
        return min(steps, max(LEAST_LINES, math.ceil(steps / self.spacing)))

    def space(self, spacing: int) -> None:
        """A sparse log needs fewer lines."""
        if self.spacing == spacing:
            return
        self.spacing = spacing
        self._persist()
        for track in self.tracks.values():
            track.window, track.needed, track.leave = self.window, self.needed, self.leave

    def track(self, index: int) -> Track:
        """The evidence in a router, or in the whole run at ``WHOLE_RUN``; a new one if there is
        none.
        """
        if index not in self.tracks:
            self.tracks[index] = Track(self.window, self.needed, self.leave)
        return self.tracks[index]

    def read(self, view: StepView) -> Readings | None:
        """Evaluate one step. ``None``: no evaluation (no value, window not full)."""
        return None

    def events(self, view: StepView) -> Sequence[tuple[int, Reading]]:
        """Readings to report at once as episodes of their own: (router or whole run, reading)."""
        return ()

    def held_causes(self, view: StepView) -> Sequence[tuple[int, Reading]] | None:
        """All causes that hold from this step on, as in ``events``; ``None``: unchanged."""
        return None

    def restart(self, step: int) -> None:
        """The run resumes at ``step``: windows forget later steps."""
        self.start()

    def blind_to(self) -> str | None:
        """Another reason why it cannot be evaluated on this log."""
        return None

    def swing(self) -> float:
        """The largest known one of a router's load, as a share of the fair load."""
        return 0.0

    def doubted(self) -> Sequence[int]:
        """Routers whose bias update may have the wrong sign."""
        return ()

    def suffices(self, view: StepView, index: int, evidence: float) -> bool:
        """Whether a single moment does; persistence decides everywhere else."""
        if not self.context.one_step:
            return True
        return (expected(view, index, self.context.run) or 0.0) >= evidence

    @staticmethod
    @abstractmethod
    def words(worst: Episode, run: RunRecord) -> tuple[str, str]:
        """Why: the numbers, as a sentence. Next: what to do in this run. Without a full stop."""


def number(episode: Episode, name: str) -> float:
    """A fact; 0 where there is none."""
    value = episode.facts.get(name)
    return float(value) if isinstance(value, int | float) else 0.0


def experts_of(episode: Episode) -> str:
    """``3, 17 and 4 more``"""
    return listed(ids_of(episode, "experts"))


def ranks_of(experts: Sequence[int], size: int, run: RunRecord) -> tuple[int, ...]:
    """Those of which these experts are all; none where they fill no whole ones."""
    ranks = run.expert_parallel_size
    each = size // ranks if ranks > 1 and size % ranks == 0 else 0
    found = sorted({expert // each for expert in experts}) if each > 1 else []
    return tuple(found) if len(experts) == each * len(found) < size else ()


def listed(names: Sequence[object]) -> str:
    """The first six, and how many more there are."""
    shown = ", ".join(map(str, names[:6]))
    return f"{shown} and {len(names) - 6} more" if len(names) > 6 else shown


def ids_of(episode: Episode | Present, name: str) -> tuple[int, ...]:
    """A fact that is a list, such as the ids of experts; empty where there is none."""
    ids = episode.facts.get(name)
    return ids if isinstance(ids, tuple) else ()


def place(episode: Episode, run: RunRecord) -> str:
    """`` in L2, L5``: the routers of a cause, if not all have it."""
    names = [run.routers[index].name for index in ids_of(episode, "routers")]
    return f" in {listed(names)}" if 0 < len(names) < len(run.routers) else ""


def size_of(episode: Episode) -> int:
    """Experts of its router; 0 for the whole run."""
    return episode.router.num_experts if episode.router else 0


def stronger_balance(run: RunRecord, episode: Episode) -> str:
    """Which setting to raise, from what to what.

    ``episode`` has the scale of the scores, and how far the load of a router swings: a faster
    update swings as much further. Three times the rate is safe for the sign update alone, ten
    times where the load did not follow the bias.
    """
    value, swing = run.balance.get("bias_update_rate"), number(episode, "swing")
    room = LEAST_SWING / swing if swing > 0 else math.inf
    knob = KNOBS.get(str(run.balance.get("method")))
    update = run.balance.get("update")
    if knob is not None and swing > MOST_SWING:
        instead = _BESIDE if knob == "bias_update_rate" else "stop the swing first"
        swings = f"the load of a router swings by {swing:.0%} of its fair share"
        return f"a higher {setting(run, knob)} would amplify a swing ({swings}): {instead}"
    if knob == "bias_update_rate" and update in ("proportional", "quantile"):
        return f"a {update} update overshoots at a higher {setting(run, knob)}: {_BESIDE}"
    if knob == "bias_update_rate" and _is_positive(value):
        faster = _faster(run, value, room, episode)
        if update != "sign":
            faster = f"if your update is the sign of the violation, {faster}"
        return faster
    return turned(run, min(3.0, room), "raise", "strengthen the load balancing")


def setting(run: RunRecord, name: str) -> str:
    """The name of a setting in the framework of the run."""
    names = run.balance.get("names")
    return str(names.get(name, name)) if isinstance(names, dict) else name


def calm_down(run: RunRecord, *, early: bool = False) -> str:
    """What to change so that logits and gradients stay small; ``early``: in the warm-up."""
    weight = run.balance.get("z_loss_weight")
    z_loss = "add a z-loss of 1e-3"
    if isinstance(weight, int | float) and 0 < weight < 1:
        z_loss = f"raise {setting(run, 'z_loss_weight')} from {weight:g} to {10 * weight:g}"
    longer = "warm up for longer, " if early else ""
    return (
        f"lower the learning rate, {longer}clip the gradient norm, {z_loss} and compute the router "
        "in fp32"
    )


def go_back(onset: int, checkpoints: Sequence[int], newest: int = 0) -> str:
    """Advice to go back to before the onset; which checkpoints still exist is not in the log."""
    saved = max((step for step in checkpoints if step < onset), default=None)
    if onset <= 1:
        return "start again"
    if not saved and checkpoints:
        return f"start again (no checkpoint before step {onset:,})"
    price = f": {newest - saved:,} steps are lost" if saved and newest > saved else ""
    known = f" (a checkpoint was written at {saved:,}{price})" if saved else ""
    return f"go back to before step {onset:,}{known}"


def _faster(run: RunRecord, rate: float, room: float, episode: Episode) -> str:
    """A bias on logits, which have no bound, needs more than one on scores from 0 to 1."""
    knob, margin = setting(run, "bias_update_rate"), episode.facts.get("margin")
    most = _one_digit(rate * room)
    plain = 3.0 * rate
    if number(episode, "stalled") and margin is None:
        plain = max(plain, min(10.0 * rate, _USUAL_RATE))
    plain = min(plain, rate * room)
    wanted = _OF_LOGITS
    if _is_positive(margin):
        wanted = _one_digit(margin / _BRIDGED_IN)
    change = f"raise {knob} from {rate:g} to"
    wanted = min(wanted, most)
    unbounded = run.score_function == "softmax"
    if wanted <= plain or not (unbounded or _is_positive(margin)):
        return f"{change} {plain:.3g}"
    if _is_positive(margin):
        return (
            f"{change} {wanted:g} (the chosen scores lead by {margin:.2g}; at {rate:g} a bias "
            f"needs {margin / rate:,.0f} steps to make up for that)"
        )
    return (
        f"{change} {wanted:g} if the bias is added to logits, to {plain:.3g} if to probabilities "
        "(a bias on softmax logits needs far more than one on sigmoid scores)"
    )


def turned(run: RunRecord, factor: float, verb: str, otherwise: str) -> str:
    """Which setting to raise or lower (``verb``); ``otherwise`` without one."""
    method = run.balance.get("method")
    knob = KNOBS.get(str(method))
    if knob is None:
        if method == "none" and factor > 1:
            return "enable a balancing method"
        return f"{otherwise} and check that it acts on every layer" if factor > 1 else otherwise
    value = run.balance.get(knob)
    name = setting(run, knob)
    if value == 0 and factor > 1:
        return f"set {name} above zero"
    if not _is_positive(value):
        return f"{verb} {name}"
    if factor > 1 and factor * value > 1:
        return f"keep {name} at {value:g}, which is strong: check that it acts on every layer"
    return f"{verb} {name} from {value:g} to {factor * value:.2g}"


def _is_positive(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and 0 < value < math.inf


def _one_digit(value: float) -> float:
    """A rate is a rough number: one significant digit."""
    return float(f"{value:.0e}")
