"""Health of all routers in two curves: the lowest balance and the highest load.

A run is as healthy as its worst layer: columns have the worst of all routers, never their mean.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from microscope_tui.watch.curve import NAN, Column
from microscope_tui.watch.history import Curves, Window
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
        kinds: dict[tuple[int, int], list[int]] = {}
        for index, router in enumerate(routers):
            kinds.setdefault((router.num_experts, router.top_k), []).append(index)
        lowest = [
            [c.low for c in balance(_flat(_lowest(curves, members)), experts, top_k)]
            for (
                experts,
                top_k,
            ), members in kinds.items()  # of one kind the lowest stays the lowest
        ]
        highest = [
            [-math.inf if c.high != c.high else c.high for c in curves.of("max_load", index)]
            for index in range(len(routers))
        ]
    return RouterHealth(
        _flat(min(known, default=NAN) for known in map(_known, zip(*lowest, strict=True))),
        _flat(NAN if (most := max(x)) == -math.inf else most for x in zip(*highest, strict=True)),
    )


def _lowest(curves: Curves, routers: Sequence[int]) -> Iterable[float]:
    """The fewest effective experts of any of the routers, column by column."""
    series = [
        [math.inf if c.low != c.low else c.low for c in curves.of("effective_experts", index)]
        for index in routers
    ]
    return (NAN if (least := min(x)) == math.inf else least for x in zip(*series, strict=True))


def _known(values: Iterable[float]) -> list[float]:
    return [value for value in values if value == value]


def _flat(values: Iterable[float]) -> list[Column]:
    return [Column(value, value, value) for value in values]
