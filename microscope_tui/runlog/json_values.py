"""Values of a JSON object, field by field: a value of another type counts as missing."""

import math
from typing import Any

from microscope_tui.runlog.records import Values

MAX_INTEGER = 2**62
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def number(value: Any) -> float | None:
    """A JSON number or a non-finite name as float; anything else counts as missing."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        try:
            return float(value)
        except OverflowError:  # 10^400 arrives as an int
            return None
    return _NON_FINITE.get(value) if isinstance(value, str) else None


def integer(value: Any) -> int | None:
    """A finite JSON number without a fraction."""
    known = number(value)
    if known is None or not math.isfinite(known) or known != int(known):
        return None
    return int(value) if isinstance(value, int) else int(known)


def values_of(value: Any) -> Values | None:
    """A list of numbers, each of which may be no value."""
    return [number(item) for item in value] if isinstance(value, list) else None


def rows_of(value: Any, routers: int) -> list[Any]:
    """A row per router, ``None`` in all if there is another number of them."""
    return value if isinstance(value, list) and len(value) == routers else [None] * routers


def counts_of(row: Any) -> list[int] | None:
    """A row of counts; ``None`` if one of them is none."""
    if not isinstance(row, list) or not row:
        return None
    if set(map(type, row)) == {int}:  # nearly always: avoids checking every count
        return row if min(row) >= 0 and max(row) < MAX_INTEGER else None
    counts = [integer(item) for item in row]
    if any(count is None or not 0 <= count < MAX_INTEGER for count in counts):
        return None
    return counts  # type: ignore[return-value]  # no None is left


def floats_of(row: Any) -> list[float] | None:
    """A row of numbers; ``None`` if one of them is none."""
    if isinstance(row, list) and set(map(type, row)) == {float}:
        return row
    values = values_of(row)
    if not values or any(value is None for value in values):
        return None
    return values  # type: ignore[return-value]  # no None is left
