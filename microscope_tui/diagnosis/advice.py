"""Verdict / Why / Next: the words, the same on screen, in ``check`` and in a trainer's console.

Verdict is what and since when, Why is the numbers, Next is what to do in this run: the advice
reads the run's header and names the user's own settings. Nobody is ever told to prune an expert
because it is cold.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from microscope_tui.diagnosis.balancing import go_back
from microscope_tui.diagnosis.catalogue import RULES
from microscope_tui.diagnosis.episodes import Finding
from microscope_tui.diagnosis.reading import EXACT, Severity
from microscope_tui.diagnosis.rules.base import number
from microscope_tui.runlog.records import RunRecord

_ROLL_BACK = ("COLLAPSE", "LOGITS")


@dataclass(frozen=True, slots=True)
class Advice:
    """The three lines of a finding, and its one line for narrow screens."""

    verdict: str
    why: str
    next: str
    short: str


def advise(finding: Finding, run: RunRecord, checkpoints: Sequence[int] = ()) -> Advice:
    """Say what ``finding`` means for ``run``.

    Args:
        finding: grouped episodes.
        run: the header; its balancing method decides the advice.
        checkpoints: steps with a checkpoint, to name one from before the onset.
    """
    worst, rule = finding.worst, RULES[finding.rule]
    where = f" in {_layers(finding.layers)}" if finding.layers else ""
    since = f"since step {finding.onset:,}"
    if not finding.active:
        ended = max(e.recovered_at or e.last for e in finding.episodes)
        since = f"from step {finding.onset:,} to {ended:,}, {_how_it_ended(finding)}"
    again = f" (occurrence {worst.recurrence + 1})" if worst.recurrence and where else ""
    why, remedy = rule.why(worst, run), rule.remedy(worst, run)
    if finding.active and _is_damage(finding.rule, run):
        remedy = f"{remedy} and {go_back(finding.onset, checkpoints)}"
    if not finding.active and worst.led_to:
        remedy = f"see the alert it led to, {RULES[worst.led_to].subject.lower()}"
    elif not finding.active and finding.severity > Severity.INFO:
        remedy = f"Nothing now; if it returns: {remedy}"
    known = "" if worst.confidence == EXACT else f" Known from {worst.confidence}."
    verdict = rule.subject if finding.rule != "LINT" else f"{rule.subject}: {worst.facts['cause']}"
    where_first = f"{_layers(finding.layers)} {verdict.lower()}" if where else verdict
    whose = f"In {worst.router.name}: " if len(finding.layers) > 1 and worst.router else ""
    return Advice(
        verdict=f"{verdict}{where} {since}{again}",
        why=f"{whose}{why}.{known}",
        next=remedy[0].upper() + remedy[1:] + ".",
        short=f"{where_first} {since.replace(' step', '')}: {_first(why)}",
    )


def _how_it_ended(finding: Finding) -> str:
    worst = finding.worst
    if worst.led_to:
        return f"then {RULES[worst.led_to].subject.lower()}"
    lasted = (worst.recovered_at or worst.last) - worst.onset
    if finding.rule == "COLLAPSE" and lasted <= (number(worst, "shock_steps") or 0):
        return f"recovered after {lasted:,} steps: a shock"
    return "recovered"


def _is_damage(rule: str, run: RunRecord) -> bool:
    """What only an earlier checkpoint undoes. On narrow data a dead expert is no damage."""
    return (rule in _ROLL_BACK and run.profile != "eval") or (
        rule == "DEAD" and run.profile == "pretrain"
    )


def _first(text: str) -> str:
    """The first statement of ``text``, for one narrow line."""
    return text.split("; ")[0].split(". ")[0].split(" (")[0].rstrip(".")


def _layers(names: Sequence[str]) -> str:
    if len(names) <= 3:
        return ", ".join(names)
    return f"{names[0]}, {names[1]} and {len(names) - 2} more layers"
