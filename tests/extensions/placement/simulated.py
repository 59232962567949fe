"""Runs with known loads, as counts in memory."""

from array import array

import numpy as np
from numpy.typing import NDArray

from microscope_tui.runlog import RouterInfo, RunRecord
from microscope_tui.watch.counted import Counts, Layer

Loads = NDArray[np.float64]


def counts_of(loads: Loads, every: int = 1, **header: object) -> Counts:
    """Counts ``[steps, layers, experts]`` as those of a run that logged each ``every``-th step."""
    number, layers, experts = loads.shape
    routers = tuple(RouterInfo(f"L{depth}", depth, experts, 1) for depth in range(layers))
    run = RunRecord("run", routers, **header)  # type: ignore[arg-type]
    kept = [Layer(r, array("f", loads[:, r.depth].ravel().tolist())) for r in routers]
    return Counts(run, array("q", range(every, every * number + 1, every)), kept, 1)


def popularity(rng: np.random.Generator, layers: int, experts: int, spread: float = 0.6) -> Loads:
    """Shares of the experts, as uneven as in models that are served."""
    shares = np.exp(rng.normal(0, spread, (layers, experts)))
    normed: Loads = shares / shares.sum(-1, keepdims=True)
    return normed


def drawn(rng: np.random.Generator, shares: Loads, steps: int, pairs: int = 20_000) -> Loads:
    return rng.poisson(pairs * shares, (steps, *shares.shape)).astype(float)


def balancedness(loads: Loads, placements: list[list[list[int]]]) -> float:
    """Of the model, a mean over the steps, by the formula: Σ mean ÷ Σ max."""
    steps, layers, experts = loads.shape
    means, maxima = np.zeros(steps), np.zeros(steps)
    for layer in range(layers):
        held = np.array([[rank.count(e) for e in range(experts)] for rank in placements[layer]])
        ranks = loads[:, layer] @ (held / held.sum(0)).T
        means, maxima = means + ranks.mean(1), maxima + ranks.max(1)
    return float((means / maxima).mean())
