"""Runs as they would be logged, from a model of router counts, without any model training.

An expert's chance to be chosen is proportional to its weight, capped at 1 (a token chooses an
expert at most once); its count is binomial around that, and every row sums to tokens × k.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

BIAS_UPDATE_RATE = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The size of a synthetic run."""

    routers: int = 10
    num_experts: int = 8
    top_k: int = 2
    tokens: int = 4096
    steps: int = 600
    capacity_factor: float | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """What a trainer would know of one step."""

    step: int
    loss: float
    tokens: int
    tokens_per_expert: list[list[int]]
    expert_bias: list[list[float]]
    router: dict[str, list[float]]
    learning_rate: float
    grad_norm: float


@dataclass(frozen=True, slots=True)
class Truth:
    """What a right diagnosis says: rule → (router indices, onset step)."""

    findings: dict[str, tuple[tuple[int, ...], int]] = field(default_factory=dict)


Weights = Callable[[int, int], list[float]]
"""``weights(router, step)``: unnormalised popularity of every expert."""


def healthy(shape: Shape, rng: random.Random) -> tuple[Truth, Iterator[Step]]:
    """Uneven at the start, even after the first steps, a little noise for ever."""
    return Truth(), _steps(shape, rng, _settling(shape, rng))


def collapse(shape: Shape, rng: random.Random) -> tuple[Truth, Iterator[Step]]:
    """One layer falls onto k experts within 60 steps of one third of the run."""
    sick, onset = (2 * shape.routers) // 3, shape.steps // 3
    chosen = rng.sample(range(shape.num_experts), shape.top_k)
    base = _settling(shape, rng)

    def weights(router: int, step: int) -> list[float]:
        values = base(router, step)
        if router == sick and step >= onset:
            pull = math.exp(min(9.0, (step - onset) / 8))
            for expert in chosen:
                values[expert] *= pull
        return values

    return Truth({"COLLAPSE": ((sick,), onset)}), _steps(shape, rng, weights)


SCENARIOS: dict[str, Callable[[Shape, random.Random], tuple[Truth, Iterator[Step]]]] = {
    "healthy": healthy,
    "collapse": collapse,
}


def draw_counts(weights: list[float], tokens: int, top_k: int, rng: random.Random) -> list[int]:
    """Counts of one router for one step; they sum to ``tokens × top_k``, none above ``tokens``."""
    shares = inclusion_shares(weights, top_k)
    counts = []
    for share in shares:
        spread = math.sqrt(tokens * share * (1 - share))
        counts.append(min(tokens, max(0, round(rng.gauss(tokens * share, spread)))))
    missing = tokens * top_k - sum(counts)
    order = sorted((e for e, share in enumerate(shares) if share > 0), key=lambda e: -shares[e])
    while missing:
        for expert in order:  # the rounding error goes where there is room, popular ones first
            share = max(1, abs(missing) // len(order))
            if missing > 0:
                moved = min(share, missing, tokens - counts[expert])
            else:
                moved = -min(share, -missing, counts[expert])
            counts[expert] += moved
            missing -= moved
    return counts


def inclusion_shares(weights: list[float], top_k: int) -> list[float]:
    """Probability that a token chooses each expert: sums to k, each at most 1."""
    free = set(range(len(weights)))
    shares = [0.0] * len(weights)
    left = float(top_k)
    while free:
        total = math.fsum(weights[e] for e in free)
        full = {e for e in free if total <= 0 or left * weights[e] >= total}
        if not full or total <= 0:
            for expert in free:
                shares[expert] = left * weights[expert] / total if total > 0 else left / len(free)
            break
        for expert in full:
            shares[expert] = 1.0
        free -= full
        left -= len(full)
    return shares


def _settling(shape: Shape, rng: random.Random) -> Weights:
    """Popularity that starts spread out and is evened out by the balancing."""
    skill = [[rng.gauss(0, 1) for _ in range(shape.num_experts)] for _ in range(shape.routers)]

    def weights(router: int, step: int) -> list[float]:
        spread = 0.08 + 0.9 * math.exp(-step / 25)
        return [math.exp(spread * s + rng.gauss(0, 0.04)) for s in skill[router]]

    return weights


def _steps(shape: Shape, rng: random.Random, weights: Weights) -> Iterator[Step]:
    bias = [[0.0] * shape.num_experts for _ in range(shape.routers)]
    for step in range(1, shape.steps + 1):
        counts = [
            draw_counts(weights(router, step), shape.tokens, shape.top_k, rng)
            for router in range(shape.routers)
        ]
        progress = step / shape.steps
        entropies = [_entropy(row, progress, rng) for row in counts]
        router = {
            "entropy": [entropy for entropy, _ in entropies],
            "mean_entropy": [mean for _, mean in entropies],
            "z_loss": [abs(rng.gauss(0.8, 0.02)) for _ in counts],
            "max_logit": [abs(rng.gauss(3.1, 0.1)) for _ in counts],
            "grad_norm": [abs(rng.gauss(0.02, 0.002)) for _ in counts],
            "selected_mass": [min(1.0, abs(rng.gauss(0.6, 0.01))) for _ in counts],
            "margin": [abs(rng.gauss(0.04, 0.002)) for _ in counts],
        }
        if shape.capacity_factor is not None:
            capacity = shape.capacity_factor * shape.tokens * shape.top_k / shape.num_experts
            router["drop_rate"] = [
                sum(max(0.0, n - capacity) for n in row) / max(1, sum(row)) for row in counts
            ]
        yield Step(
            step=step,
            loss=1.4 + 3.0 * math.exp(-4 * progress) + rng.gauss(0, 0.02),
            tokens=shape.tokens,
            tokens_per_expert=counts,
            expert_bias=[list(row) for row in bias],
            router=router,
            learning_rate=1e-3 * min(1.0, step / 100) * 0.5 * (1 + math.cos(math.pi * progress)),
            grad_norm=abs(rng.gauss(0.9, 0.1)),
        )
        for row, biases in zip(counts, bias, strict=True):
            fair = sum(row) / len(row)
            for expert, count in enumerate(row):
                biases[expert] += BIAS_UPDATE_RATE * ((count < fair) - (count > fair))


def _entropy(counts: list[int], progress: float, rng: random.Random) -> tuple[float, float]:
    """Token entropy that falls as the router learns, below the entropy of the mean."""
    total = sum(counts)
    mean = -math.fsum(n / total * math.log(n / total) for n in counts if n)
    confidence = 0.97 - 0.3 * min(1.0, progress * 3)
    return min(mean, max(0.0, mean * confidence + rng.gauss(0, 0.005))), mean
