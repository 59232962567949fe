"""Verdict / Why / Next: the texts shown on screen, by ``check`` and in a trainer's console.

Next names the settings of this run. It is never to prune an expert because it is cold. Findings
with one cause (see ``causes``) share its remedy and the step to go back to.
"""

from collections.abc import Callable, Sequence

import msgspec
from msgspec.structs import replace

from microscope_tui.diagnosis.causes import Cause, Known, causes, overlaps
from microscope_tui.diagnosis.context import WHEN, is_one_step
from microscope_tui.diagnosis.engine import Diagnosis
from microscope_tui.diagnosis.episodes import EXACT, Episode, Finding, Present, Severity
from microscope_tui.diagnosis.ledger import group
from microscope_tui.diagnosis.rules import RULES
from microscope_tui.diagnosis.rules.base import BACK, go_back, number
from microscope_tui.runlog import RunRecord

_CHANGED = 0.5
"""The current value differs from the worst by more than this share of (worst − limit)."""


class Advice(msgspec.Struct, frozen=True):
    """Three lines, and one for narrow screens."""

    verdict: str
    """What is wrong, where, and since which step."""
    why: str
    """The numbers, as a sentence."""
    next: str
    """What to do in this run, with the names of its settings."""
    short: str
    """All in one line, for narrow screens."""
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
        """``text`` behind the cause, which begins with a capital unless it is the name of a
        setting.
        """
        cause = self.cause
        if "_" not in cause.split(" ")[0]:  # a setting keeps its name
            cause = cause[:1].upper() + cause[1:]
        return f"{cause}: {text}" if cause else text


def report(
    diagnosis: Diagnosis,
    episodes: Sequence[Episode] | None = None,
    shown: Callable[[Episode], bool] = lambda episode: True,
) -> list[tuple[Finding, Advice]]:
    """The findings of a run by cause, the worst first, with their texts.

    Args:
        diagnosis: of the run.
        episodes: as they were at a step of the past; by default all.
        shown: episodes to report; the others only help to find the cause.
    """
    known = diagnosis.known
    found = list[tuple[Finding, Advice]]()
    for cause in causes(diagnosis.episodes if episodes is None else episodes, known):
        wanted = group(e for f in cause.findings for e in f.episodes if shown(e))
        cause = replace(cause, findings=tuple(wanted))
        found += [(finding, advise(finding, cause, known)) for finding in wanted]
    return found


def advise(finding: Finding, cause: Cause, known: Known) -> Advice:
    """The texts of ``finding``, one of those of ``cause``."""
    worst = finding.worst
    rule = RULES[finding.rule]
    first = finding is cause.findings[0]
    where, since = _layers(finding.layers), _since(finding, known.run)
    collapsed = finding.rule == "ERODING" and any(
        f.rule == "COLLAPSE" and f.active and overlaps(worst, f.episodes) for f in cause.findings
    )
    why, gist = _why(finding, known.run, collapsed)
    sign = cause.sign
    if first and sign is not None and sign.rule != finding.rule:
        why += f" The first sign was {sign.rule} at step {sign.onset:,}."
    if worst.confidence != EXACT:
        why += f" Based on {worst.confidence}."
    remedy = _remedy(finding, cause, known, collapsed)
    subject = rule.subject
    if rule.judges_settings:
        subject += f": {worst.facts['cause']}"
    verdict, short = subject, subject
    if where:
        verdict, short = f"{subject} in {where}", f"{where} {subject.lower()}"
    verdict += f" {since}"
    if where and worst.recurrence:
        verdict += f" (occurrence {worst.recurrence + 1})"
    return Advice(
        verdict=verdict,
        why=why,
        next=remedy[0].upper() + remedy[1:] + ".",
        short=f"{short} {since.replace(' step', '')}: {gist}",
        cause=cause.title,
        explains=_explained(cause) if first else (),
    )


def _since(finding: Finding, run: RunRecord) -> str:
    since = WHEN if is_one_step(run) else f"since step {finding.onset:,}"
    if not finding.active:
        since = f"from step {finding.onset:,} to {_end(finding):,}, {_how_it_ended(finding)}"
    if finding.worst.facts.get("ended"):
        since += "; the run ended while it was collapsing"
    return since


def _end(finding: Finding) -> int:
    return max(e.recovered_at or e.last for e in finding.episodes)


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
        several = _end(finding) - finding.onset > longest
        when = "each recovered within" if several else "recovered after"
        return f"{when} {longest:,} steps: a shock"
    return "recovered"


def _why(finding: Finding, run: RunRecord, collapsed: bool) -> tuple[str, str]:
    """Sentences and a short form; worst and current values if they differ."""
    worst = finding.worst
    whose, at_worst = "", "At worst"
    if len(finding.layers) > 1 and worst.router:
        whose = f"In {worst.router.name}: "
        at_worst = f"In {worst.router.name}, at worst"
    text, _ = RULES[finding.rule].words(worst, run)
    if worst.active and collapsed:
        before, below = number(worst, "from"), f"{worst.limit:.2f} and below"
        low = below if before > worst.limit else f"{worst.value:.2f}"
        text = f"c fell from {before:.2f} to {low}, see COLLAPSE"
    if not _has_changed(worst) or worst.now is None:
        return f"{whose}{text}.", _first(text)
    now = _present(worst, worst.now, run)
    return (
        f"{at_worst} (step {worst.worst_at:,}): {text}. Now (step {worst.now.step:,}): {now}.",
        f"now {_first(now)}",
    )


def _present(worst: Episode, now: Present, run: RunRecord) -> str:
    rule = RULES[worst.rule]
    words = "inside the limits"
    if now.facts or not now.inside:
        facts = {k: fact for k, fact in now.facts.items() if k != "usual" or not rule.tells_usual}
        present = replace(worst, value=now.value, limit=now.limit, facts=facts)
        words = rule.words(present, run)[0].split(". ")[0].removeprefix("up to ")
    if now.inside:
        ends = "evaluation ends" if now.left == 1 else "evaluations end"
        words += f"; {now.left} more such {ends} it"
    elif 0 < now.value <= now.limit and rule.ends_below:
        words += f"; it ends below {rule.ends_below:.0%} of the limit"
    return words


def _has_changed(worst: Episode) -> bool:
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
    if finding.active:
        return _with_way_back(cause, known)
    wants = RULES[finding.rule].wants_balance  # it was trouble of a start
    if not wants and finding.severity is Severity.INFO:
        return cause.remedy
    if any(episode.recurrence for episode in finding.episodes):
        return f"it returned: {cause.remedy}"
    return f"nothing now; if it returns: {cause.remedy}"


def _with_way_back(cause: Cause, known: Known) -> str:
    remedy, back = cause.remedy, go_back(cause.onset, known.checkpoints, known.newest)
    if BACK in remedy:
        return remedy.replace(BACK, back)
    if not cause.goes_back or not _leaves_damage(cause, known.run.profile):
        return remedy
    if back.startswith("go back"):
        back += cause.reset
    if any(sign in remedy for sign in (", ", "; ", " and ")):
        return f"{remedy}; then {back}"
    return f"{remedy} and {back}"


def _leaves_damage(cause: Cause, profile: str) -> bool:
    active = (RULES[f.rule] for f in cause.findings if f.active)
    return cause.sign is not None or any(profile in rule.rolls_back_in for rule in active)


def _first(text: str) -> str:
    return text.split("; ")[0].split(". ")[0].split(" (")[0].rstrip(".")


def _layers(names: Sequence[str]) -> str:
    if len(names) <= 3:
        return ", ".join(names)
    return f"{names[0]}, {names[1]} and {len(names) - 2} more layers"
