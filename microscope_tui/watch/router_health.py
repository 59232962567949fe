"""The health of all routers in one curve each: the lowest balance and the highest load there is.

A run is as healthy as its worst layer: columns hold the worst of all routers, never their mean.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from microscope_tui.watch.curve import NAN, Column
from microscope_tui.watch.curves import Curves, Window
from microscope_tui.watch.run_watch import RunWatch
from microscope_tui.watch.summaries import balance


@dataclass(frozen=True, slots=True)
class RouterHealth:
    """The worst router of every column."""

    balance: Sequence[Column]
    """The lowest collapse index c of all routers."""
    max_load: Sequence[Column]
    """The highest load of any expert of any router."""


def router_health(watch: RunWatch, columns: int, window: Window) -> RouterHealth:
    """The worst router of every column of ``window``."""
    with watch.lock:
        routers = watch.run.routers if watch.run is not None else ()
        curves = Curves(watch.history, columns, window)
        lowest: Sequence[Column] = ()
        highest: Sequence[Column] = ()
        for index, router in enumerate(routers):
            effective = curves.of("effective_experts", index)
            c = balance(effective, router.num_experts, router.top_k)
            lowest = _worst(lowest, c, min)
            highest = _worst(highest, curves.of("max_load", index), max)
    return RouterHealth(lowest, highest)


def _worst(
    before: Sequence[Column], columns: Sequence[Column], of: Callable[[float, float], float]
) -> Sequence[Column]:
    """Column by column the worse one; NaN is no value."""
    if not before:
        return columns

    def worse(a: float, b: float) -> float:
        return NAN if a != a and b != b else b if a != a else a if b != b else of(a, b)

    return [
        Column(worse(a.low, b.low), worse(a.mean, b.mean), worse(a.high, b.high))
        for a, b in zip(before, columns, strict=True)
    ]
