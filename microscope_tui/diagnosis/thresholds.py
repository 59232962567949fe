"""Every limit of the diagnosis in one table, each with its evidence.

c is the collapse index of ``measures.py``. λ is the number of assignments an expert can expect in
a window, ``tokens × k ÷ E``. The config file may change them (``[rules.NAME]``): ``relations`` says
what has to hold between those of a rule, and what would be the case otherwise.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from microscope_tui.diagnosis.control_limits import (
    BiasRunawayLimits,
    GradientLimits,
    LintLimits,
    LogitLimits,
    MeterLimits,
    OscillationLimits,
)
from microscope_tui.diagnosis.relations import (
    CRITICAL_FIRST,
    ENDS_INSIDE,
    NEVER,
    NEVER_ENDS,
    SILENT_CUT,
    Relations,
)


@dataclass(frozen=True, slots=True)
class CollapseLimits:
    """Published healthy layers stay at c ≥ 0.42; every publicly collapsed one sits at ≤ 0.04."""

    warn: float = 0.35
    critical: float = 0.15
    leave: float = 0.45
    """Recovery needs a margin, or an episode would flicker at its limit."""
    urgent: float = 0.05
    """c this low for ``urgent_steps`` alarms even in the warm-up."""
    urgent_steps: int = 50
    window: int = 30
    """Steps whose counts are summed: a bias that swings with period 2 looks collapsed in every
    step and is perfectly even in the sum. A shock of 24 steps at a learning-rate restart passes."""
    evidence: int = 50
    """λ of the summed window below which noise alone lowers c; the window widens up to 200."""
    max_window: int = 200
    even: float = 0.8
    """A layer that was at least this even …"""
    even_steps: int = 50
    """… for this many steps has settled: its fall counts even in the warm-up."""
    relative_fall: float = 0.3
    """A warning in fine-tuning needs c to lose this share of its reference (baseline, …"""
    reference_steps: int = 50
    """… or the median of the lines of this many first steps, at least five)."""

    relations: ClassVar[Relations] = (
        ("critical <= warn", CRITICAL_FIRST),
        ("urgent <= warn", "it would be urgent before it is a warning"),
        ("warn <= leave", ENDS_INSIDE),
        ("leave < 1", f"{NEVER_ENDS}: c is 1 at most"),
        ("window <= max_window", SILENT_CUT),
        ("max_window <= 1000", "too much is held: the counts of so many steps"),
        ("even <= 1", "no layer would ever have settled: c is 1 at most"),
        ("relative_fall < 1", f"{NEVER}: it is the share of c that is lost"),
    )


@dataclass(frozen=True, slots=True)
class ErodingLimits:
    """A public run without balancing goes c 0.60, 0.47, 0.36, 0.33, 0.25 at steps 100 … 500."""

    block: int = 5
    """Steps whose c is averaged to one point of the trend."""
    short: int = 12
    long: int = 40
    """Points of the two tested trends."""
    z: float = 3.29
    """Mann–Kendall: p < 0.001, two-sided."""
    ahead: int = 500
    """The slope must reach the limit of COLLAPSE within this many steps."""
    fall: float = 0.20
    """… and c must have lost this share of itself (one dead expert of eight costs 0.16), and
    ``noise`` times its own scatter."""
    noise: float = 4.0
    level: float = 0.7
    """… and be below this: experts that specialise from an equal start settle at 0.75 and above."""
    steady: float = 0.5
    """Largest share of the fall in any sixth of the window: a sudden step is not erosion."""
    persistence: int = 3

    relations: ClassVar[Relations] = (
        ("8 <= short", f"{NEVER}: a trend needs more points"),
        ("short < long", NEVER),
        ("long <= 400", "a look takes too long: it compares every point with every other"),
        ("level <= 1", "every fall would be deep enough: c is 1 at most"),
        ("fall < 1", f"{NEVER}: it is the share of c that is lost"),
    )


@dataclass(frozen=True, slots=True)
class DeadLimits:
    """Zero assignments where at least 56 were expected, in three disjoint windows.

    Data that comes in blocks of 30 to 40 steps lets a quarter of the experts rest for as long, and
    a shock may last 50 steps: twice as long for a warning, four times for a critical alarm.
    """

    evidence: float = 56.0
    """λ of one window. Tokens of one sequence are correlated (overdispersion about 4): the chance
    of zero tokens by chance is exp(−56 ÷ 4) < 1e-6.
    """
    min_window: int = 8
    max_window: int = 200
    windows: int = 3
    warn_steps: int = 100
    """Least difference of step numbers between the first window without tokens and the alarm …"""
    critical_steps: int = 200
    """… and for a critical one."""
    critical_share: float = 0.2
    """Share of dead experts that is critical."""

    relations: ClassVar[Relations] = (
        ("min_window <= max_window", SILENT_CUT),
        ("warn_steps <= critical_steps", CRITICAL_FIRST),
        ("critical_share <= 1", "nothing would be critical: it is a share of the experts"),
    )


@dataclass(frozen=True, slots=True)
class StarvedLimits:
    """Healthy models starve 0 % of their experts on web text, up to 19 % on one domain."""

    share: float = 0.10
    over_reference: float = 0.10
    """In fine-tuning or an evaluation only this much more than the reference counts …"""
    enter: float = 0.05
    """… of experts below this share of the mean; an episode ends above a tenth. Without it, one
    of 8 experts that hovers at a tenth was an episode five times in 1,500 steps."""
    window: int = 25
    evidence: int = 50
    persistence: int = 50

    relations: ClassVar[Relations] = (
        ("window <= 200", f"{SILENT_CUT}: no more steps are summed"),
        ("share <= 1", f"{NEVER}: it is a share of the experts"),
        ("over_reference <= 1", f"{NEVER}: it is a share of the experts"),
        ("enter <= 0.1", ENDS_INSIDE),
    )


@dataclass(frozen=True, slots=True)
class HotExpertLimits:
    """OLMoE routes 98 % of arXiv tokens to one expert of layer 0 at c = 0.76: a good model."""

    share: float = 0.8
    """Of the tokens, in the busiest expert."""
    leave: float = 0.7
    persistence: int = 25

    relations: ClassVar[Relations] = (
        ("leave <= share", ENDS_INSIDE),
        ("share <= 1", f"{NEVER}: it is a share of the tokens"),
    )


@dataclass(frozen=True, slots=True)
class OverloadLimits:
    """A MaxVio of 2 and more is normal for healthy models: only a change within the run counts.

    Fine-grained models specialise to a MaxVio of 2 to 11 (Moonlight runs at 4 to 9), so it is a
    warning only with a capacity or expert parallelism.
    """

    ratio: float = 3.0
    """MaxVio relative to the median of the reference window."""
    least: float = 2.5
    """Experts that specialise from an equal start reach a MaxVio of 2, as in healthy models."""
    reference_steps: int = 100
    rank_ratio: float = 1.5
    """Assignments of the busiest expert-parallel rank relative to the mean rank."""
    rank_every: int = 4
    rank_window: int = 8
    """Counts of every fourth step are summed over eight of them."""
    persistence: int = 25

    relations: ClassVar[Relations] = (
        ("1 < rank_ratio", f"{NEVER_ENDS}: the busiest rank has at least the mean"),
    )


@dataclass(frozen=True, slots=True)
class DropLimits:
    """A healthy run at capacity factor 1.25 drops 0.5 %; its diverging twin 28 to 56 %."""

    warn: float = 0.05
    critical: float = 0.20
    persistence: int = 25

    relations: ClassVar[Relations] = (
        ("0 < warn", f"{NEVER_ENDS}: it ends below half of this"),
        ("warn <= critical", CRITICAL_FIRST),
        ("critical <= 1", "nothing would be critical: it is a share of the assignments"),
    )


@dataclass(frozen=True, slots=True)
class MismatchLimits:
    """R3 (arXiv 2510.11370): trainer and rollout engine chose differently in about 10 % of the
    routers of a forward pass, and for 94 % of the tokens in some layer. Three of three runs
    collapsed, none with routing replay.
    """

    warn: float = 0.10
    ratio: float = 2.0
    """Or this many times the median of its first logged steps …"""
    least: float = 0.02
    """… and at least this share: rounding alone changes the closest choices."""
    reference_steps: int = 50
    persistence: int = 10

    relations: ClassVar[Relations] = (
        ("0 < least", f"{NEVER_ENDS}: it ends below three quarters of this"),
        ("1 < ratio", "the usual share would be too much"),
        ("least <= warn", "a change would count only after it is a warning anyway"),
        ("warn < 1", f"{NEVER}: it is a share of the choices"),
    )


@dataclass(frozen=True, slots=True)
class UniformLimits:
    """A router whose gradient was 7e-10 kept 97 % of the entropy; so does soft routing."""

    entropy_share: float = 0.97
    """Of ln E."""
    after_steps: int = 500
    after_share: float = 0.3
    gradient: float = 1e-6
    """Router gradient norm relative to the global one, below which nothing is learned …"""
    learning: float = 1e-4
    """… and above which it learns, however soft its choices are. Healthy: 1e-2."""
    lift: float = 1.2
    """Mass on the chosen k relative to k ÷ E, above which the router prefers experts: 1.1 at the
    start of a balanced sigmoid router with 8 experts, 1.3 after 600 steps, at 98.6 % of ln E.
    """
    persistence: int = 100

    relations: ClassVar[Relations] = (
        ("entropy_share <= 1", f"{NEVER}: it is a share of ln E"),
        ("after_share <= 1", f"{NEVER}: it is a share of the planned steps"),
        ("gradient <= learning", "a router that learns would learn nothing"),
    )


@dataclass(frozen=True, slots=True)
class ShockLimits:
    """A dip of c that is over within 50 steps: a learning-rate restart, a change of data."""

    drop: float = 0.25
    back: float = 0.10
    within: int = 50
    least_steps: int = 2

    relations: ClassVar[Relations] = (
        ("drop < 1", f"{NEVER}: c is 1 at most"),
        ("back <= drop", "a dip would be over as it begins"),
        ("least_steps <= within", NEVER),
    )


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of all rules, in the order of evaluation."""

    METER: MeterLimits = field(default_factory=MeterLimits)
    LINT: LintLimits = field(default_factory=LintLimits)
    GRADSPIKE: GradientLimits = field(default_factory=GradientLimits)
    LOGITS: LogitLimits = field(default_factory=LogitLimits)
    COLLAPSE: CollapseLimits = field(default_factory=CollapseLimits)
    SHOCK: ShockLimits = field(default_factory=ShockLimits)
    ERODING: ErodingLimits = field(default_factory=ErodingLimits)
    DEAD: DeadLimits = field(default_factory=DeadLimits)
    STARVED: StarvedLimits = field(default_factory=StarvedLimits)
    HOT_EXPERT: HotExpertLimits = field(default_factory=HotExpertLimits)
    OVERLOAD: OverloadLimits = field(default_factory=OverloadLimits)
    DROPS: DropLimits = field(default_factory=DropLimits)
    MISMATCH: MismatchLimits = field(default_factory=MismatchLimits)
    UNIFORM: UniformLimits = field(default_factory=UniformLimits)
    OSCILLATION: OscillationLimits = field(default_factory=OscillationLimits)
    BIAS_RUNAWAY: BiasRunawayLimits = field(default_factory=BiasRunawayLimits)


DEFAULTS = Limits()
