"""Advice on balancing: which of the run's own settings to change, by the names in its header."""

import math
from collections.abc import Sequence
from typing import TypeGuard

from microscope_tui.diagnosis.episodes import Episode
from microscope_tui.runlog import RunRecord

KNOBS = {"bias": "bias_update_rate", "aux": "aux_weight"}
"""Balancing methods with a strength in the header."""
SCALES = ("margin", "max_logit")
"""Names of the signals that give the scale of the scores: facts of the episodes of rules that
advise stronger balancing.
"""
WRONG_SIGN = "wrong bias sign"
"""Cause: a bias update that favours the busy experts."""
BACK = "go back to an earlier checkpoint"
"""The generic advice of a rule; ``go_back`` names the step for one finding."""
_BRIDGED_IN = 100
"""An update rate matches the scale of the scores if this many updates bridge their margin: two
experts, one rising and one falling, then swap places in half as many.
"""
_OF_LOGITS = 0.05
"""In a run on softmax logits 0.001 left four of six layers collapsed; 0.05 kept all at c > 0.7."""


def stronger_balance(run: RunRecord, episode: Episode | None = None) -> str:
    """Which setting to raise, from what to what; ``episode`` has the scale of the scores."""
    value = run.balance.get("bias_update_rate")
    if run.balance.get("method") == "bias" and _is_positive(value):
        return _faster(run, value, episode)
    return _turned(run, 3.0, "raise", "strengthen the load balancing")


def weaker_balance(run: RunRecord) -> str:
    """Which setting to lower, from what to what."""
    return _turned(run, 0.5, "lower", "weaken the load balancing")


def right_sign() -> str:
    """What to do if the bias update favours the busy experts."""
    return (
        "flip the sign of the bias update: busy experts must lose bias and idle ones gain "
        "it (a higher rate makes it worse)"
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


def go_back(onset: int, checkpoints: Sequence[int]) -> str:
    """Advice to go back to before the onset; the log records saved checkpoints, not what is still
    on disk.
    """
    saved = max((step for step in checkpoints if step < onset), default=None)
    if onset <= 1:
        return "start again"
    if saved == 0:
        return f"start again (no checkpoint is older than step {onset:,})"
    known = (
        f"a checkpoint was written at {saved:,}" if saved else "the log has no checkpoint that old"
    )
    return f"go back to before step {onset:,}" + (f" ({known})" if checkpoints else "")


def _faster(run: RunRecord, rate: float, episode: Episode | None) -> str:
    """A bias on logits, which have no bound, needs more than one on scores from 0 to 1."""
    change = f"raise bias_update_rate from {rate:g} to"
    plain = 3.0 * rate
    facts = episode.facts if episode is not None else {}
    margin, largest = (facts.get(name) for name in SCALES)
    if _is_positive(margin):
        wanted = _one_digit(margin / _BRIDGED_IN)
        if wanted <= plain:
            return f"{change} {plain:g}"
        return (
            f"{change} {wanted:g} (the chosen scores lead by {margin:.2g}; at {rate:g} a bias "
            f"needs {margin / rate:,.0f} steps to make up for that)"
        )
    if run.score_function != "softmax":
        return f"{change} {plain:g}"
    wanted = _OF_LOGITS
    if _is_positive(largest):
        wanted = _one_digit(largest / (2 * _BRIDGED_IN))
    if wanted <= plain:
        return f"{change} {plain:g}"
    return (
        f"{change} {wanted:g} if the bias is added to logits, to {plain:g} if to probabilities "
        "(a bias on softmax logits needs far more than one on sigmoid scores)"
    )


def _turned(run: RunRecord, factor: float, verb: str, otherwise: str) -> str:
    method = run.balance.get("method")
    knob = KNOBS.get(str(method))
    if knob is None:
        if method == "none" and factor > 1:
            return "enable a balancing method"
        return f"{otherwise} and check that it acts on every layer" if factor > 1 else otherwise
    value = run.balance.get(knob)
    if value == 0 and factor > 1:
        return f"set {knob} above zero"
    if not _is_positive(value):
        return f"{verb} {knob}"
    return f"{verb} {knob} from {value:g} to {factor * value:g}"


def _is_positive(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and 0 < value < math.inf


def _one_digit(value: float) -> float:
    """A rate is a rough number: one significant digit."""
    return float(f"{value:.0e}")
