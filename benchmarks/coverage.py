"""Whether ``coverage`` predicts the further tokens that an expert really needs.

    python -m benchmarks.coverage [--calibrations 1000] [--wanted 1000] [--seed 0]

Every calibration has one expert with a share between 1 / 5,000 and 1 / 20 and a number of tokens
that gives it 0.05 to 0.95 of the wanted hits on average. More tokens are drawn until the expert has
them. It fails if the share of numbers within their interval is below 95 % by more than the chance
of the draws explains (one in a hundred). The last row shows what the interval does not cover:
tokens that come in sequences of 128, where the share differs from sequence to sequence with a
coefficient of variation of 1.
"""

import math

import numpy as np

from benchmarks.machine import options_of
from microscope_tui.extensions.anatomy.coverage import further

SEQUENCE = 128
ONE_IN_A_HUNDRED = 2.33


def independent(
    rng: np.random.Generator, share: float, tokens: int, wanted: int
) -> tuple[int, int]:
    """Hits in ``tokens`` tokens, and the further tokens until there are ``wanted`` hits."""
    seen = int(rng.binomial(tokens, share))
    missing = max(0, wanted - seen)
    return seen, missing + int(rng.negative_binomial(missing, share)) if missing else 0


def clustered(rng: np.random.Generator, share: float, tokens: int, wanted: int) -> tuple[int, int]:
    """The same mean share, exponentially distributed over the sequences."""
    seen = int(_hits(rng, share, tokens // SEQUENCE).sum())
    missing, more = wanted - seen, 0
    while missing > 0:
        hits = _hits(rng, share, max(64, math.ceil(missing / share / SEQUENCE / 2)))
        reached = np.flatnonzero(hits.cumsum() >= missing)
        if len(reached):
            return seen, more + int(reached[0]) * SEQUENCE + SEQUENCE // 2
        missing, more = missing - int(hits.sum()), more + len(hits) * SEQUENCE
    return seen, 0


def _hits(rng: np.random.Generator, share: float, sequences: int) -> np.ndarray:
    return rng.binomial(SEQUENCE, np.minimum(1.0, rng.exponential(share, sequences)))


def covered(calibrations: int, wanted: int, seed: int, *, together: bool = False) -> float:
    """Share of the calibrations whose prediction holds."""
    rng, results = np.random.default_rng(seed), list[bool]()
    while len(results) < calibrations:
        share = math.exp(rng.uniform(math.log(1 / 5_000), math.log(1 / 20)))
        tokens = max(SEQUENCE, round(rng.uniform(0.05, 0.95) * wanted / share))
        seen, more = (clustered if together else independent)(rng, share, tokens, wanted)
        need = further(seen, tokens, wanted)
        if need is not None:
            results.append(need.low <= more <= (math.inf if need.high is None else need.high))
    return sum(results) / len(results)


def main() -> int:
    """Measure and print a Markdown table; 1 if the interval does not keep its promise."""
    options = options_of(__doc__, calibrations=1000, wanted=1000, seed=0)
    sizes = (options.calibrations, options.wanted, options.seed)
    print(f"{options.calibrations:,} calibrations, {options.wanted:,} tokens wanted\n")
    print("| tokens | within the interval |\n|---|---|")
    alone = covered(*sizes)
    print(f"| independent | {alone:.1%} |", flush=True)
    print(f"| in sequences of one subject | {covered(*sizes, together=True):.1%} |")
    chance = ONE_IN_A_HUNDRED * math.sqrt(0.95 * 0.05 / options.calibrations)
    return int(alone < 0.95 - chance)


if __name__ == "__main__":
    raise SystemExit(main())
