"""Histograms of the experts that tokens chose, and tables of their loads.

Only its edges prove that each bin of a histogram is one expert. Those of a trainer are one apart:
``arange(17)``, ``arange(17) - 0.5``; TensorBoard cuts empty ends. Those of ``Histogram(ids)`` span
the ids: E bins from 0 to E - 1, but if an end has no tokens they hold two experts, or none.
"""

import math
import re
from typing import Any

_MOST_BINS = 65_536
_FEW = 8
"""A histogram of the loads of 512 experts in 64 bins holds 8 values per bin."""
_COLUMN = re.compile(r"(?:moe[ _]?)?(layer|expert)s?(?:[ _]?(?:id|idx|index))?", re.IGNORECASE)


class NotChoices(ValueError):
    """The bins are not one expert each; the message is the reason."""


def choices(edges: Any, counts: Any, largest: float = math.inf) -> list[int]:
    """How many tokens chose expert 0, 1, …, from the lists of a histogram, or ``NotChoices``.

    ``largest``, the largest value if that is known, is in the last bin, which includes its right
    edge: without it two whole numbers may be in there.
    """
    _check_numbers(edges, counts)
    bins, total = len(counts), sum(counts)
    low, high = edges[0], edges[-1]
    first = math.ceil(low)
    experts = [*range(first, first + bins)]
    holds = list(map(math.ceil, edges[:-1])) == experts and largest in (math.inf, experts[-1])
    # Edges that span the values begin and end at whole numbers.
    given = holds and abs(high - low - bins) < 1e-6 and (high % 1 != 0 or largest < high)
    spans = holds and low == 0 and high == bins - 1
    few = total <= bins * (1 if given else _FEW)
    if first >= 0 and (given or spans) and not few:
        return [0] * first + [int(count) for count in counts]
    why = f"from {low:g} to {high:g}, not one for each expert"
    if few or [low, high] != [round(low), round(high)]:
        why = "of values, not counts"
    elif high == bins:
        why += " unless --num-experts is given"
    raise NotChoices(f"histogram of {bins:,} bins {why}: log a list")


def _check_numbers(edges: Any, counts: Any) -> None:
    valid = isinstance(edges, list) and isinstance(counts, list)
    if not valid or not 0 < len(counts) <= _MOST_BINS or len(edges) != len(counts) + 1:
        raise NotChoices("histogram without an edge at both ends of each bin: log a list")
    is_numbers = set(map(type, (*edges, *counts))) <= {int, float}
    if not is_numbers or not all(0 <= one < 2**53 and one == int(one) for one in counts):
        raise NotChoices("histogram without whole counts: log a list")
    if not all(abs(edge) <= _MOST_BINS for edge in edges):
        raise NotChoices("histogram of values beyond 65,536, not counts: log a list")


def cells(table: dict[str, Any]) -> dict[str, object]:
    """The numbers of a table with columns for layer and expert, by ``column/layer_3/expert_7``.

    W&B writes ``columns`` and ``data``, Trackio a list of rows by column.
    """
    names, data, rows = table.get("columns"), table.get("data"), table.get("_value")
    if isinstance(names, list) and isinstance(data, list):
        names = list(map(str, names))
        rows = [dict(zip(names, row, strict=False)) for row in data if isinstance(row, list)]
    found: dict[str, object] = {}
    for row in rows if isinstance(rows, list) else ():
        columns = {name: _COLUMN.fullmatch(name) for name in row} if isinstance(row, dict) else {}
        place = {match[1].lower(): row[name] for name, match in columns.items() if match}
        if len(place) == 2:
            after = f"layer_{place['layer']}/expert_{place['expert']}"
            found |= {f"{name}/{after}": row[name] for name in columns if not columns[name]}
    return found
