"""What somebody asked for when a run is to be judged: rules left out, profile, limits, baseline."""

from dataclasses import dataclass

from microscope_tui.diagnosis.context import PROFILES, Context, RouterBaseline
from microscope_tui.diagnosis.thresholds import DEFAULTS, Limits
from microscope_tui.runlog.records import RunRecord


@dataclass(frozen=True, slots=True)
class Criteria:
    """By what a run is judged; the same for every part of the microscope that judges it."""

    ignore: frozenset[str] = frozenset()
    """Names of rules that are left out, and so mute nothing either."""
    profile: str = ""
    """Empty: what the header says."""
    limits: Limits = DEFAULTS
    baseline: RouterBaseline | None = None

    def context(self, run: RunRecord) -> Context:
        """What the rules may know of ``run``. A baseline of another model is left out."""
        profile = self.profile or (run.profile if run.profile in PROFILES else "pretrain")
        fits = self.baseline is not None and len(self.baseline.dead) == len(run.routers)
        return Context(run, profile, self.limits, self.baseline if fits else None)
