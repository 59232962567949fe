"""Limits of the rules about the balancing, the log, the settings, the logits and the gradient.

``thresholds.py`` has the table of all.
"""

from dataclasses import dataclass
from typing import ClassVar

from microscope_tui.diagnosis.relations import (
    CRITICAL_FIRST,
    ENDS_INSIDE,
    NEVER,
    NEVER_ENDS,
    SILENT_CUT,
    Relations,
)


@dataclass(frozen=True, slots=True)
class OscillationLimits:
    """Bias updates that are too large make the load swing with a period of 2 to 32 steps.

    A slower swing cannot be distinguished from data in blocks of 30 to 40 steps.
    """

    window: int = 64
    every: int = 128
    most: int = 1024
    """Steps between two checks: doubled after each that found nothing."""
    amplitude: float = 0.2
    """Standard deviation of an expert's load (a sine of amplitude 0.3 has 0.21)."""
    experts_share: float = 0.3
    agreement: float = 0.35
    """Correlation of the swing with itself one period later, and anticorrelation after half."""
    usual_step: float = 0.95
    """Three or more groups that take turns never disagree as much (−1/3 at most). They count where
    the median step has less than this share of the effective experts of the sum …
    """
    overdispersion: float = 4.0
    """… minus counting noise of this variance: tokens of one sequence are correlated."""
    recurrence: float = 0.5
    """… and where the swing correlates so well with itself one period later and two, and so much
    better than in between. Irregular blocks of 5 to 15 steps reach 0.35 in 2 of 150 runs."""
    checks: int = 2

    relations: ClassVar[Relations] = (
        ("4 <= window", f"{NEVER}: the shortest swing takes two steps, twice"),
        ("window <= 1000", "too much is held: the counts of so many steps"),
        ("every <= most", SILENT_CUT),
        ("experts_share < 1", f"{NEVER}: it is a share of the experts"),
        ("agreement <= 1", f"{NEVER}: it is a correlation"),
        ("recurrence <= 1", f"{NEVER}: it is a correlation"),
        ("usual_step <= 1", "chance alone would be a swing: it is a share of the sum"),
    )


@dataclass(frozen=True, slots=True)
class BiasRunawayLimits:
    """The bias grows without bound and the load does not follow."""

    every: int = 25
    points: int = 21
    """500 steps."""
    straightness: float = 0.98
    """R² of the straight line through max − min of the bias."""
    rate: float = 0.5
    """Slope relative to the fastest that the update rate allows (two rates per step)."""
    collapse_index: float = 0.8
    rise: float = 0.03
    """c rises by less than this in the same time."""
    persistence: int = 4

    relations: ClassVar[Relations] = (
        ("3 <= points", "two points always form a line"),
        ("straightness < 1", f"{NEVER}: it is an R²"),
        ("rate <= 1", f"{NEVER}: 1 is as fast as a bias can grow"),
        ("collapse_index <= 1", "nothing is even enough: c is 1 at most"),
    )


@dataclass(frozen=True, slots=True)
class MeterLimits:
    """Measurement faults are exact, so three steps are enough."""

    needed: int = 3
    window: int = 10
    leave: int = 3
    first_steps: int = 8
    """Counts are checked on the first steps with counts, then on three after every ``every``."""
    every: int = 58
    luck: float = 2e-3
    """Probability, in one step, that independent choices give counts equal to ±1."""
    summary_error: float = 0.02
    """Tolerance between the summary of a line and its own counts."""

    relations: ClassVar[Relations] = (
        ("needed <= window", NEVER),
        ("luck <= 1", "all counts would be forced ones: it is a chance"),
        ("summary_error <= 1", "no summary would be wrong: it is a share of the value"),
    )


@dataclass(frozen=True, slots=True)
class LintLimits:
    """Settings that are known to damage a run, read from its header or visible in its steps."""

    floor: float = 0.05
    """An auxiliary loss within this share of its floor k indicates even load …"""
    uneven: float = 0.5
    """… while a layer uses less than this share of its experts …"""
    persistence: int = 25
    """… for this many steps: a loss that is summed layer by layer only passes through k."""
    aux_weight: float = 0.5
    """gpt-oss ships with 0.9, made for its own training; public recipes fine-tune at 1e-5."""
    sign_uneven: float = 0.85
    """c below which the change of the bias is compared with the load …"""
    sign_changes: int = 100
    """… for this many changes; a critically collapsed router needs a third of them …"""
    sign_agreement: float = 0.9
    """… and this much of the load agrees with the change: 1 if every busy expert gains bias, −1 if
    every one loses it, as it should.
    """

    relations: ClassVar[Relations] = (
        ("floor <= 1", "every auxiliary loss would be at its floor: it is a share of it"),
        ("sign_agreement <= 1", f"{NEVER}: it is 1 at most"),
        ("uneven <= 1", "every layer would be uneven: it is a share of the experts"),
    )


@dataclass(frozen=True, slots=True)
class LogitLimits:
    """Ratios to the median of the steps t − 220 … t − 20: robust to slow growth."""

    warn: float = 3.0
    critical: float = 10.0
    leave: float = 1.5
    least: float = 1.0
    """A z-loss below this never counts as an explosion."""
    max_logit: float = 64.0
    """In bf16, adjacent logits of this size are at least 0.25 apart."""
    persistence: int = 10

    relations: ClassVar[Relations] = (
        ("1 <= leave", f"{NEVER_ENDS}: 1 is the usual value"),
        ("leave <= warn", ENDS_INSIDE),
        ("warn <= critical", CRITICAL_FIRST),
        ("0 < max_logit", "every logit would be too large"),
    )


@dataclass(frozen=True, slots=True)
class GradientLimits:
    """Before a public collapse the gradient norm was × 56 fifteen steps earlier, then × 1e7."""

    ratio: float = 10.0
    raised: float = 2.0
    """Ratio that marks the onset: episodes are dated back to it."""
    once: float = 50.0
    """Ratio at which a single step is enough."""
    not_finite: int = 3
    """NaN or infinite norms within ``persistence`` steps: fp16 loss scaling skips single steps, and
    several at the start.
    """
    leave: float = 3.0
    followed: int = 50
    """LOGITS or COLLAPSE within this many steps afterwards makes it critical."""
    persistence: int = 10

    relations: ClassVar[Relations] = (
        ("not_finite <= persistence", "norms that are NaN could never fire it"),
        ("1 <= raised", "every episode would be dated back to the start"),
        ("1 <= leave", f"{NEVER_ENDS}: 1 is the usual value"),
        ("raised <= ratio", "an episode would be dated to after its alarm"),
        ("leave <= ratio", ENDS_INSIDE),
        ("ratio <= once", "a single step would fire before many do"),
    )
