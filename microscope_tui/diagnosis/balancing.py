"""The run's own knobs of load balancing, by the names its header gives them."""

from collections.abc import Sequence

from microscope_tui.runlog.records import RunRecord


def stronger_balance(run: RunRecord) -> str:
    """Which knob to turn up, from what to what."""
    return _turned(run, 3.0, "raise", "strengthen the load balancing", "above zero")


def weaker_balance(run: RunRecord) -> str:
    """Which knob to turn down, from what to what."""
    return _turned(run, 0.5, "lower", "weaken the load balancing", "lower")


def _turned(run: RunRecord, factor: float, verb: str, otherwise: str, unset: str) -> str:
    method = run.balance.get("method")
    knob = {"bias": "bias_update_rate", "aux": "aux_weight"}.get(str(method))
    if knob is None:
        if method == "none" and factor > 1:
            return "switch a balancing method on"
        return f"{otherwise} and check that it acts on every layer"
    value = run.balance.get(knob)
    if not isinstance(value, int | float) or not 0 < value < float("inf"):
        return f"set {knob} {unset}"
    return f"{verb} {knob} from {value:g} to {factor * value:g}"


def go_back(onset: int, checkpoints: Sequence[int]) -> str:
    """Back to before the onset; the log says what was saved, not what is still on disk."""
    sound = [step for step in checkpoints if step < onset]
    saved = f" (a checkpoint was written at {max(sound):,})" if sound else ""
    return f"go back to before step {onset:,}{saved}"
