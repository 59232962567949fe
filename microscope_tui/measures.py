"""Router measures: statistics of the counts of a router. Pure functions, no I/O.

The headline is the collapse index ``c = (exp(H_load) − k) / (E − k)``: with top-k routing the
worst case is k fixed experts, not one, so plain entropy cannot be compared across models. 1 is a
perfectly even load, 0 a router that has become a small dense layer.

All counts are selected (token, expert) pairs, entropies are in nats, loads are multiples of the
fair share. Every function returns ``None`` where the measure has no value (no tokens, E ≤ k, or k
unknown, which is 0).
"""

import math
from collections.abc import Callable, Sequence
from operator import mul

import msgspec

ALWAYS_CHOSEN = 0.95
"""An expert that this share of the tokens chooses acts as a shared one."""
EVEN_ENOUGH = 0.45
"""Only beside experts with at least this c is the busiest one excused: COLLAPSE ends above it."""
SLACK = 0.1
"""Looser on screens for an expert that was left out a moment ago: else its noise would flip them.
"""
STARVED_SHARE = 0.1
"""Below this multiple of the mean count an expert is starved."""
FEWEST_EXPECTED = 10
"""Pairs that an expert must have in a slice on average: with fewer its ratio is noise, and
the noise leaves it out."""


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
    counts = tokens_per_expert
    used = counts if min(counts) > 0 else list(filter((0.0).__lt__, counts))
    weighted = math.fsum(map(mul, used, map(math.log, used)))
    return max(0.0, math.log(total) - weighted / total)


def effective_experts(tokens_per_expert: Sequence[int]) -> float | None:
    """``exp(load entropy)``: how many equally used experts would be this uneven; E … 1."""
    entropy = load_entropy(tokens_per_expert)
    return None if entropy is None else math.exp(entropy)


def collapse_index(effective: float | None, num_experts: int, top_k: int) -> float | None:
    """``c = (effective − k) / (E − k)`` clamped to [0, 1]; no value when E ≤ k or k is unknown."""
    if effective is None or not math.isfinite(effective) or not num_experts > top_k > 0:
        return None
    return c if 0.0 < (c := (effective - top_k) / (num_experts - top_k)) < 1.0 else float(c >= 1.0)


_ROUNDING = 1e-3  # of counts that are scaled shares


class Balance(msgspec.Struct, frozen=True):
    collapse_index: float | None
    effective: float | None
    """Among the judged ones."""
    num_experts: int
    """Judged ones."""
    without: tuple[int, ...] = ()


def balance(tokens_per_expert: Sequence[int], top_k: int, slack: float = 0.0) -> Balance:
    """The collapse index of a router from its counts, as every part of the microscope judges it.

    With top-k routing one expert may be chosen by every token while the other choices are even:
    a shared expert in fact (OLMoE has one), and no collapse. So the busiest ones, at most
    ``max(1, k // 4)``, are left out where the others have c ≥ 0.45 with k less their number: where
    95 % of the tokens choose them, and, whatever their share, where c of all experts is below 0.45.
    With k = 1 none is. So c never gets better because an expert gets busier.

    ``slack`` loosens these limits: see ``SLACK``.
    """
    experts = len(tokens_per_expert)
    effective = effective_experts(tokens_per_expert)
    plain = collapse_index(effective, experts, top_k)
    if may_excuse(plain, max_load(tokens_per_expert), experts, top_k, slack):
        busiest = sorted(range(experts), key=tokens_per_expert.__getitem__, reverse=True)
        always = (ALWAYS_CHOSEN - slack) * sum(tokens_per_expert) / top_k
        most = max(1, top_k // 4)
        hot = len([n for n in tokens_per_expert if n >= always]) if most > 1 else 1
        for left_out in range(min(most, max(1, hot)), most + 1):
            rest = list(map(tokens_per_expert.__getitem__, busiest[left_out:]))
            among = effective_experts(rest)
            index = collapse_index(among, len(rest), top_k - left_out)
            if index is not None and index >= EVEN_ENOUGH - slack:
                return Balance(index, among, len(rest), tuple(sorted(busiest[:left_out])))
    return Balance(plain, effective, experts)


def may_excuse(
    plain: float | None, max_load: float | None, num_experts: int, top_k: int, slack: float = 0.0
) -> bool:
    """Whether ``balance`` may leave out the busiest expert, from c of all and its load.

    More than all tokens choose no expert: then these are not the counts of k choices.
    """
    if top_k < 2 or plain is None or max_load is None:
        return False
    share = max_load * top_k / num_experts
    busy = plain < EVEN_ENOUGH + slack or share >= ALWAYS_CHOSEN - slack
    return busy and share <= 1.0 + _ROUNDING


def balance_of_summary(
    effective: float | None,
    max_load: float | None,
    num_experts: int,
    top_k: int,
    slack: float = 0.0,
) -> float | None:
    """c as ``balance`` gives it, from two summaries of a step.

    They suffice to leave out one expert, but not to know which; where more may be (k ≥ 8), each has
    so small a share that c hardly differs.
    """
    plain = collapse_index(effective, num_experts, top_k)
    if not may_excuse(plain, max_load, num_experts, top_k, slack):
        return plain
    index = without_busiest(effective, max_load, num_experts, top_k)
    return index if index is not None and index >= EVEN_ENOUGH - slack else plain


def without_busiest(
    effective: float | None, max_load: float | None, num_experts: int, top_k: int
) -> float | None:
    """c of all experts but the busiest one, each token choosing one less.

    With s its share of all pairs, ``H = h(s) + (1 − s) H_rest``; h is the entropy of (s, 1 − s).
    """
    share = (max_load or 0.0) / max(1, num_experts)
    if effective is None or effective < 1 or not 0 < share < 1:
        return None
    split = share * math.log(share) + (1 - share) * math.log1p(-share)
    rest = max(0.0, (math.log(effective) + split) / (1 - share))
    return collapse_index(math.exp(min(rest, 700.0)), num_experts - 1, top_k - 1)


def max_load(tokens_per_expert: Sequence[int]) -> float | None:
    """Largest count ÷ mean count; 1.0 is fair, E/k is collapse. MaxVio is this minus one."""
    total = sum(tokens_per_expert)
    if total <= 0:
        return None
    return max(tokens_per_expert) * len(tokens_per_expert) / total


def dead_experts(tokens_per_expert: Sequence[int]) -> int:
    """How many experts got no token in this step; a rule needs more than one step."""
    return tokens_per_expert.count(0)


def starved_experts(tokens_per_expert: Sequence[int], share: float = STARVED_SHARE) -> int:
    """How many experts have less than ``share`` of the mean count, dead ones included."""
    limit = share * sum(tokens_per_expert) / max(1, len(tokens_per_expert))
    return len([count for count in tokens_per_expert if count < limit])


DERIVED: dict[str, Callable[[Sequence[int]], float | None]] = {
    "effective_experts": effective_experts,
    "max_load": max_load,
    "dead_experts": dead_experts,
    "starved_experts": starved_experts,
}
"""What the format derives from the counts of a router."""


def summarise(tokens_per_expert: Sequence[Sequence[int]]) -> dict[str, list[float | None]]:
    """All measures that follow from the counts alone, by name, with one entry per router."""
    return {name: list(map(derive, tokens_per_expert)) for name, derive in DERIVED.items()}


def relative_mutual_information(entropy: float | None, mean_entropy: float | None) -> float | None:
    """``(H_mean − H_tok) / H_mean``: relative mutual information of token and expert; 0 … 1."""
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
    """Balance and confidence of a router in one word; ``None`` where too little is known.

    Args:
        collapse_index: c; below 0.35 the router is ``collapsed``, however sure of itself.
        mutual_information: Relative, of the two entropies: what the choice for one token
            reveals.
        selected_lift: Mass on the chosen k ÷ (k ÷ E). Sigmoid scores over many experts keep
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


def mean_of(values: Sequence[float | None] | None) -> float | None:
    """Mean of the finite values; ``None`` if there are none."""
    if not values:
        return None
    if None not in values and math.isfinite(total := sum(values)):  # type: ignore[arg-type]
        return total / len(values)  # nearly always
    known = [value for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known else None
