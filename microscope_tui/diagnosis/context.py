"""What rules use besides the steps of a run: its header, the criteria, limits and the reference."""

from functools import cached_property
from typing import ClassVar, TypeVar

import msgspec
from msgspec.structs import replace

from microscope_tui.runlog import RunRecord

PROFILES = ("pretrain", "finetune", "eval")
WHEN = "in this dump"
"""When a single moment was, in words."""

WARM_UP_STEPS = 100
WARM_UP_SHARE = 0.02
WARM_UP_MAX = 500
AFTER_RESTART_STEPS = 100
"""Steps after a resume that are treated as a warm-up: the bias may be lost."""
GROUP_STEPS = 100
"""The same trouble that starts within this many steps in several layers is one finding."""
COOLDOWN_STEPS = 100
"""Trouble that returns within this many steps had not recovered."""
ENTER_SHARE = 0.9
"""An alarm needs this share of the last evaluations over its limit."""
LEAST_LINES = 5
"""Least lines for persistence, which counts steps: a log with a line for every tenth step needs a
tenth of the lines. A shock of 24 steps covers five only if they are less than seven steps apart."""


class AtMost(msgspec.Struct, frozen=True):
    """Of two limits of a rule, or of one and a number, the first must not exceed the second."""

    low: str | float
    """The name of a limit, or a number."""
    high: str | float
    """The same."""
    sign: ClassVar[str] = "<="

    def __str__(self) -> str:
        return f"{self.low} {self.sign} {self.high}"

    def holds(self, low: float, high: float) -> bool:
        """Whether it does between these values of the two."""
        return low <= high


class Below(AtMost, frozen=True):
    """The first must be smaller than the second."""

    sign = "<"

    def holds(self, low: float, high: float) -> bool:
        return low < high


class RuleLimits(msgspec.Struct, frozen=True):
    """The limits of one rule, with their evidence in the docstring.

    c is the collapse index of ``measures.py``. λ is the number of assignments an expert can expect
    in a window, ``tokens × k ÷ E``.
    """

    relations: ClassVar[tuple[AtMost, ...]] = ()
    """Changed limits that break one are refused."""

    def values(self) -> dict[str, float]:
        """By name."""
        return msgspec.structs.asdict(self)


L = TypeVar("L", bound=RuleLimits)


class Limits(msgspec.Struct, frozen=True):
    """Of all rules; ``[rules.NAME]`` in the config file changes them."""

    changed: tuple[RuleLimits, ...] = ()
    """Only those of rules that the config file changes; the others have their defaults."""

    def of(self, kind: type[L]) -> L:
        """The limits of the rule with this type, changed or by default."""
        return next((mine for mine in self.changed if isinstance(mine, kind)), None) or kind()


DEFAULTS = Limits()


class RouterBaseline(msgspec.Struct, frozen=True):
    """Earlier state of each router; ``None``: unknown."""

    starved_share: tuple[float | None, ...]
    """Share of the experts that were starved."""
    dead: tuple[frozenset[int] | None, ...]
    """Experts without a single assignment."""
    max_violation: tuple[float | None, ...]
    """MaxVio: the maximal load minus one."""
    collapse_index: tuple[float | None, ...]
    """c, 0 collapsed … 1 balanced."""


class Context(msgspec.Struct, frozen=True, dict=True):
    """Of one run: how it is judged."""

    run: RunRecord
    """The header, with the profile by which it is judged."""
    limits: Limits = DEFAULTS
    baseline: RouterBaseline | None = None
    """The state of another model to compare with; only where it has as many routers."""

    @cached_property
    def warm_up(self) -> int:
        """Steps in which healthy routers are uneven; none in an evaluation."""
        if not self.trains:
            return 0
        planned = self.run.planned_steps or 0
        return max(WARM_UP_STEPS, int(min(WARM_UP_SHARE * planned, WARM_UP_MAX)))

    @cached_property
    def relative(self) -> bool:
        """Narrow data is expected: the change against a reference counts."""
        return self.run.profile != "pretrain"

    @cached_property
    def trains(self) -> bool:
        """Whether the run trains: it has a gradient and a time axis."""
        return self.run.profile != "eval"

    @cached_property
    def one_step(self) -> bool:
        """Whether the run is a single moment, see ``is_one_step``."""
        return is_one_step(self.run)

    @property
    def confidence(self) -> str:
        """Of the counts, in words."""
        words = {
            "top1": "top-1 counts, which look more uneven than all k choices",
            "shares": "shares, not counts",
            "local_rank": "the counts of one rank only",
            "none": "per-step summaries only",
        }
        return words.get(self.run.counts, f"{self.run.counts} counts")


class Criteria(msgspec.Struct, frozen=True):
    """Shared by everything that judges the run."""

    ignore: frozenset[str] = frozenset()
    """Names of ignored rules; they mute nothing either."""
    profile: str = ""
    """Empty: the profile of the header."""
    limits: Limits = DEFAULTS
    baseline: RouterBaseline | None = None
    """The state of another run's routers, to judge the change against."""

    def context(self, run: RunRecord) -> Context:
        """Without the baseline of another model."""
        profile = self.profile or (run.profile if run.profile in PROFILES else "pretrain")
        fits = self.baseline is not None and len(self.baseline.dead) == len(run.routers)
        judged = replace(run, profile=profile)
        return Context(judged, self.limits, self.baseline if fits else None)


ANYTHING = Criteria()


def is_one_step(run: RunRecord) -> bool:
    """Such as one dump of counts. Nothing can persist in it: its evidence is λ."""
    return run.profile == "eval" and run.planned_steps == 1
