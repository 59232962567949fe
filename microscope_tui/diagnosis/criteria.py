"""Criteria of a judgement: ignored rules, profile, limits, baseline."""

from dataclasses import dataclass

from microscope_tui.diagnosis.context import PROFILES, Context, RouterBaseline
from microscope_tui.diagnosis.thresholds import DEFAULTS, Limits
from microscope_tui.runlog import RunRecord


@dataclass(frozen=True, slots=True)
class Criteria:
    """The criteria of a judgement, shared by everything that judges the run."""

    ignore: frozenset[str] = frozenset()
    """Names of ignored rules; they mute nothing either."""
    profile: str = ""
    """Empty: the profile of the header."""
    limits: Limits = DEFAULTS
    baseline: RouterBaseline | None = None

    def context(self, run: RunRecord) -> Context:
        """The context of ``run``. A baseline of another model is left out."""
        profile = self.profile or (run.profile if run.profile in PROFILES else "pretrain")
        fits = self.baseline is not None and len(self.baseline.dead) == len(run.routers)
        return Context(run, profile, self.limits, self.baseline if fits else None)
