"""Verdict / Why / Next: the texts shown on screen, by ``check`` and in a trainer's console.

Verdict is what and since when, Why is the numbers, Next is the advice for this run: it reads the
run's header and names the user's own settings. The advice is never to prune an expert because it is
cold.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from microscope_tui.diagnosis.balancing import BACK, calm_down, go_back, right_sign
from microscope_tui.diagnosis.catalogue import RULES
from microscope_tui.diagnosis.circumstances import Circumstances, circumstances
from microscope_tui.diagnosis.episodes import Episode, Finding
from microscope_tui.diagnosis.moment import WHEN, is_moment
from microscope_tui.diagnosis.reading import EXACT, Severity
from microscope_tui.diagnosis.rules.base import Rule, number
from microscope_tui.runlog import RunRecord

_CHANGED = 0.5
"""The current value differs from the worst by more than this share of (worst − limit)."""


@dataclass(frozen=True, slots=True)
class Advice:
    """The three lines of a finding, and its one line for narrow screens."""

    verdict: str
    why: str
    next: str
    short: str


def advise(
    finding: Finding,
    run: RunRecord,
    checkpoints: Sequence[int] = (),
    beside: Iterable[Episode] = (),
) -> Advice:
    """Explain what ``finding`` means for ``run``.

    Args:
        finding: grouped episodes.
        run: the header; its balancing method decides the advice.
        checkpoints: steps with a checkpoint, to name one from before the onset.
        beside: all episodes of the run; one trouble may be part of another.
    """
    worst, rule = finding.worst, RULES[finding.rule]
    around = circumstances(finding, tuple(beside) or finding.episodes)
    where = f" in {_layers(finding.layers)}" if finding.layers else ""
    since = WHEN if is_moment(run) else f"since step {finding.onset:,}"
    if not finding.active:
        ended = max(e.recovered_at or e.last for e in finding.episodes)
        since = f"from step {finding.onset:,} to {ended:,}, {_how_it_ended(finding)}"
    again = f" (occurrence {worst.recurrence + 1})" if worst.recurrence and where else ""
    why, gist = _why(finding, run, around)
    if around.divergence is not None and around.divergence.first_sign.rule != finding.rule:
        sign = around.divergence.first_sign
        why = f"{why} The first sign was {sign.rule} at step {sign.onset:,}."
    remedy = _remedy(finding, run, around, checkpoints)
    known = "" if worst.confidence == EXACT else f" Based on {worst.confidence}."
    verdict = rule.subject
    if rule.judges_settings:
        verdict = f"{verdict}: {worst.facts['cause']}"
    where_first = f"{_layers(finding.layers)} {verdict.lower()}" if where else verdict
    return Advice(
        verdict=f"{verdict}{where} {since}{again}",
        why=f"{why}{known}",
        next=remedy[0].upper() + remedy[1:] + ".",
        short=f"{where_first} {since.replace(' step', '')}: {gist}",
    )


def _how_it_ended(finding: Finding) -> str:
    led = [e for e in finding.episodes if e.led_to]
    if led:
        then = f"then {RULES[led[0].led_to].subject.lower()}"
        if len(led) == len(finding.episodes):
            return then
        return f"{then} in {_layers(Finding(tuple(led)).layers)}, recovered elsewhere"
    longest = max((e.recovered_at or e.last) - e.onset for e in finding.episodes)
    if finding.rule == "COLLAPSE" and longest <= (number(finding.worst, "shock_steps") or 0):
        ended = max(e.recovered_at or e.last for e in finding.episodes)
        if ended - finding.onset > longest:
            return f"each recovered within {longest:,} steps: a shock"
        return f"recovered after {longest:,} steps: a shock"
    return "recovered"


def _why(finding: Finding, run: RunRecord, around: Circumstances) -> tuple[str, str]:
    """The numbers as sentences, and a short form; worst and current values if they differ."""
    worst, words = finding.worst, RULES[finding.rule].why
    whose = f"In {worst.router.name}" if len(finding.layers) > 1 and worst.router else ""
    text = words(worst, run)
    if finding.rule == "ERODING" and worst.active and around.collapsed:
        high = number(worst, "from") or 0
        text = f"c fell from {high:.2f} to {worst.limit:.2f} and below, see COLLAPSE"
    if not _has_changed(worst):
        return f"{f'{whose}: ' if whose else ''}{text}.", _first(text)
    assert worst.now is not None
    at_worst = f"{whose}, at worst" if whose else "At worst"
    if worst.now.inside:
        now = "within the limits"
    else:
        facts = {name: fact for name, fact in worst.now.facts.items() if name != "usual"}
        present = replace(worst, value=worst.now.value, limit=worst.now.limit, facts=facts)
        now = words(present, run).split(". ")[0].removeprefix("up to ")
    return (
        f"{at_worst} (step {worst.worst_at:,}): {text}. Now (step {worst.now.step:,}): {now}.",
        f"now {_first(now)}",
    )


def _has_changed(worst: Episode) -> bool:
    """Whether an open episode differs from its worst by more than noise."""
    now = worst.now
    if now is None or not worst.active or worst.severity is Severity.INFO:
        return False
    if worst.rule == "DEAD" and now.facts.get("experts") != worst.facts.get("experts"):
        return True
    reach = abs(worst.value - worst.limit)
    return now.inside or abs(now.value - worst.value) > _CHANGED * reach


def _remedy(
    finding: Finding, run: RunRecord, around: Circumstances, checkpoints: Sequence[int]
) -> str:
    rule, back = RULES[finding.rule], go_back(around.onset, checkpoints)
    goes_back = finding.active and run.profile in rule.rolls_back_in
    if around.divergence is not None:
        remedy = calm_down(run)
        if finding.active:
            remedy = f"{remedy}; {back}"
    elif around.wrong_sign and rule.wants_balance:
        remedy = right_sign()
        if goes_back:
            zero = ", with expert_bias set to zero" if back.startswith("go back") else ""
            remedy = f"{remedy}; then {back}{zero}"
    elif around.uneven and rule.name == "DROPS":
        remedy = (
            f"fix the uneven load first (see {around.uneven}): more capacity would only feed the "
            "experts that take everything"
        )
    elif around.swings and _would_feed_a_swing(rule) and run.balance.get("method") != "none":
        remedy = "stop the swing first (see OSCILLATION): stronger balancing would amplify it"
    else:
        remedy = rule.remedy(finding.worst, run)
        if BACK in remedy and finding.active:
            remedy = remedy.replace(BACK, back)
        elif goes_back:
            remedy = f"{remedy} and {back}"
    then = next((e.led_to for e in finding.episodes if e.led_to), "")
    if finding.rule == "ERODING" and around.collapsed:
        then = "COLLAPSE"
    if then:
        return f"see the alert it led to, {RULES[then].subject.lower()}"
    if not finding.active and finding.severity > Severity.INFO:
        remedy = f"Nothing now; if it returns: {remedy}"
    return remedy


def _would_feed_a_swing(rule: type[Rule]) -> bool:
    """While the load swings, stronger balancing does not help; damage still has to be undone."""
    return rule.wants_balance and not rule.rolls_back_in


def _first(text: str) -> str:
    """The first statement of ``text``, for a narrow line."""
    return text.split("; ")[0].split(". ")[0].split(" (")[0].rstrip(".")


def _layers(names: Sequence[str]) -> str:
    if len(names) <= 3:
        return ", ".join(names)
    return f"{names[0]}, {names[1]} and {len(names) - 2} more layers"
