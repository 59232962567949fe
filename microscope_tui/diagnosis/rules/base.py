"""Base of all rules: a name, the required persistence, an evaluation per step, and its texts.

A rule is one file here: its limits with their evidence, its memory, its evaluation and its words.
Everything other parts of the diagnosis need to know about a rule is one of its class variables.

State between steps is in its ``memory``, a msgspec struct, so that a judgement can be saved in the
middle of a run; what follows from the header is set up separately, since a resumed run may have
another one. Persistence, warm-up, muting and episodes belong to the engine.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, Literal, TypeVar, cast, get_args

import msgspec

from microscope_tui.diagnosis.context import ENTER_SHARE, LEAST_LINES, Context, L, RuleLimits
from microscope_tui.diagnosis.episodes import Episode, Reading, Readings, Severity
from microscope_tui.diagnosis.signals import StepView, expected
from microscope_tui.runlog import RunRecord

M = TypeVar("M", bound=msgspec.Struct)
Found = dict[int, Reading | None]
"""Readings that are being collected."""


class Nothing(msgspec.Struct):
    """The memory of a rule without state."""


class Rule(ABC, Generic[L, M]):
    """One rule on all routers of a run, ``Rule[its limits, its memory]``."""

    limits_type: ClassVar[type[RuleLimits]]
    memory_type: ClassVar[type[msgspec.Struct]]
    name: ClassVar[str]
    subject: ClassVar[str]
    """Name in texts."""
    means: ClassVar[str]
    """Meaning, in a sentence or two."""
    formula: ClassVar[str]
    """When it fires."""
    turn: ClassVar[int]
    """Rules evaluate a step in this order: one that mutes all first, then each after those in its
    ``muted_by``.
    """
    cause_rank: ClassVar[int]
    """Of equally severe findings the lowest rank comes first: a collapse also drops tokens."""
    low_is_bad: ClassVar[bool] = False
    """Low values are bad."""
    in_warm_up: ClassVar[bool] = False
    """Active during the warm-up."""
    trains_only: ClassVar[bool] = False
    """Not evaluated in an evaluation run."""
    judges_moment: ClassVar[bool] = False
    """Evaluated where there is a single step."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Numbers without which it is blind, by the names of ``StepView`` and of the header."""
    judges_settings: ClassVar[bool] = False
    """Needs no measurement: it reports the causes of ``standing``."""
    muted_by: ClassVar[tuple[str, ...]] = ()
    """Rules that mute this one while active in the same router."""
    mutes_all: ClassVar[bool] = False
    """While active, in a router or in the whole run, all other rules are muted."""
    announced_by: ClassVar[str] = ""
    """The rule whose episode becomes critical if this one fires within its limit ``followed``."""
    ends_in: ClassVar[tuple[str, ...]] = ()
    """Rules that it warns of: their critical episode in the same router ends its own, and is dated
    back to its onset.
    """
    family: ClassVar[Literal["", "starvation", "divergence"]] = ""
    """Starvation: one of them leads to the next in the same router. Divergence: the signs of an
    explosion, which a fall of the load follows."""
    wants_balance: ClassVar[bool] = False
    """It advises stronger balancing, which depends on the scale of the scores and does not help
    after a divergence or while the load swings.
    """
    rolls_back_in: ClassVar[tuple[str, ...]] = ()
    """Profiles in which the remedy includes an earlier checkpoint."""
    remedy_by_cause: ClassVar[bool] = False
    """The advice depends on the cause."""
    tells_usual: ClassVar[bool] = False
    """The text compares the effective experts with their usual value before the onset."""

    def __init_subclass__(cls) -> None:
        """Find the two types in ``Rule[limits, memory]``."""
        base: Any = cls.__dict__["__orig_bases__"][0]
        cls.limits_type, cls.memory_type = get_args(base)

    def __init__(self, context: Context) -> None:
        self.routers = context.run.routers
        self.window, self.needed, self.leave = 25, 23, 50
        self.spacing = 1
        """Steps between lines of the log."""
        self._persistence: tuple[int, int] | None = None
        self.memory: M
        Rule.change(self, context)  # that of a subclass changes the memory
        self.start()

    def set_up(self) -> None:
        """Set the persistence and everything else that follows from the context."""

    def start(self) -> None:
        """Reset the memory."""
        self.memory = cast(M, self.memory_type())

    def change(self, context: Context) -> None:
        """The same model continues under another header; the memory is kept."""
        self.context = context
        self.limits = cast(L, context.limits.of(self.limits_type))
        self.set_up()

    def persist(self, steps: int, leave: int | None = None) -> None:
        """Require 90 % of the lines of this many steps, and ``leave`` (twice as many) to end."""
        self._persistence = steps, 2 * steps if leave is None else leave
        self.window, self.leave = self.lines(steps), self.lines(self._persistence[1])
        self.needed = max(1, math.ceil(ENTER_SHARE * self.window))

    def lines(self, steps: int) -> int:
        """Number of lines that cover this many steps; at least five where possible."""
        if self.context.moment:
            return 1
        return min(steps, max(LEAST_LINES, math.ceil(steps / self.spacing)))

    def space(self, spacing: int) -> None:
        """Set the number of steps between lines of the log."""
        self.spacing = spacing
        if self._persistence is not None:
            self.persist(*self._persistence)

    def read(self, view: StepView) -> Readings | None:
        """Evaluate one step. ``None``: no evaluation (no value, window not full)."""
        return None

    def events(self, view: StepView) -> Sequence[tuple[int, Reading]]:
        """Readings to report at once as episodes of their own: (router or whole run, reading)."""
        return ()

    def standing(self, view: StepView) -> Mapping[str, Severity] | None:
        """All causes that hold for the whole run from this step on; ``None``: unchanged."""
        return None

    def restart(self, step: int) -> None:
        """The run resumes at ``step``: windows forget later steps."""
        self.start()

    def keep_looking(self, episodes: Sequence[Episode]) -> None:
        """Evaluate these open episodes until they end."""

    def inputs(self) -> Sequence[str]:
        """Numbers without which it is blind in this run."""
        return self.needs

    def blind_to(self) -> str | None:
        """Another reason why it cannot be evaluated on this log; ``None`` if there is none."""
        return None

    def suffices(self, view: StepView, index: int, evidence: float) -> bool:
        """Whether a single moment has enough assignments; persistence decides everywhere else."""
        if not self.context.moment:
            return True
        return (expected(view, index, self.context.run) or 0.0) >= evidence

    @staticmethod
    @abstractmethod
    def why(worst: Episode, run: RunRecord) -> str:
        """The numbers, as a sentence."""

    @staticmethod
    @abstractmethod
    def remedy(worst: Episode, run: RunRecord) -> str:
        """What to do in this run, without a full stop."""


def number(episode: Episode, name: str) -> float | None:
    """A numeric fact of an episode."""
    value = episode.facts.get(name)
    return float(value) if isinstance(value, int | float) else None


def experts_of(episode: Episode) -> str:
    """The experts of an episode: ``3, 17 and 4 more``."""
    return listed(episode.facts.get("experts", ()))


def listed(ids: object) -> str:
    """Expert numbers as text; empty where there are none."""
    if not isinstance(ids, tuple) or not ids:
        return ""
    shown = ", ".join(str(e) for e in ids[:6])
    return f"{shown} and {len(ids) - 6} more" if len(ids) > 6 else shown


def size_of(episode: Episode) -> int:
    """Number of experts of the episode's router."""
    return episode.router.num_experts if episode.router else 0
