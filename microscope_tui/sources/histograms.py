"""Histograms of the experts that tokens chose, and when they are counts.

Only the edges of a histogram prove that each of its bins is one expert. Two forms do: edges one
apart, as a trainer gives them (``arange(17)``, ``arange(17) - 0.5``; TensorBoard cuts empty ends),
and the bins of ``Histogram(ids)`` as long as experts 0 to E - 1 are all in use: E bins from 0 to
E - 1. If an expert at an end has no tokens, the same call has bins that hold two experts, or none.
"""

import math
from collections.abc import Sequence

from microscope_tui.sources.keys import MAX_EXPERTS

_OFF = 1e-6  # edges as 32-bit floats
_FEW = 8
"""A histogram of the loads of 512 experts in 64 bins holds 8 values per bin."""


class NotChoices(ValueError):
    """The bins are not one expert each; the message is the reason."""


def choices(
    edges: Sequence[float], counts: Sequence[float], largest: float | None = None
) -> list[int]:
    """How many tokens chose expert 0, 1, …, from the histogram of one step.

    Args:
        edges: of the bins, one more than there are ``counts``.
        largest: the largest value, if the writer has it. The last bin includes its right edge: if
            that is a whole number, only the largest value shows whether the bin holds one expert.

    Raises:
        NotChoices: the edges do not prove that each bin is one expert.
    """
    bins = len(counts)
    if not 0 < bins <= MAX_EXPERTS or len(edges) != bins + 1:
        raise NotChoices(f"{len(edges):,} edges for {bins:,} bins: log a list")
    if not all(abs(edge) <= MAX_EXPERTS for edge in edges):
        raise _of_values(bins)
    if not all(count >= 0 and count < 2**53 and count == int(count) for count in counts):
        raise NotChoices(f"histogram of {bins:,} bins without whole counts: log a list")
    total = sum(counts)
    may_follow_values = not _are_given(edges, largest)  # their range may be that of the values
    if total == bins or (may_follow_values and total <= _FEW * bins):
        raise _of_values(bins)
    if may_follow_values and not _is_one_each(edges):
        low, high = edges[0], edges[-1]
        if low != int(low) or high != int(high) or high - low <= 1:
            raise _of_values(bins)
        raise NotChoices(
            f"histogram of {bins:,} bins from {low:.0f} to {high:.0f}, "
            "not one for each expert: log a list"
        )
    return [0] * math.ceil(edges[0]) + [int(count) for count in counts]


def _of_values(bins: int) -> NotChoices:
    return NotChoices(f"histogram of {bins:,} bins of values, not counts: log a list")


def _are_given(edges: Sequence[float], largest: float | None) -> bool:
    """Whether the edges are one apart, and do not follow from the values.

    Those that follow from the values begin and end at whole numbers, with values on both.
    """
    first = math.ceil(edges[0])
    ends_open = edges[-1] % 1 != 0 or (largest is not None and largest < edges[-1])
    return ends_open and first >= 0 and _are_apart(edges, 1.0) and _hold(edges, first)


def _is_one_each(edges: Sequence[float]) -> bool:
    """Whether the bins are those of experts from 0 on, if their range is that of the values."""
    bins = len(edges) - 1
    if edges[0] != 0:
        return False
    if edges[-1] == bins - 1:
        return _are_apart(edges, 1 - 1 / bins) and _hold(edges[:-1], 0)
    return edges[-1] == bins and _are_apart(edges, 1.0) and _hold(edges, 0)


def _are_apart(edges: Sequence[float], width: float) -> bool:
    start = edges[0]
    return all(abs(edge - start - place * width) <= _OFF for place, edge in enumerate(edges))


def _hold(edges: Sequence[float], first: int) -> bool:
    """Whether the bins that begin at these edges hold ``first``, and the numbers after it."""
    return all(math.ceil(edge) == expert for expert, edge in enumerate(edges, first))
