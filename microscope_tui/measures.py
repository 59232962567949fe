"""Router measures: what a row of counts says about a router. Pure functions, no I/O.

The headline is the collapse index ``c = (exp(H_load) − k) / (E − k)``: with top-k routing the
worst case is k fixed experts, not one, so plain entropy cannot be compared across models. 1 is a
perfectly even load, 0 a router that has become a small dense layer.

All counts are selected (token, expert) pairs, entropies are in nats, loads are multiples of the
fair share. Every function returns ``None`` where the measure has no value (no tokens, E ≤ k).
"""

import math
from collections.abc import Sequence

STARVED_SHARE = 0.1
"""An expert with less than this multiple of the mean count is starved (in the step or window)."""


def load(tokens_per_expert: Sequence[int]) -> list[float] | None:
    """Count ÷ mean count per expert; 1.0 is the fair share."""
    total = sum(tokens_per_expert)
    if total <= 0:
        return None
    scale = len(tokens_per_expert) / total
    return [count * scale for count in tokens_per_expert]


def load_entropy(tokens_per_expert: Sequence[int]) -> float | None:
    """Entropy of the load shares in nats: ln E when even, ln k when collapsed on k experts."""
    total = sum(tokens_per_expert)
    if total <= 0:
        return None
    # H = ln N − (Σ n ln n) / N needs one logarithm a count and no division.
    weighted = math.fsum(n * math.log(n) for n in tokens_per_expert if n > 0)
    return max(0.0, math.log(total) - weighted / total)


def effective_experts(tokens_per_expert: Sequence[int]) -> float | None:
    """``exp(load entropy)``: how many equally used experts would be this uneven; E … 1."""
    entropy = load_entropy(tokens_per_expert)
    return None if entropy is None else math.exp(entropy)


def collapse_index(effective: float | None, num_experts: int, top_k: int) -> float | None:
    """``c = (effective − k) / (E − k)`` clamped to [0, 1]; no value when E ≤ k."""
    if effective is None or not math.isfinite(effective) or num_experts <= top_k:
        return None
    return min(1.0, max(0.0, (effective - top_k) / (num_experts - top_k)))


def max_load(tokens_per_expert: Sequence[int]) -> float | None:
    """Largest count ÷ mean count; 1.0 is fair, E/k is collapse. MaxVio is this minus one."""
    total = sum(tokens_per_expert)
    if total <= 0:
        return None
    return max(tokens_per_expert) * len(tokens_per_expert) / total


def dead_experts(tokens_per_expert: Sequence[int]) -> int:
    """Number of experts that received nothing."""
    return sum(1 for count in tokens_per_expert if count == 0)


def starved_experts(tokens_per_expert: Sequence[int], share: float = STARVED_SHARE) -> int:
    """Number of experts below this share of the mean count (dead ones included)."""
    limit = share * sum(tokens_per_expert) / max(1, len(tokens_per_expert))
    return sum(1 for count in tokens_per_expert if count < limit)


def summarise(tokens_per_expert: Sequence[Sequence[int]]) -> dict[str, list[float | None]]:
    """What the format's ``router`` object derives from counts, one entry per router."""
    return {
        "effective_experts": [effective_experts(row) for row in tokens_per_expert],
        "max_load": [max_load(row) for row in tokens_per_expert],
        "dead_experts": [dead_experts(row) for row in tokens_per_expert],
        "starved_experts": [starved_experts(row) for row in tokens_per_expert],
    }


def relative_mutual_information(entropy: float | None, mean_entropy: float | None) -> float | None:
    """``(H_mean − H_tok) / H_mean``: how much a token tells about its expert; 0 … 1."""
    if entropy is None or mean_entropy is None:
        return None
    if not (math.isfinite(entropy) and math.isfinite(mean_entropy)) or mean_entropy <= 0:
        return None
    return min(1.0, max(0.0, (mean_entropy - entropy) / mean_entropy))


COLLAPSED, CONFIDENT, UNSURE = 0.35, 0.10, 0.03
LIFT_CONFIDENT, LIFT_UNSURE = 2.0, 1.3


def quadrant(
    collapse_index: float | None, mutual_information: float | None, selected_lift: float | None
) -> str | None:
    """Balance and confidence of a router in one word; ``None`` where either is unknown.

    Args:
        collapse_index: c; below 0.35 the router is ``collapsed``, however sure of itself.
        mutual_information: relative, of the two entropies. What one token's choice tells.
        selected_lift: mass on the chosen k ÷ (k ÷ E). Sigmoid scores over many experts keep
            nearly all of the entropy however sure the router is; their lift does not.
    """
    if collapse_index is None:
        return None
    if collapse_index < COLLAPSED:
        return "collapsed"
    if mutual_information is None:
        return None
    lift = selected_lift if selected_lift is not None and math.isfinite(selected_lift) else None
    if mutual_information >= CONFIDENT or (lift is not None and lift >= LIFT_CONFIDENT):
        return "specialised"
    if mutual_information <= UNSURE and (lift is None or lift <= LIFT_UNSURE):
        return "uniform"
    return "undecided"
