"""What the real writers log for the golden files, and what readers must make of it.

The numbers are exact in single precision, which TensorBoard's events hold.
"""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from microscope_tui.sources.reader import Row
from tests.sources.reading import Steps

GOLDEN = Path(__file__).parent / "golden"
STEPS = (10, 20, 30, 40)
CONFIG = {"model": {"num_experts": 4, "top_k": 2}, "secret": "not for us", "lr": 0.1}
Numbers = dict[int, dict[tuple[str, int | None, int | None], str]]


def logged(step: int) -> dict[str, float]:
    """The numbers of one step, by the names of torchtitan's forks, VeOmni and OLMo."""
    s = step // 10
    shares = [(8 + s) / 32, (8 - s) / 32, 0.25, 0.25]
    row = {f"moe_ep_usage/L-1_EP-{e}": share for e, share in enumerate(shares)}
    row |= {f"moe_ep_usage/L-2_EP-{e}": share for e, share in enumerate(shares[::-1])}
    row |= {"moe/max_vio/layer_1": s / 4, "loss": math.nan if s == 3 else 2 / 2**s}
    return row | {"train/block 02/load imbalance": 1.5, "unknown/number": 7.0}


def expected() -> Numbers:
    numbers: Numbers = {}
    for step in STEPS:
        row = logged(step)
        found = numbers.setdefault(step, {})
        for layer in (1, 2):
            for e in range(4):
                found["share", layer, e] = repr(row[f"moe_ep_usage/L-{layer}_EP-{e}"])
        found["max_vio", 1, None] = repr(row["moe/max_vio/layer_1"])
        found["max_load", 2, None] = repr(1.5)
        found["loss", None, None] = repr(row["loss"])
    return numbers


def numbers_of(rows: Iterable[Row]) -> Numbers:
    """Rows in a form that compares, NaN included; rows of a step are merged."""
    numbers: Numbers = {}
    for row in rows:
        of_step = numbers.setdefault(row.step, {})
        of_step.update({target[:3]: repr(value) for target, value in row.values})
    return numbers


def ids_of(experts: int, dead: int = 0, seed: int = 0) -> np.ndarray:
    """Experts that tokens chose: none of ``dead`` ones at both ends and, then, of one inside."""
    ids = np.random.default_rng(seed).integers(dead, experts - dead, 40 * experts)
    return np.where(ids == experts // 2, experts // 2 + 1, ids) if dead else ids


def chosen(experts: int, dead: int) -> tuple[list[list[np.ndarray]], Steps]:
    """Those of four steps of two layers, the second with dead ones; and their counts."""
    ids = [[ids_of(experts, at * dead, step) for at in range(2)] for step in range(1, 5)]
    counts = [[np.bincount(row, minlength=experts).tolist() for row in rows] for rows in ids]
    return ids, {
        step: dict(zip(("L0", "L1"), row, strict=True)) for step, row in enumerate(counts, 1)
    }
