"""Progress of a judgement: whether the run is judged yet, and which evidence is building up.

Decided once for every place that shows a verdict: ``check``, snapshots, the screens, the list of
runs and the trainer. A run without findings is healthy only once it is judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from microscope_tui.diagnosis.engine import Diagnosis
from microscope_tui.diagnosis.episodes import WHOLE_RUN, Severity
from microscope_tui.diagnosis.rules import RULES
from microscope_tui.diagnosis.rules.collapse import CollapseLimits
from microscope_tui.runlog import RouterInfo

_EVEN_ENOUGH = CollapseLimits().leave
"""A balance above this does not look like a collapse, even if most steps before did."""


@dataclass(frozen=True, slots=True)
class Pending:
    """Evidence of at least a warning in one router that is not yet enough for an alarm."""

    rule: str
    subject: str
    """Name in texts."""
    router_index: int
    router: RouterInfo | None
    """``None`` for the whole run."""
    since: int
    steps: int
    """Number of steps with evidence, first and last included."""


def warm_up_left(diagnosis: Diagnosis, step: int | None = None) -> int | None:
    """The step until which the run is not judged; ``None`` once it is judged.

    A run is judged once it is past the warm-up or has a finding of at least a warning. It stays
    judged when it resumes: the steps after a restart excuse alarms, not the verdict so far.

    Args:
        step: at this step of the past; by default at the last step.
    """
    step = diagnosis.last_step if step is None else step
    since = diagnosis.judged_since
    if since is not None and since <= step:
        return None
    if any(e.severity >= Severity.WARN and e.onset <= step for e in diagnosis.episodes):
        return None
    return diagnosis.warm_until if since is None else diagnosis.ledger.context.warm_up


def not_judged_yet(until: int) -> str:
    """The verdict on a run whose warm-up lasts until a step, in words."""
    return f"not judged yet (warm-up until step {until:,})"


def pending(diagnosis: Diagnosis) -> list[Pending]:
    """Evidence that is building up: one entry a router, causes before effects, oldest first.

    Routers that have an alert already are left out.
    """
    alerted = {
        e.router_index for e in diagnosis.episodes if e.active and e.severity >= Severity.WARN
    }
    found: dict[int, Pending] = {}
    for rule in sorted(diagnosis.rules, key=lambda rule: rule.cause_rank):
        for index, track in rule.tracks.items():
            if index in alerted or index in found or track.began is None:
                continue
            if (track.pending or Severity.INFO) < Severity.WARN:
                continue
            router = diagnosis.run.routers[index] if index != WHOLE_RUN else None
            steps = max(1, diagnosis.last_step - track.began + 1)
            found[index] = Pending(rule.name, rule.subject, index, router, track.began, steps)
    return sorted(found.values(), key=lambda p: (RULES[p.rule].cause_rank, p.since))


def gathering(found: Sequence[Pending], balance: Sequence[float | None]) -> str:
    """``L3 at .00 for 36 steps, gathering evidence``; empty where no evidence is building up.

    Args:
        found: what ``pending`` gave.
        balance: the collapse index of every router now.
    """
    if not found:
        return ""
    first = found[0]
    same = sum(p.rule == first.rule for p in found) - 1
    more = f" and {same} more layer{'s' if same > 1 else ''}" if same else ""
    c = balance[first.router_index] if 0 <= first.router_index < len(balance) else None
    if first.router is None:
        what = first.subject.lower()
    elif first.rule == "COLLAPSE" and c is not None and c >= _EVEN_ENOUGH:
        return (
            f"{first.router.name}{more} uneven in most of the last {first.steps:,} steps, "
            "gathering evidence"
        )
    elif first.rule == "COLLAPSE" and c is not None:
        what = f"{first.router.name} at {f'{c:.2f}'.removeprefix('0')}{more}"
    else:
        what = f"{first.subject.lower()} in {first.router.name}{more}"
    return f"{what} for {first.steps:,} step{'s' if first.steps > 1 else ''}, gathering evidence"
