"""A single moment: one importance matrix, one dump of counts. It has no time axis.

Nothing can persist or change in it, so one line is enough for an alarm. Its evidence is λ, the
number of assignments an expert can expect: below the limits of the rules nothing is judged.
"""

import math

from microscope_tui.diagnosis.signals import StepView
from microscope_tui.diagnosis.thresholds import Limits
from microscope_tui.runlog import RunRecord

WHEN = "in this dump"


def is_moment(run: RunRecord, profile: str = "") -> bool:
    """Whether ``run`` is an evaluation of one step; ``profile`` if it is not that of the header."""
    return (profile or run.profile) == "eval" and run.planned_steps == 1


def expected(view: StepView, index: int, run: RunRecord) -> float | None:
    """Assignments per expert (λ) of a router in this step; ``None`` if unknown.

    Counts that are scaled shares do not show it.
    """
    router = run.routers[index]
    counts = view.full_counts(index) if run.counts != "shares" else None
    if counts is not None:
        return sum(counts) / len(counts)
    tokens = view.tokens_of(index)
    if tokens is None or not router.top_k or not router.num_experts:
        return None
    return tokens * router.top_k / router.num_experts


def too_few(view: StepView, run: RunRecord, limits: Limits) -> str:
    """Why the assignments of a moment do not suffice for a verdict; empty if they do."""
    effective = view.signal("effective_experts")
    if effective is None:
        return ""  # no load at all: that is the reason then
    found = {
        index: expected(view, index, run)
        for index, value in enumerate(effective.values)
        if math.isfinite(value)
    }
    needed = max(limits.COLLAPSE.evidence, limits.DEAD.evidence, limits.STARVED.evidence)
    least = min(found, key=lambda index: found[index] or 0.0, default=None)
    if least is None:
        return ""
    known = found[least]
    if known is None:
        return f"not judged: assignments per expert unknown {WHEN}, {needed:g} are needed"
    if known >= needed:
        return ""
    name = run.routers[least].name
    return f"not judged: {name} has {known:.3g} assignments per expert {WHEN}, needs {needed:g}"
