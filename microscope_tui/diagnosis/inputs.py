"""The numbers that rules need, and which of them a log has: without them a rule is blind."""

import math
from collections.abc import Sequence, Set

from microscope_tui.diagnosis.signals import StepView
from microscope_tui.runlog import RunRecord

BALANCE = ("effective_experts", "num_experts", "top_k")
"""What the collapse index is computed from."""
_NEEDED = {
    "effective_experts": "counts or effective_experts",
    "max_load": "counts or max_load",
    "starved_experts": "counts or starved_experts",
    "counts": "counts",
    "tokens": "tokens",
}
"""Numbers of a step, in words."""
_UNKNOWN = {
    "num_experts": "the number of experts is unknown: use --num-experts",
    "top_k": (
        "how many experts a token chooses (top_k) is unknown: use --top-k, or write model.top_k in "
        "a run log"
    ),
}
"""Numbers of the header."""


def see(view: StepView, seen: set[str]) -> None:
    """Add the numbers of a step to those that the log has."""
    for name in _NEEDED.keys() - seen:
        if name == "counts":
            found = view.has_counts
        elif name == "tokens" and view.tokens is not None:
            found = True
        else:
            signal = view.signal(name)
            found = signal is not None and signal.high > -math.inf
        if found:
            seen.add(name)


def unknown(run: RunRecord, name: str) -> bool:
    """Whether no router of the header has this number."""
    return not any(getattr(router, name) for router in run.routers)


def why_blind(needs: Sequence[str], seen: Set[str], run: RunRecord) -> str | None:
    """Which of the needed numbers are missing, in words; ``None`` if none is."""
    lacks = [_NEEDED[name] for name in needs if name in _NEEDED and name not in seen]
    if lacks:  # what the header lacks comes next
        return f"it needs {' and '.join(lacks)}"
    reasons = [_UNKNOWN[name] for name in needs if name in _UNKNOWN and unknown(run, name)]
    return "; ".join(reasons) or None
