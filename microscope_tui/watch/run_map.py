"""The map of a run: the worst value of every layer in every column of time."""

import math
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from microscope_tui.watch.history import Column, Curves, Window
from microscope_tui.watch.run_watch import RunWatch
from microscope_tui.watch.scan import judged_lows


class Quantity(StrEnum):
    """What a map of the run can show."""

    BALANCE = "balance c"
    LOAD = "max load"
    ENTROPY = "entropy H"
    DROPS = "dropped"

    @property
    def low_is_bad(self) -> bool:
        """Whether the lowest value of a column is its worst; else the highest."""
        return self in (Quantity.BALANCE, Quantity.ENTROPY)


_SERIES = {
    Quantity.BALANCE: "effective_experts",
    Quantity.LOAD: "max_load",
    Quantity.ENTROPY: "entropy",
    Quantity.DROPS: "drop_rate",
}


class RunMap(msgspec.Struct, frozen=True):
    """Layers by columns of time."""

    axis: Sequence[int]
    """First step of each column."""
    rows: Sequence[Sequence[float]]
    """Of every layer its worst value in each column; NaN where none was logged."""

    @property
    def measured(self) -> bool:
        """Whether there is any value at all."""
        return any(value == value for row in self.rows for value in row)


def run_map(watch: RunWatch, quantity: Quantity, columns: int, window: Window) -> RunMap:
    """At most ``columns`` of the steps in ``window``. It takes the lock.

    The balance is the collapse index as it is judged.
    """
    with watch.lock:
        curves = Curves(watch.history, columns, window)
        axis = curves.axis()
        rows = []
        for index, router in enumerate(watch.routers):
            found = curves.of(_SERIES[quantity], index)
            if quantity is Quantity.BALANCE:
                values = judged_lows(found, curves.of("max_load", index), axis, router)
            elif quantity.low_is_bad:
                values = [column.low for column in found]
            else:
                values = [column.high for column in found]
            rows.append(list(map(_finite, values)))
        return RunMap(axis, rows)


def worst_of_layers(
    watch: RunWatch, quantity: Quantity, columns: int, window: Window
) -> list[Column]:
    """The rows of ``run_map`` in one: in each column the worst layer, as a curve; NaN without
    one.
    """
    rows = run_map(watch, quantity, columns, window).rows
    known = ([x for x in values if x == x] for values in zip(*rows, strict=True))
    if quantity.low_is_bad:
        found = [min(values, default=math.nan) for values in known]
    else:
        found = [max(values, default=math.nan) for values in known]
    return [Column(value, value, value) for value in found]


def _finite(value: float) -> float:
    if math.isfinite(value):
        return value
    return math.nan
