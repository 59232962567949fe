"""What a rule is: a name, how long its evidence must last, a look at each step, and its words.

To add one: a file here with a class like the others, and its row of limits in ``thresholds.py``.
Whatever other parts of the diagnosis must know of a rule is one of its class variables. What it
keeps between steps is in its ``memory``, a msgspec struct, so that a judgement can be saved
in the middle of a run; what follows from the header is set up apart from it, since a resumed run
may have another one. Persistence, warm-up, muting and episodes are the engine's.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import msgspec

from microscope_tui.diagnosis.context import Context
from microscope_tui.diagnosis.episodes import Episode
from microscope_tui.diagnosis.reading import Reading, Readings, Severity
from microscope_tui.diagnosis.signals import StepView
from microscope_tui.diagnosis.timing import ENTER_SHARE, LEAST_LINES
from microscope_tui.runlog.records import RunRecord


class Nothing(msgspec.Struct):
    """The memory of a rule that needs none."""


class Rule(ABC):
    """One rule on all routers of a run."""

    name: ClassVar[str]
    subject: ClassVar[str]
    """What a person calls it."""
    means: ClassVar[str]
    """What it says about a run, in a sentence or two."""
    formula: ClassVar[str]
    """When it fires."""
    cause_rank: ClassVar[int]
    """Of equally severe findings the lowest rank comes first: a collapse also drops tokens."""
    low_is_bad: ClassVar[bool] = False
    """Its worst value is the lowest: that of an index with a lower limit."""
    in_warm_up: ClassVar[bool] = False
    """It speaks during the warm-up too."""
    trains_only: ClassVar[bool] = False
    """It says nothing about an evaluation."""
    judges_settings: ClassVar[bool] = False
    """It needs no measurement: what it finds are the causes that ``standing`` gives."""
    muted_by: ClassVar[tuple[str, ...]] = ()
    """Rules that come before and say it already, where they are at work in the same router."""
    mutes_all: ClassVar[bool] = False
    """Where it finds something, in a router or in the whole run, no other rule says anything."""
    announced_by: ClassVar[str] = ""
    """The rule whose episode of the whole run becomes critical if this one speaks within its limit
    ``followed``."""
    ends_in: ClassVar[tuple[str, ...]] = ()
    """Rules that it warns of: a critical episode of theirs in the same router ends its own, and an
    episode of theirs is dated back to the onset of its own."""
    family: ClassVar[Literal["", "starvation", "divergence"]] = ""
    """Starvation: one of them leads to the next in the same router. Divergence: the signs of an
    explosion, which a fall of the load follows."""
    wants_balance: ClassVar[bool] = False
    """It advises stronger balancing, which depends on the scale of the scores and is no help after
    a divergence or while the load swings."""
    rolls_back_in: ClassVar[tuple[str, ...]] = ()
    """Profiles in which only an earlier checkpoint undoes what it finds."""
    remedy_by_cause: ClassVar[bool] = False
    """Its advice depends on what exactly is wrong: there is no typical one."""
    tells_usual: ClassVar[bool] = False
    """Its text compares the effective experts with what was usual before the onset."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.routers = context.run.routers
        self.window, self.needed, self.leave = 25, 23, 50
        self.spacing = 1
        """Steps from one line of the log to the next."""
        self._persistence: tuple[int, int] | None = None
        self.memory: msgspec.Struct = Nothing()
        self.set_up()
        self.start()

    def set_up(self) -> None:
        """Take limits, persistence and whatever else follows from the context alone."""

    def start(self) -> None:
        """Set an empty memory."""

    def change(self, context: Context) -> None:
        """The same model goes on under another header; what is remembered stays."""
        self.context = context
        self.set_up()

    def persist(self, steps: int, leave: int | None = None) -> None:
        """Ask for 90 % of the lines of so many steps, and for ``leave`` (twice as many) to end."""
        self._persistence = steps, 2 * steps if leave is None else leave
        self.window, self.leave = self.lines(steps), self.lines(self._persistence[1])
        self.needed = max(1, math.ceil(ENTER_SHARE * self.window))

    def lines(self, steps: int) -> int:
        """How many lines of this log cover so many steps; at least five, if there are as many."""
        return min(steps, max(LEAST_LINES, math.ceil(steps / self.spacing)))

    def space(self, spacing: int) -> None:
        """Lines of the log are ``spacing`` steps apart from now on."""
        self.spacing = spacing
        if self._persistence is not None:
            self.persist(*self._persistence)

    def read(self, view: StepView) -> Readings | None:
        """Evaluate one step. ``None``: no evaluation (no value, window not full)."""
        return None

    def events(self, view: StepView) -> Sequence[tuple[int, Reading]]:
        """What is told at once, as an episode of its own: (router or whole run, reading)."""
        return ()

    def standing(self, view: StepView) -> Mapping[str, Severity] | None:
        """All causes that hold for the whole run from this step on; ``None``: as before."""
        return None

    def restart(self, step: int) -> None:
        """The run goes on from ``step`` again: windows forget."""
        self.start()

    def keep_looking(self, episodes: Sequence[Episode]) -> None:
        """These are open though nothing suspicious is remembered: evaluate until they are over."""

    def blind_to(self) -> str | None:
        """Why the rule cannot see anything in this log, where it cannot."""
        return None

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
