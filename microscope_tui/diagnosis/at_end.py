"""A single moment: a dump of counts, or the sums of a run that is over, judged like one.

Nothing can persist in it: a reading beyond its limit is an alarm, if an expert could expect enough
assignments (λ). It is loaded where there is such a moment, not with the engine.
"""

import math
from collections.abc import Sequence

from msgspec.structs import replace

from microscope_tui import measures
from microscope_tui.diagnosis.context import WHEN, Context, Criteria, Limits, RuleLimits
from microscope_tui.diagnosis.episodes import Episode
from microscope_tui.diagnosis.ledger import Ledger
from microscope_tui.diagnosis.rules import RULES
from microscope_tui.diagnosis.rules.base import number
from microscope_tui.diagnosis.rules.collapse import CollapseLimits
from microscope_tui.diagnosis.rules.dead import DeadLimits
from microscope_tui.diagnosis.signals import StepView, Sums, expected
from microscope_tui.runlog import RunRecord

_JUDGED = ("COLLAPSE", "DEAD", "STARVED")
"""In this order: each is muted by those before it."""
_ENOUGH = 20
"""λ at which chance lowers c to 0.9."""
_PARTS = 3
"""How often a sum has to have the evidence of DEAD: routing is overdispersed."""


def judge_sums(run: RunRecord, criteria: Criteria, sums: Sums) -> tuple[list[Episode], str]:
    """The alarms if these sums were a single step, of a training only warnings of a collapse; and
    why the sums of an evaluation do not suffice.
    """
    trains = run.profile != "eval"
    context, view = _moment(run, criteria, sums)
    names = ("COLLAPSE",) if trains else _JUDGED
    needed = _PARTS * criteria.limits.of(DeadLimits).evidence
    found: list[Episode] = []
    for episode in _alarms(context, view, [name for name in names if name not in criteria.ignore]):
        few = episode.rule == "DEAD" and number(episode, "expected") < needed
        if few or episode.router_index not in sums.counts:
            continue
        if trains:
            episode.facts["ended"] = 1.0
        else:
            _call_summed(episode, context)
        episode.onset = sums.since[episode.router_index]
        found.append(episode)
    return found, "" if trains else too_few(view, context, when="")


def too_few(view: StepView, context: Context, when: str = f" {WHEN}") -> str:
    """Why the assignments of a moment do not suffice for a verdict; empty if they do."""
    effective = view.signal("effective_experts")
    values = effective.values if effective is not None else ()  # without a load, that is the reason
    found = {i: expected(view, i, context.run) for i, v in enumerate(values) if math.isfinite(v)}
    if not found:
        return ""
    limits = [context.limits.of(RULES[name].limits_type) for name in _JUDGED]
    needed = max(mine.values()["evidence"] for mine in limits)
    least = min(found, key=lambda index: found[index] or 0.0)
    known, name = found[least], context.run.routers[least].name
    if known is not None and known >= needed:
        return ""
    number = "an unknown number of" if known is None else f"{known:.3g}"
    return f"not judged: {name} has {number} assignments per expert{when}, needs {needed:g}"


def _moment(run: RunRecord, criteria: Criteria, sums: Sums) -> tuple[Context, StepView]:
    """As a step of an evaluation; the last summaries remain only if no router has a sum."""
    limits: list[RuleLimits]
    if run.profile == "eval":
        own = [criteria.limits.of(RULES[name].limits_type) for name in _JUDGED]
        limits = [replace(mine, evidence=_ENOUGH) for mine in own]
    else:  # nothing but a warning below the critical limit
        usual = criteria.limits.of(CollapseLimits)
        limits = [replace(usual, evidence=_ENOUGH, warn=usual.critical, critical=0.0)]
    moment = replace(criteria, profile="eval", limits=Limits(tuple(limits)))
    rows = [sums.counts.get(index, []) for index in range(len(run.routers))]
    router = sums.last.router
    if any(rows):
        router = replace(router, **measures.summarise(rows))
    view = StepView(replace(sums.last, router=router), run.routers, rows.__getitem__)
    return moment.context(replace(run, planned_steps=1)), view


def _alarms(context: Context, view: StepView, names: Sequence[str]) -> list[Episode]:
    """Where no earlier rule mutes them."""
    ledger = Ledger(context)
    ledger.see(view)
    for name in names:
        rule = RULES[name](context)
        for index, reading in (rule.read(view) or {}).items():
            if reading is None or reading.severity is None:
                continue
            if any(ledger.running(other, index) for other in rule.muted_by):
                continue
            if view.step or reading.certain:  # step 0 is still in the warm-up
                ledger.open(name, index, view.step, reading, track=rule.track(index))
    return ledger.episodes


def _call_summed(episode: Episode, context: Context) -> None:
    words = ", summed over all steps"
    if episode.rule == "STARVED" and context.baseline is None:  # a long tail is normal on one text
        words += " on this text"
        episode.make_information()
    episode.confidence += words
