"""Verdict / Why / Next: the texts shown on screen, by ``check`` and in a trainer's console.

Verdict is what and since when, Why is the numbers, Next is the advice for this run: it reads the
run's header and names the user's own settings. The advice is never to prune an expert because it is
cold. Findings with one cause (see ``causes``) share its remedy and the step to go back to.
"""

from collections.abc import Callable, Sequence

import msgspec
from msgspec.structs import replace

from microscope_tui.diagnosis.causes import Cause, Known, causes, overlaps
from microscope_tui.diagnosis.context import WHEN, is_one_step
from microscope_tui.diagnosis.engine import Diagnosis
from microscope_tui.diagnosis.episodes import EXACT, Episode, Finding, Severity
from microscope_tui.diagnosis.ledger import group
from microscope_tui.diagnosis.rules import RULES
from microscope_tui.diagnosis.rules.base import BACK, go_back, number
from microscope_tui.runlog import RunRecord

_CHANGED = 0.5
"""The current value differs from the worst by more than this share of (worst − limit)."""


class Advice(msgspec.Struct, frozen=True):
    """The three lines of a finding, and its one line for narrow screens."""

    verdict: str
    why: str
    next: str
    short: str
    cause: str = ""
    """What explains the finding; empty where that is unknown."""
    explains: tuple[str, ...] = ()
    """On the first finding of a cause: all that it explains, in words."""

    @property
    def explanation(self) -> str:
        """The cause, and on its first finding what it explains."""
        explains = f"explains {', '.join(self.explains)}" if self.explains else ""
        return "; ".join(filter(None, (self.cause, explains)))

    def cause_first(self, text: str) -> str:
        """``text`` after the cause, where that is known."""
        cause = self.cause
        if "_" not in cause.split(" ")[0]:  # a setting keeps its name
            cause = cause[:1].upper() + cause[1:]
        return f"{cause}: {text}" if cause else text


def report(
    diagnosis: Diagnosis,
    episodes: Sequence[Episode] | None = None,
    shown: Callable[[Episode], bool] = lambda episode: True,
) -> list[tuple[Finding, Advice]]:
    """The findings of a run with their texts: the causes worst first, and each with its findings.

    Args:
        diagnosis: of the run; it knows the checkpoints, restarts and changes of the data.
        episodes: as they were at a step of the past; by default all.
        shown: episodes to report; the others only help to find the cause.
    """
    known, found = diagnosis.known, list[tuple[Finding, Advice]]()
    for cause in causes(diagnosis.episodes if episodes is None else episodes, known):
        wanted = group(e for f in cause.findings for e in f.episodes if shown(e))
        cause = replace(cause, findings=tuple(wanted))
        found += [(finding, advise(finding, cause, known)) for finding in wanted]
    return found


def advise(finding: Finding, cause: Cause, known: Known) -> Advice:
    """Explain what ``finding``, one of those of ``cause``, means for the run."""
    worst, rule, run = finding.worst, RULES[finding.rule], known.run
    where = f" in {_layers(finding.layers)}" if finding.layers else ""
    since = WHEN if is_one_step(run) else f"since step {finding.onset:,}"
    if not finding.active:
        ended = max(e.recovered_at or e.last for e in finding.episodes)
        since = f"from step {finding.onset:,} to {ended:,}, {_how_it_ended(finding)}"
    again = f" (occurrence {worst.recurrence + 1})" if worst.recurrence and where else ""
    collapsed = finding.rule == "ERODING" and any(
        f.rule == "COLLAPSE" and f.active and overlaps(finding.worst, f.episodes)
        for f in cause.findings
    )
    why, gist = _why(finding, run, collapsed)
    sign = cause.sign
    if sign is not None and sign.rule != finding.rule and finding is cause.findings[0]:
        why = f"{why} The first sign was {sign.rule} at step {sign.onset:,}."
    if worst.facts.get("ended"):
        since += "; the run ended while it was collapsing"
    remedy = _remedy(finding, cause, known, collapsed)
    based = "" if worst.confidence == EXACT else f" Based on {worst.confidence}."
    verdict = rule.subject
    if rule.judges_settings:
        verdict = f"{verdict}: {worst.facts['cause']}"
    where_first = f"{_layers(finding.layers)} {verdict.lower()}" if where else verdict
    return Advice(
        verdict=f"{verdict}{where} {since}{again}",
        why=f"{why}{based}",
        next=remedy[0].upper() + remedy[1:] + ".",
        short=f"{where_first} {since.replace(' step', '')}: {gist}",
        cause=cause.title,
        explains=_explained(cause) if finding is cause.findings[0] else (),
    )


def _explained(cause: Cause) -> tuple[str, ...]:
    """``COLLAPSE in L1 to L4``: the findings that the cause explains."""
    found = []
    for finding in cause.explained if cause.title else ():
        names, places = finding.layers, sorted({e.router_index for e in finding.episodes})
        where = _layers(names)
        if len(names) > 2 and places == list(range(places[0], places[-1] + 1)):
            where = f"{names[0]} to {names[-1]}"
        found.append(f"{finding.rule} in {where}" if where else finding.rule)
    return tuple(dict.fromkeys(found))


def _how_it_ended(finding: Finding) -> str:
    led = [e for e in finding.episodes if e.led_to]
    if led:
        then = f"then {RULES[led[0].led_to].subject.lower()}"
        if len(led) == len(finding.episodes):
            return then
        return f"{then} in {_layers(Finding(tuple(led)).layers)}, recovered elsewhere"
    longest = max((e.recovered_at or e.last) - e.onset for e in finding.episodes)
    if finding.rule == "COLLAPSE" and longest <= number(finding.worst, "shock_steps"):
        ended = max(e.recovered_at or e.last for e in finding.episodes)
        when = "each recovered within" if ended - finding.onset > longest else "recovered after"
        return f"{when} {longest:,} steps: a shock"
    return "recovered"


def _why(finding: Finding, run: RunRecord, collapsed: bool) -> tuple[str, str]:
    """The numbers as sentences, and a short form; worst and current values if they differ."""
    worst, words = finding.worst, RULES[finding.rule].words
    whose = f"In {worst.router.name}" if len(finding.layers) > 1 and worst.router else ""
    text, _ = words(worst, run)
    if worst.active and collapsed:
        text = (
            f"c fell from {number(worst, 'from'):.2f} to {worst.limit:.2f} and below, see COLLAPSE"
        )
    if not _has_changed(worst):
        return f"{f'{whose}: ' if whose else ''}{text}.", _first(text)
    assert worst.now is not None
    at_worst, now = f"{whose}, at worst" if whose else "At worst", "inside the limits"
    if worst.now.facts or not worst.now.inside:
        before = ("usual",) if RULES[finding.rule].tells_usual else ()
        facts = {name: fact for name, fact in worst.now.facts.items() if name not in before}
        present = replace(worst, value=worst.now.value, limit=worst.now.limit, facts=facts)
        now = words(present, run)[0].split(". ")[0].removeprefix("up to ")
    if worst.now.inside:
        left = worst.now.left
        now += f"; {left} more such evaluation{'s end' if left != 1 else ' ends'} it"
    elif 0 < worst.now.value <= worst.now.limit and RULES[finding.rule].ends_below:
        now += f"; it ends below {RULES[finding.rule].ends_below:.0%} of the limit"
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


def _remedy(finding: Finding, cause: Cause, known: Known, collapsed: bool) -> str:
    then = next((e.led_to for e in finding.episodes if e.led_to), "")
    if then or collapsed:
        return f"see the alert it led to, {RULES[then or 'COLLAPSE'].subject.lower()}"
    remedy, active = cause.remedy, [f for f in cause.findings if f.active]
    back = go_back(cause.onset, known.checkpoints, known.newest)
    if finding.active and BACK in remedy:
        remedy = remedy.replace(BACK, back)
    elif finding.active and cause.goes_back and _undone(active, cause, known.run.profile):
        several = any(sign in remedy for sign in (", ", "; ", " and "))
        remedy = f"{remedy}; then {back}" if several else f"{remedy} and {back}"
        remedy += cause.reset if back.startswith("go back") else ""
    if not finding.active and finding.severity > Severity.INFO:
        remedy = f"Nothing now; if it returns: {remedy}"
    return remedy


def _undone(active: Sequence[Finding], cause: Cause, profile: str) -> bool:
    """Whether one of the findings leaves damage that only an earlier checkpoint undoes."""
    return cause.sign is not None or any(profile in RULES[f.rule].rolls_back_in for f in active)


def _first(text: str) -> str:
    """The first statement of ``text``, for a narrow line."""
    return text.split("; ")[0].split(". ")[0].split(" (")[0].rstrip(".")


def _layers(names: Sequence[str]) -> str:
    if len(names) <= 3:
        return ", ".join(names)
    return f"{names[0]}, {names[1]} and {len(names) - 2} more layers"
