"""How many more tokens an expert needs until it has seen a wanted number, with a 95 % interval.

The expert has n hits in T tokens. If tokens are independent, the first N − 1 of its N hits are
spread evenly over the T + M tokens that it takes to reach N, so the share of them that falls into
the first T tokens is T / (T + M), and n of N − 1 measures that share. Its interval is that of a
proportion: the score interval of Wilson (1927) with continuity correction (Newcombe 1998, Stat.
Med. 17:857-872, method 4). So the interval holds for the number of tokens that will really be
needed, not only for its mean. Without a hit there is only a lower limit: the rule of three.
"""

import math
from dataclasses import dataclass

_Z = 1.959963984540054
_Z2 = _Z * _Z
_NEVER_SEEN = 0.05
"""Chance of no hit at the limit: with ln 20 ≈ 3 in the exponent, the rule of three."""


@dataclass(frozen=True, slots=True)
class Need:
    """Further tokens that one expert needs."""

    tokens: float | None
    """Estimate from the measured share; ``None`` without a hit."""
    low: float
    """Lower end of the interval; without a hit, a one-sided limit of 95 %."""
    high: float | None
    """Upper end; ``None`` without a hit: it may never be reached."""


def further(hits: int, tokens: int, wanted: int) -> Need | None:
    """What is missing after ``hits`` in ``tokens`` tokens; ``None`` if ``wanted`` is reached.

    Raises:
        ValueError: more hits than tokens, or a negative number.
    """
    if not 0 <= hits <= tokens:
        raise ValueError(f"{hits:,} hits in {tokens:,} tokens: expected 0 to {tokens:,}")
    missing = wanted - hits
    if missing <= 0:
        return None
    if hits == 0:
        limit = 1 - _NEVER_SEEN ** (1 / (wanted - 1)) if wanted > 1 else 1.0
        return Need(None, max(float(missing), tokens * (1 - limit) / limit), None)
    least, most = score_interval(hits, wanted - 1)
    low, high = (tokens * (1 - share) / share for share in (most, least))
    return Need(missing * tokens / hits, max(float(missing), low), max(float(missing), high))


def score_interval(hits: int, of: int) -> tuple[float, float]:
    """95 % interval of a proportion: Wilson's score with continuity correction.

    Args:
        hits: 0 to ``of``.
        of: at least 1.
    """
    share = hits / of
    scale = 2 * (of + _Z2)
    middle = 2 * hits + _Z2
    low, high = 0.0, 1.0
    if hits:
        root = _Z2 - 2 - 1 / of + 4 * share * (of * (1 - share) + 1)
        low = max(0.0, (middle - 1 - _Z * math.sqrt(root)) / scale)
    if hits < of:
        root = _Z2 + 2 - 1 / of + 4 * share * (of * (1 - share) - 1)
        high = min(1.0, (middle + 1 + _Z * math.sqrt(max(0.0, root))) / scale)
    return low, high
