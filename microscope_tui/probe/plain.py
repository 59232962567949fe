"""A trainer's numbers as the log holds them: Python's own types, compact rows, few digits.

Whatever converts to Python's numbers is taken: lists, arrays and scalars of numpy and torch.
"""

import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from microscope_tui import measures

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


def encoded_means(rows: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
    """Rows of means for the line; no value for an expert that no token chose."""
    return [[rounded(plain(mean), 4) for mean in row] for row in rows]


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


def _summaries(counts: Sequence["array[int] | None"]) -> dict[str, list[float | None]]:
    """What follows from the counts; no value for a router that was not counted."""
    known = measures.summarise([row for row in counts if row is not None])
    if all(row is not None for row in counts):
        return known
    rest = {name: iter(values) for name, values in known.items()}
    return {
        name: [None if row is None else next(values) for row in counts]
        for name, values in rest.items()
    }


def router_object(
    readings: Mapping[str, Any], counts: Sequence["array[int] | None"], depths: Sequence[int]
) -> dict[str, list[float | None]]:
    """The line's ``router``: what the trainer read, and what follows from the counts."""
    read = {name: plain(one_per_router(name, row, depths)) for name, row in readings.items()}
    summaries = {**read, **_summaries(counts)}
    return {name: [rounded(value) for value in row] for name, row in summaries.items()}


def balances(counts: Sequence["array[int] | None"], top_k: Sequence[int]) -> list[float | None]:
    """The collapse index of every router; no value for one that was not counted."""
    return [
        None if row is None else measures.balance(row, k).collapse_index
        for row, k in zip(counts, top_k, strict=True)
    ]


def one_per_router(name: str, values: Any, depths: Sequence[int]) -> list[Any]:
    """``values`` as a list.

    Raises:
        ValueError: they are not one per router.
    """
    values = values.tolist() if hasattr(values, "tolist") else values
    if len(values) != len(depths):
        raise ValueError(
            f"{name} has {len(values)} entries and the model has {len(depths)} routers "
            f"(in layers {depths}): hand over one per router, in forward order"
        )
    return list(values)


def matrix(
    name: str,
    rows: Any,
    convert: Callable[[Any], Sequence[Any]],
    depths: Sequence[int],
    num_experts: Sequence[int],
) -> list[Any]:
    """A compact copy of one row per router, so that the caller may reuse its own.

    Raises:
        ValueError: there is not one row per router, or not one entry per expert in it.
    """
    made = [
        None if row is None and convert is counts_row else convert(row)
        for row in one_per_router(name, rows, depths)
    ]
    for row, depth, experts in zip(made, depths, num_experts, strict=True):
        if row is not None and len(row) != experts and (row or convert is counts_row):
            raise ValueError(
                f"{name} has {len(row)} entries for the router in layer {depth}, which has "
                f"{experts} experts: hand over one per expert"
            )
    return made
