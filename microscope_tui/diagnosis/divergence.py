"""Divergences: gradient norm and logits explode first, then the load of the routers falls.

GRADSPIKE, LOGITS and the COLLAPSE that follows them are one event. All its findings name the same
step to go back to, before the first sign, and the same remedy: more balancing does not help a
router whose logits explode.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from microscope_tui.diagnosis.episodes import Episode
from microscope_tui.diagnosis.reading import WHOLE_RUN, Severity
from microscope_tui.runlog.records import RunRecord

_SIGNS = ("GRADSPIKE", "LOGITS")
_FOLLOW = ("COLLAPSE", "ERODING", "DEAD", "STARVED", "BIAS_RUNAWAY")
_GAP = 50
"""Steps between the last evidence of a sign and the onset of what follows it. An onset that is
dated back may also lie this much before the first sign."""
_REACH = 500
"""A sign that lasts longer than this does not explain what begins later."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """One explosion: its signs and what followed them, earliest onset first."""

    episodes: tuple[Episode, ...]

    @property
    def onset(self) -> int:
        """Where it began: the step to go back before."""
        return self.episodes[0].onset

    @property
    def first_sign(self) -> Episode:
        """The earliest spike of the gradient or the logits."""
        return next(e for e in self.episodes if e.rule in _SIGNS)


def divergences(episodes: Iterable[Episode]) -> list[Divergence]:
    """The divergences among the episodes of one run."""
    serious = sorted((e for e in episodes if e.severity >= Severity.WARN), key=lambda e: e.onset)
    clusters: list[list[Episode]] = []
    for sign in serious:
        if sign.rule not in _SIGNS:
            continue
        if clusters and sign.onset <= max(map(_end, clusters[-1])):
            clusters[-1].append(sign)
        else:
            clusters.append([sign])
    found = []
    for signs in clusters:
        followed = [e for e in serious if e.rule in _FOLLOW and _follows(e, signs)]
        rules = {e.rule for e in [*signs, *followed]}
        if rules & {"LOGITS", "COLLAPSE"}:  # a gradient spike alone is not a divergence
            found.append(Divergence(tuple(sorted([*signs, *followed], key=lambda e: e.onset))))
    return found


def _end(sign: Episode) -> int:
    return min(sign.last, sign.onset + _REACH) + _GAP


def _follows(episode: Episode, signs: list[Episode]) -> bool:
    """A lone spike of the gradient is a sign only where an alarm followed it at once."""
    return any(
        signs[0].onset - _GAP <= episode.onset <= _end(sign)
        for sign in signs
        if sign.router_index == episode.router_index
        or (sign.router_index == WHOLE_RUN and sign.severity is Severity.CRITICAL)
    )


def calm_down(run: RunRecord) -> str:
    """What to change so that gradients and logits stay finite and small."""
    weight = run.balance.get("z_loss_weight")
    z_loss = (
        f"raise z_loss_weight from {weight:g} to {10 * weight:g}"
        if isinstance(weight, int | float) and 0 < weight < 1
        else "add a z-loss of 1e-3"
    )
    return (
        f"lower the learning rate, clip the gradient norm, {z_loss} and compute the router in fp32"
    )
