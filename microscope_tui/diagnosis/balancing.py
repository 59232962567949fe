"""The run's own knobs of load balancing, by the names its header gives them."""

from collections.abc import Sequence

from microscope_tui.runlog.records import RunRecord

KNOBS = {"bias": "bias_update_rate", "aux": "aux_weight"}
"""Methods of balancing whose strength the header tells."""


def stronger_balance(run: RunRecord) -> str:
    """Which knob to turn up, from what to what."""
    return _turned(run, 3.0, "raise", "strengthen the load balancing")


def weaker_balance(run: RunRecord) -> str:
    """Which knob to turn down, from what to what."""
    return _turned(run, 0.5, "lower", "weaken the load balancing")


def _turned(run: RunRecord, factor: float, verb: str, otherwise: str) -> str:
    method = run.balance.get("method")
    knob = KNOBS.get(str(method))
    if knob is None:
        if method == "none" and factor > 1:
            return "switch a balancing method on"
        return f"{otherwise} and check that it acts on every layer" if factor > 1 else otherwise
    value = run.balance.get(knob)
    if value == 0 and factor > 1:
        return f"set {knob} above zero"
    if not isinstance(value, int | float) or not 0 < value < float("inf"):
        return f"{verb} {knob}"
    return f"{verb} {knob} from {value:g} to {factor * value:g}"


def go_back(onset: int, checkpoints: Sequence[int]) -> str:
    """Back to before the onset; the log says what was saved, not what is still on disk."""
    sound = [step for step in checkpoints if step < onset]
    saved = f" (a checkpoint was written at {max(sound):,})" if sound else ""
    return f"go back to before step {onset:,}{saved}"
