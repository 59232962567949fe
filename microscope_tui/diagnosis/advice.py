"""Verdict / Why / Next: the texts shown on screen, by ``check`` and in a trainer's console.

Verdict is what and since when, Why is the numbers, Next is the advice for this run: it reads the
run's header and names the user's own settings. The advice is never to prune an expert because it is
cold. Other trouble in the run may change it (``Circumstances``): GRADSPIKE, LOGITS and the COLLAPSE
that follows them are one divergence, whose findings all name the same step to go back to, before
the first sign, and the same remedy. More balancing does not help a router whose logits explode.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from microscope_tui.diagnosis.context import WHEN, is_one_step
from microscope_tui.diagnosis.episodes import EXACT, WHOLE_RUN, Episode, Finding, Severity
from microscope_tui.diagnosis.rules import RULES
from microscope_tui.diagnosis.rules.base import (
    BACK,
    RIGHT_SIGN,
    WRONG_SIGN,
    calm_down,
    go_back,
    number,
)
from microscope_tui.runlog import RunRecord

_CHANGED = 0.5
"""The current value differs from the worst by more than this share of (worst − limit)."""
_GAP = 50
"""Largest gap between the last evidence of one episode and the onset of the next that it led to; a
dated onset may also precede the first sign of a divergence by this much."""
_REACH = 500
"""A sign of a divergence that lasts longer than this does not explain later onsets."""


@dataclass(frozen=True, slots=True)
class Advice:
    """The three lines of a finding, and its one line for narrow screens."""

    verdict: str
    why: str
    next: str
    short: str


@dataclass(frozen=True, slots=True)
class Circumstances:
    """Other trouble in the run that changes the advice on one finding."""

    onset: int
    """The earliest onset of the chain of episodes that the finding is part of."""
    first_sign: Episode | None = None
    """Of the divergence that the finding is part of."""
    wrong_sign: bool = False
    """The bias update has the wrong sign."""
    uneven: str = ""
    """COLLAPSE or ERODING, if active at the same time in one of the finding's layers."""
    collapsed: bool = False
    """The layer that the numbers come from is below the limit of COLLAPSE now."""
    swings: bool = False
    """The load of one of the finding's layers oscillates now."""


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
    since = WHEN if is_one_step(run) else f"since step {finding.onset:,}"
    if not finding.active:
        ended = max(e.recovered_at or e.last for e in finding.episodes)
        since = f"from step {finding.onset:,} to {ended:,}, {_how_it_ended(finding)}"
    again = f" (occurrence {worst.recurrence + 1})" if worst.recurrence and where else ""
    why, gist = _why(finding, run, around)
    sign = around.first_sign
    if sign is not None and sign.rule != finding.rule:
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
    if finding.rule == "COLLAPSE" and longest <= number(finding.worst, "shock_steps"):
        ended = max(e.recovered_at or e.last for e in finding.episodes)
        when = "each recovered within" if ended - finding.onset > longest else "recovered after"
        return f"{when} {longest:,} steps: a shock"
    return "recovered"


def _why(finding: Finding, run: RunRecord, around: Circumstances) -> tuple[str, str]:
    """The numbers as sentences, and a short form; worst and current values if they differ."""
    worst, words = finding.worst, RULES[finding.rule].words
    whose = f"In {worst.router.name}" if len(finding.layers) > 1 and worst.router else ""
    text, _ = words(worst, run)
    if finding.rule == "ERODING" and worst.active and around.collapsed:
        text = (
            f"c fell from {number(worst, 'from'):.2f} to {worst.limit:.2f} and below, see COLLAPSE"
        )
    if not _has_changed(worst):
        return f"{f'{whose}: ' if whose else ''}{text}.", _first(text)
    assert worst.now is not None
    at_worst, now = f"{whose}, at worst" if whose else "At worst", "within the limits"
    if not worst.now.inside:
        facts = {name: fact for name, fact in worst.now.facts.items() if name != "usual"}
        present = replace(worst, value=worst.now.value, limit=worst.now.limit, facts=facts)
        now = words(present, run)[0].split(". ")[0].removeprefix("up to ")
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
    if around.first_sign is not None:
        remedy = f"{calm_down(run)}; {back}" if finding.active else calm_down(run)
    elif around.wrong_sign and rule.wants_balance:
        remedy = RIGHT_SIGN
        if goes_back:
            zero = ", with expert_bias set to zero" if back.startswith("go back") else ""
            remedy = f"{remedy}; then {back}{zero}"
    elif around.uneven and rule.name == "DROPS":
        remedy = (
            f"fix the uneven load first (see {around.uneven}): more capacity would only feed the "
            "experts that take everything"
        )
    elif (  # damage still has to be undone
        around.swings
        and rule.wants_balance
        and not rule.rolls_back_in
        and run.balance.get("method") != "none"
    ):
        remedy = "stop the swing first (see OSCILLATION): stronger balancing would amplify it"
    else:
        _, remedy = rule.words(finding.worst, run)
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


def _first(text: str) -> str:
    """The first statement of ``text``, for a narrow line."""
    return text.split("; ")[0].split(". ")[0].split(" (")[0].rstrip(".")


def _layers(names: Sequence[str]) -> str:
    if len(names) <= 3:
        return ", ".join(names)
    return f"{names[0]}, {names[1]} and {len(names) - 2} more layers"


def circumstances(finding: Finding, beside: Iterable[Episode]) -> Circumstances:
    """The circumstances of ``finding`` among the episodes of the run."""
    others = list(beside)
    mine = {(e.rule, e.router_index, e.onset) for e in finding.episodes}
    now = [e for e in others if e.active and e.severity >= Severity.WARN]
    collapsed = any(e.rule == "COLLAPSE" and _overlaps(e, [finding.worst]) for e in now)
    for divergence in _divergences(others):
        if mine & {(e.rule, e.router_index, e.onset) for e in divergence}:
            onset = min(divergence[0].onset, finding.onset)
            sign = next(e for e in divergence if _is_sign(e))
            return Circumstances(onset, sign, collapsed=collapsed)
    return Circumstances(
        onset=min(_chain_onset(episode, others) for episode in finding.episodes),
        wrong_sign=any(
            e.rule == "LINT" and e.active and e.facts.get("cause") == WRONG_SIGN for e in others
        ),
        uneven=next(
            (e.rule for rule in ("COLLAPSE", "ERODING") for e in others if e.rule == rule
             and e.severity >= Severity.WARN and _overlaps(e, finding.episodes)),
            "",
        ),
        collapsed=collapsed,
        swings=any(e.rule == "OSCILLATION" and _overlaps(e, finding.episodes) for e in now),
    )  # fmt: skip


def _chain_onset(episode: Episode, others: Sequence[Episode]) -> int:
    """The onset of the first episode of this router that led to this one without a gap."""
    onset = episode.onset
    if not _starves(episode):
        return onset
    before = [
        e for e in others
        if _starves(e) and e.router_index == episode.router_index and e.severity >= Severity.WARN
    ]  # fmt: skip
    for earlier in sorted(before, key=lambda e: -e.onset):
        if earlier.onset < onset <= (earlier.recovered_at or earlier.last) + _GAP:
            onset = earlier.onset
    return onset


def _starves(episode: Episode) -> bool:
    return RULES[episode.rule].family == "starvation"


def _overlaps(trouble: Episode, episodes: Sequence[Episode]) -> bool:
    return any(
        trouble.router_index == e.router_index
        and trouble.onset <= e.last
        and (trouble.recovered_at is None or trouble.recovered_at > e.onset)
        for e in episodes
    )


def _divergences(episodes: Iterable[Episode]) -> Iterator[list[Episode]]:
    """The divergences of a run: their signs and what followed them, earliest onset first."""
    serious = sorted((e for e in episodes if e.severity >= Severity.WARN), key=lambda e: e.onset)
    clusters: list[list[Episode]] = []
    for sign in filter(_is_sign, serious):
        if clusters and sign.onset <= max(map(_end, clusters[-1])):
            clusters[-1].append(sign)
        else:
            clusters.append([sign])
    for signs in clusters:
        followed = [e for e in serious if RULES[e.rule].wants_balance and _follows(e, signs)]
        found = sorted([*signs, *followed], key=lambda e: e.onset)
        # A gradient spike alone is not a divergence.
        if any(RULES[e.rule].announced_by for e in found):
            yield found


def _is_sign(episode: Episode) -> bool:
    return RULES[episode.rule].family == "divergence"


def _end(sign: Episode) -> int:
    return min(sign.last, sign.onset + _REACH) + _GAP


def _follows(episode: Episode, signs: list[Episode]) -> bool:
    """A gradient spike alone is a sign only if an alarm followed it at once."""
    return any(
        signs[0].onset - _GAP <= episode.onset <= _end(sign)
        for sign in signs
        if sign.router_index == episode.router_index
        or (sign.router_index == WHOLE_RUN and sign.severity is Severity.CRITICAL)
    )
