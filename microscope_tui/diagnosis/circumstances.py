"""Other trouble in the run, as far as it changes the advice on one finding."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from microscope_tui.diagnosis.catalogue import RULES
from microscope_tui.diagnosis.divergence import Divergence, divergences
from microscope_tui.diagnosis.episodes import Episode, Finding
from microscope_tui.diagnosis.reading import Severity
from microscope_tui.diagnosis.rules.lint import WRONG_SIGN

_GAP = 50
"""Largest gap in steps between the end of one episode and the onset of the next that it led to."""


@dataclass(frozen=True, slots=True)
class Circumstances:
    """Related trouble of one finding."""

    onset: int
    """The earliest onset of the chain of episodes that the finding is part of."""
    divergence: Divergence | None = None
    """The divergence that the finding is part of."""
    wrong_sign: bool = False
    """The bias update has the wrong sign."""
    uneven: str = ""
    """COLLAPSE or ERODING, if active at the same time in one of the finding's layers."""
    collapsed: bool = False
    """The layer that the numbers come from is below the limit of COLLAPSE now."""
    swings: bool = False
    """The load of one of the finding's layers oscillates now."""


def circumstances(finding: Finding, beside: Iterable[Episode]) -> Circumstances:
    """The circumstances of ``finding`` among the episodes of the run."""
    others = list(beside)
    mine = {(e.rule, e.router_index, e.onset) for e in finding.episodes}
    now = [e for e in others if e.active and e.severity >= Severity.WARN]
    collapsed = any(e.rule == "COLLAPSE" and _overlaps(e, [finding.worst]) for e in now)
    for divergence in divergences(others):
        if mine & {(e.rule, e.router_index, e.onset) for e in divergence.episodes}:
            onset = min(divergence.onset, finding.onset)
            return Circumstances(onset, divergence, collapsed=collapsed)
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
