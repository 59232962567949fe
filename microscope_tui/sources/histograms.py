"""Histograms of the experts that tokens chose, and when they are counts.

Only the edges of a histogram prove that each of its bins is one expert. Two forms do: edges one
apart, as a trainer gives them (``arange(17)``, ``arange(17) - 0.5``; TensorBoard cuts empty ends),
and the bins of ``Histogram(ids)`` as long as experts 0 to E - 1 are all in use: E bins from 0 to
E - 1. If an expert at an end has no tokens, the same call has bins that hold two experts, or none.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

_MOST_BINS = 65_536
_OFF = 1e-6  # edges as 32-bit floats
_FEW = 8
"""A histogram of the loads of 512 experts in 64 bins holds 8 values per bin."""


_COLUMN = re.compile(r"(?:moe[ _]?)?(layer|expert)s?(?:[ _]?(?:id|idx|index))?", re.IGNORECASE)


class NotChoices(ValueError):
    """The bins are not one expert each; the message is the reason."""


def kind_of(value: Mapping[str, object]) -> str:
    """``histogram`` or ``table``, as W&B and Trackio write them, or nothing."""
    kind = str(value.get("_type", "")).removeprefix("trackio.").removesuffix("-file")
    return kind if kind in ("histogram", "table") else ""


def choices(
    edges: Sequence[float], counts: Sequence[float], largest: float | None = None
) -> list[int]:
    """How many tokens chose expert 0, 1, …, from the histogram of one step.

    Args:
        edges: of the bins, one more than there are ``counts``.
        largest: the largest value, if the writer has it, which is in the last bin. That includes
            its right edge: if it is a whole number, only the largest value shows whether the bin
            holds one expert.

    Raises:
        NotChoices: the edges do not prove that each bin is one expert.
    """
    bins = len(counts)
    if not 0 < bins <= _MOST_BINS or len(edges) != bins + 1:
        raise NotChoices(f"{len(edges):,} edges for {bins:,} bins: log a list")
    if not set(map(type, (*edges, *counts))) <= {int, float}:
        raise NotChoices(f"histogram of {bins:,} bins with other than numbers: log a list")
    if not all(abs(edge) <= _MOST_BINS for edge in edges):
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
    last = math.ceil(edges[-2])
    if largest is not None and last != largest // 1:
        raise NotChoices(
            f"histogram of {bins:,} bins, the last of expert {last}, but the largest value is "
            f"{largest:g}: log a list"
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


def cells(table: Mapping[str, Any]) -> dict[str, object]:
    """The numbers of a table with columns for layer and expert, by ``column/layer_3/expert_7``.

    W&B writes ``columns`` and ``data``, Trackio a list of rows by column.
    """
    rows = table.get("_value")
    columns, data = table.get("columns"), table.get("data")
    if isinstance(columns, list) and isinstance(data, list):
        names = list(map(str, columns))
        rows = [dict(zip(names, row, strict=False)) for row in data if isinstance(row, list)]
    found: dict[str, object] = {}
    for row in rows if isinstance(rows, list) else ():
        place: dict[str, object] = {}
        for name, value in row.items() if isinstance(row, dict) else ():
            if match := _COLUMN.fullmatch(name):
                place[match[1].lower()] = value
        if len(place) == 2:
            after = f"layer_{place['layer']}/expert_{place['expert']}"
            found |= {f"{name}/{after}": row[name] for name in row if not _COLUMN.fullmatch(name)}
    if not found:
        raise NotChoices("table without columns for layer, expert and a value: log a list")
    return found
