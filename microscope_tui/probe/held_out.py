"""Which experts take which held-out text: the counts of each source, and their noise.

Shapes: N sequences or pieces of text, L routers, E experts. Shuffling uses a fixed seed.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from microscope_tui.measures import FEWEST_EXPECTED

Array = npt.NDArray[Any]
SEED = 0
SHUFFLES = 100


def ratios_of_pieces(counts_PE: Array, slices_P: Array, num_slices: int) -> list[Array]:
    """As ``shuffled_ratios``, from the pairs of every piece of text and expert."""
    counts_PE = counts_PE.astype(np.float64)
    overall_E = counts_PE.sum(axis=0)
    found: list[list[Array]] = [[] for _ in range(num_slices)]
    random = np.random.default_rng(SEED)
    for _ in range(SHUFFLES if len(slices_P) else 0):
        shuffled_P = random.permutation(slices_P)
        for place in range(num_slices):
            row_E = counts_PE[shuffled_P == place].sum(axis=0)
            expected_E = row_E.sum() * overall_E / max(1.0, overall_E.sum())
            often_E = expected_E >= FEWEST_EXPECTED
            ratio_E = np.maximum(row_E[often_E], 0.5) / expected_E[often_E]
            found[place].append(np.abs(np.log2(ratio_E)))
    return [np.concatenate([np.zeros(0), *rows]) for rows in found]


def noise_level(ratios: Array) -> float:
    """The 99 % point of ``shuffled_ratios``: chance rarely gives more. 0 without any."""
    return float(np.quantile(ratios, 0.99)) if len(ratios) else 0.0


def held_out_slices(names: Sequence[str], rows: Sequence[int], counts_NLE: Array) -> dict[str, Any]:
    """``slices`` of an event ``eval``: ``counts_NLE`` are the pairs per sequence, router, expert;
    the first ``rows[0]`` sequences are of the first source, and so on."""
    slices_N = np.repeat(np.arange(len(names)), rows)
    layers = counts_NLE.transpose(1, 0, 2)
    ratios = [ratios_of_pieces(counts_NE, slices_N, len(names)) for counts_NE in layers]
    return {
        "names": list(names),
        "counts": [
            counts_NLE[slices_N == place].sum(axis=0).tolist() for place in range(len(names))
        ],
        "noise": [noise_level(np.concatenate(own)) for own in zip(*ratios, strict=True)],
    }
