"""The scorer: what was reported against what is true.

A trouble is a *hit* if its rule fired in every router that has it, at least as severely as it is,
with the right experts, and recovered where the trouble ends. An episode that precedes its trouble,
is in another router, or is of an unexpected rule is a false alarm, unless the truth allows it in
the sick routers.
"""

from collections.abc import Iterable, Sequence

import msgspec

from microscope_tui.diagnosis import WHOLE_RUN, Episode, Severity
from microscope_tui.scenarios import Expected, Truth

SEVERITIES = {severity.label: severity for severity in Severity}
LOAD_RULES = ("COLLAPSE", "ERODING", "STARVED", "DEAD", "OVERLOAD")
"""What a limit on one number can be asked to see."""
_OVER = 100
"""A trouble must end this many steps before the end of the run to count as recovered."""


class Outcome(msgspec.Struct, kw_only=True):
    """What became of one expected trouble."""

    rule: str
    severity: str
    named: bool
    """The rule fired severely enough, in any router."""
    placed: bool
    """It fired in every router that has the trouble."""
    missing: str = ""
    """What it lacks to be a hit: silent, severity, layers, experts or recovery; else empty."""
    delay: int | None = None
    critical_delay: int | None = None
    dated: bool | None = None
    ended_early: bool = False
    """In some router it was reported as over, and never is."""

    @property
    def hit(self) -> bool:
        """All is right."""
        return not self.missing


class FalseAlarm(msgspec.Struct):
    """An episode that nothing true explains."""

    rule: str
    severity: str
    router: int
    onset: int
    alarm: int


class Plain(msgspec.Struct, kw_only=True):
    """How a baseline did."""

    hits: int
    expected: int
    false_alarms: int


def outcomes(truth: Truth, episodes: Sequence[Episode], steps: int, routers: int) -> list[Outcome]:
    """One outcome for every expected trouble, in the order of the truth."""
    return [_outcome(e, _answers(e, truth, episodes), steps, routers) for e in truth.expected]


def false_alarms(truth: Truth, episodes: Iterable[Episode]) -> list[FalseAlarm]:
    """Warnings and worse that are wrong."""
    return [
        FalseAlarm(e.rule, e.severity.label, e.router_index, e.onset, e.alarm)
        for e in episodes
        if e.severity >= Severity.WARN
        and not any(e.rule == x.rule and _explains(x, e) for x in truth.expected)
        and not _is_allowed(truth, e)
    ]


def plain(truth: Truth, episodes: Sequence[Episode]) -> Plain:
    """The score of a baseline: only the layer counts."""
    asked = [e for e in truth.expected if e.rule in LOAD_RULES and e.routers]
    hits = 0
    for wanted in asked:
        named = {e.router_index for e in episodes if _explains(wanted, e)}
        hits += named.issuperset(wanted.routers)
    sick = [e for e in truth.expected if e.routers]
    wrong = [e for e in episodes if not any(_explains(x, e) for x in sick)]
    return Plain(hits=hits, expected=len(asked), false_alarms=len(wrong))


def _answers(wanted: Expected, truth: Truth, episodes: Iterable[Episode]) -> list[Episode]:
    """Episodes of the rule, without those that answer another trouble of the same rule."""
    same = [e for e in truth.expected if e.rule == wanted.rule]
    return [
        episode
        for episode in episodes
        if episode.rule == wanted.rule
        and min(same, key=lambda e: abs(e.onset - episode.onset)) is wanted
        and not _is_over_before(episode, wanted)
    ]


def _outcome(wanted: Expected, said: Sequence[Episode], steps: int, routers: int) -> Outcome:
    severe = [e for e in said if e.severity >= SEVERITIES[wanted.severity]]
    right = [e for e in severe if not wanted.routers or e.router_index in wanted.routers]
    found = {e.router_index for e in right}
    everyone = set(wanted.routers or range(routers))
    placed = found >= everyone or (not wanted.routers and WHOLE_RUN in found)
    outcome = Outcome(rule=wanted.rule, severity=wanted.severity, named=bool(severe), placed=placed)
    if not right:
        outcome.missing = "layers" if severe else "severity" if said else "silent"
        return outcome
    if not placed:
        outcome.missing = "layers"
    elif any(e.facts.get("experts", wanted.experts) != wanted.experts for e in right):
        outcome.missing = "experts" if wanted.experts else ""
    is_over = wanted.until is not None and wanted.until <= steps - _OVER
    if is_over and not outcome.missing and any(e.active for e in right):
        outcome.missing = "recovery"
    first = min(right, key=lambda e: (e.alarm, e.onset))
    outcome.delay = first.alarm - wanted.onset
    outcome.dated = abs(first.onset - wanted.onset) <= wanted.tolerance
    if wanted.rule == "COLLAPSE" and wanted.severity == "crit":
        critical = [g.step for e in right for g in e.grades if g.severity >= Severity.CRITICAL]
        outcome.critical_delay = min(critical, default=steps) - wanted.onset
    lasting = {e.router_index for e in right if e.active or e.led_to}
    outcome.ended_early = wanted.until is None and not lasting.issuperset(found)
    return outcome


def _explains(wanted: Expected, episode: Episode) -> bool:
    """The trouble is there, in this router, when the alarm comes."""
    here = not wanted.routers or episode.router_index in wanted.routers
    return here and episode.alarm >= wanted.onset - wanted.tolerance


def _is_over_before(episode: Episode, wanted: Expected) -> bool:
    ended = episode.recovered_at
    return ended is not None and max(ended, episode.alarm) < wanted.onset - wanted.tolerance


def _is_allowed(truth: Truth, episode: Episode) -> bool:
    permitted = truth.allowed.get(episode.rule)
    if permitted is None or episode.severity > SEVERITIES[permitted]:
        return False
    sick = {router for e in truth.expected for router in e.routers}
    return not sick or episode.router_index in sick or episode.router_index == WHOLE_RUN
