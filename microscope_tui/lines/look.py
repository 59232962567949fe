"""Display choices for loads: measure, order of the experts, colours."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeVar

_Choice = TypeVar("_Choice", bound=StrEnum)


class Palette(StrEnum):
    """Colours of the loads; only ``diverging`` is calm at the fair share."""

    DIVERGING = "diverging"
    VIRIDIS = "viridis"
    CIVIDIS = "cividis"
    GREY = "grey"


class Measure(StrEnum):
    """What a cell of the heatmap measures."""

    LOAD = "load"
    """Multiples of the fair share, on a log2 scale with a calm band around 1."""
    SHARE = "share"
    """Share of the tokens that chose the expert, linear."""
    LOG_SHARE = "log share"
    """The same, one level per octave."""
    BIAS = "bias"
    """The expert's bias, as the distance from the mean of its layer."""
    OVERFLOW = "over capacity"
    """Share of the tokens that chose the expert and found it full."""
    RANKS = "load per rank"
    """Load of the expert-parallel devices."""
    DIFFERENCE = "difference"
    """Load now as a multiple of the load at the reference."""


class Order(StrEnum):
    """Order of the experts in a layer."""

    ID = "id"
    LOAD = "load"
    GROUP = "group"
    """Overloaded, fair, starving, dead; by number within each: stable while loads fluctuate."""


SCALES = (Measure.LOAD, Measure.SHARE, Measure.LOG_SHARE)
OVERLAYS = (Measure.LOAD, Measure.BIAS, Measure.OVERFLOW, Measure.RANKS)


@dataclass(frozen=True, slots=True)
class Look:
    """The display choices of a session."""

    measure: Measure = Measure.LOAD
    order: Order = Order.ID
    palette: Palette = Palette.DIVERGING

    def next_scale(self) -> "Look":
        """Load, share, log share."""
        return replace(self, measure=_after(self.measure, SCALES))

    def next_overlay(self) -> "Look":
        """Load, bias, overflow, ranks."""
        return replace(self, measure=_after(self.measure, OVERLAYS))

    def next_order(self) -> "Look":
        """By number, by load, in groups."""
        return replace(self, order=_after(self.order, tuple(Order)))

    def next_palette(self) -> "Look":
        """The next palette."""
        return replace(self, palette=_after(self.palette, tuple(Palette)))

    def compared(self, on: bool) -> "Look":
        """With the reference, or without."""
        return replace(self, measure=Measure.DIFFERENCE if on else Measure.LOAD)


def _after(now: _Choice, choices: tuple[_Choice, ...]) -> _Choice:
    return choices[(choices.index(now) + 1) % len(choices)] if now in choices else choices[0]
