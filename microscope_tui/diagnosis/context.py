"""What rules use besides the steps of a run."""

from dataclasses import dataclass

from microscope_tui.diagnosis.moment import is_moment
from microscope_tui.diagnosis.thresholds import DEFAULTS, Limits
from microscope_tui.diagnosis.timing import warm_up
from microscope_tui.runlog import RunRecord

PROFILES = ("pretrain", "finetune", "eval")


@dataclass(frozen=True, slots=True)
class RouterBaseline:
    """Earlier state of the routers: from the run's own first steps, or from a baseline run.

    One entry per router; ``None`` if unknown.
    """

    starved_share: tuple[float | None, ...]
    dead: tuple[frozenset[int] | None, ...]
    max_violation: tuple[float | None, ...]
    collapse_index: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Context:
    """The header, the criteria, and the reference."""

    run: RunRecord
    profile: str = "pretrain"
    limits: Limits = DEFAULTS
    baseline: RouterBaseline | None = None

    @property
    def warm_up(self) -> int:
        """Steps of warm-up; none in an evaluation."""
        return 0 if self.profile == "eval" else warm_up(self.run.planned_steps)

    @property
    def relative(self) -> bool:
        """Narrow data is expected: what matters is the change against a reference."""
        return self.profile != "pretrain"

    @property
    def trains(self) -> bool:
        """Whether the run trains: it has a gradient and a time axis."""
        return self.profile != "eval"

    @property
    def moment(self) -> bool:
        """Whether there is a single step: see ``moment.py``."""
        return is_moment(self.run, self.profile)

    @property
    def confidence(self) -> str:
        """The kind and reliability of the counts, in words."""
        source = self.run.counts
        words = {
            "exact": "exact counts",
            "top1": "top-1 counts, which look more uneven than all k choices",
            "shares": "shares, not counts",
            "local_rank": "the counts of one rank only",
            "none": "per-step summaries only",
        }
        return words.get(source, f"{source} counts")
