"""A trainer's numbers as the log holds them: Python's own types, compact rows, few digits.

Whatever converts to Python's numbers is taken: lists, arrays and scalars of numpy and torch.
"""

import math
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

_BIAS_FORMAT = "%.4g"


def counts_row(row: Sequence[int]) -> "array[int]":
    """A compact copy of one router's counts."""
    try:
        return array("q", row)  # whatever is an integer, numpy's included
    except TypeError:  # counts that were summed as float64
        return array("q", [int(count) for count in row])


def bias_row(row: Sequence[float] | None) -> "array[float]":
    """A compact copy of one router's biases; empty for a router without any."""
    return array("d", () if row is None else row)


def encoded_biases(row: "array[float]") -> msgspec.Raw | list[float | None]:
    """A row of biases as it stands in the line: most of its bytes, so one format makes them."""
    if not all(map(math.isfinite, row)):
        return [rounded(bias, 4) for bias in row]
    text = ",".join([_BIAS_FORMAT] * len(row)) % tuple(row)
    return msgspec.Raw(f"[{text}]".encode())


def read_biases(row: "array[float]") -> list[float]:
    """What a reader finds in the line in place of ``row``."""
    return [float(_BIAS_FORMAT % bias) for bias in row]


def per_router(value: int | Sequence[int], routers: int) -> list[int]:
    """One entry per router of what may be one number for all."""
    return [value] * routers if isinstance(value, int) else list(value)


def plain(value: Any) -> Any:
    """A copy in Python's own types; what JSON cannot hold becomes its text."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numbers and arrays of numpy and torch
        return plain(value.tolist())
    return str(value)


def rounded(value: float | None, digits: int = 5) -> float | None:
    """``digits`` significant digits: half the bytes, and more than any screen shows."""
    return value if value is None or isinstance(value, int) else float(f"{value:.{digits}g}")
