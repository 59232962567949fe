"""Divergences: gradient norm and logits explode first, then the load of the routers falls.

GRADSPIKE, LOGITS and the COLLAPSE that follows them are one event. All its findings name the same
step to go back to, before the first sign, and the same remedy: more balancing does not help a
router whose logits explode.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from microscope_tui.diagnosis.catalogue import RULES
from microscope_tui.diagnosis.episodes import Episode
from microscope_tui.diagnosis.reading import WHOLE_RUN, Severity

_GAP = 50
"""Largest gap in steps between the last evidence of a sign and the onset of what follows. An onset
that is dated back may also precede the first sign by this much.
"""
_REACH = 500
"""A sign that lasts longer than this does not explain later onsets."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """One divergence: its signs and what followed them, earliest onset first."""

    episodes: tuple[Episode, ...]

    @property
    def onset(self) -> int:
        """The onset: go back to before this step."""
        return self.episodes[0].onset

    @property
    def first_sign(self) -> Episode:
        """The earliest spike of the gradient or the logits."""
        return next(e for e in self.episodes if _is_sign(e))


def divergences(episodes: Iterable[Episode]) -> list[Divergence]:
    """The divergences among the episodes of one run."""
    serious = sorted((e for e in episodes if e.severity >= Severity.WARN), key=lambda e: e.onset)
    clusters: list[list[Episode]] = []
    for sign in serious:
        if not _is_sign(sign):
            continue
        if clusters and sign.onset <= max(map(_end, clusters[-1])):
            clusters[-1].append(sign)
        else:
            clusters.append([sign])
    found = []
    for signs in clusters:
        followed = [e for e in serious if RULES[e.rule].wants_balance and _follows(e, signs)]
        episodes = sorted([*signs, *followed], key=lambda e: e.onset)
        # A gradient spike alone is not a divergence.
        if any(RULES[e.rule].announced_by for e in episodes):
            found.append(Divergence(tuple(episodes)))
    return found


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
