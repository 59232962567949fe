"""The heatmap: display choices, levels of cells, legend.

All measures (load, ranks, bias, difference) are ratios on a log2 scale around a fair value of 1. If
several experts share a cell it shows two values, the highest above and the lowest below, never the
mean.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from enum import StrEnum
from itertools import groupby
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from microscope_tui.draw.glyphs import Glyphs, ends_of, load_glyph, load_mark, loudest, shade_level
from microscope_tui.draw.spans import Line, Span, line_width, merged, pad
from microscope_tui.runlog import RunRecord
from microscope_tui.watch import LayerView, Reference

Levels = Callable[[Hashable, Sequence[float], int], Sequence[int | None]]
"""Ratios to quarter octaves, for cells of so many experts; the key is for one with a state."""
_Pair = tuple[int | None, int | None]
"""The highest and the lowest level of a cell."""
Sample = tuple[Sequence[int | _Pair | None], str]
"""The levels of neighbouring cells of the legend, and their meaning."""

_Value = TypeVar("_Value")
HALVES = "▀"
"""A cell with two colours: that of the highest value above that of the lowest."""
_ASSUMED_RANKS = 8
FULL_BIAS = 0.25
"""The strongest colour: a quarter of the range of sigmoid scores."""


class Palette(StrEnum):
    """Colours of the loads; only ``diverging`` is calm at the fair share."""

    DIVERGING = "diverging"
    CIVIDIS = "cividis"


class Measure(StrEnum):
    LOAD = "load"
    """Multiples of the fair share, on a log2 scale."""
    BIAS = "bias"
    """The distance from the mean of its layer."""
    RANKS = "load per rank"
    DIFFERENCE = "difference"
    """Load now as a multiple of the load at the reference."""


class Order(StrEnum):
    ID = "id"
    LOAD = "load"


_CHOICES = {
    "overlay": ("measure", (Measure.LOAD, Measure.BIAS, Measure.RANKS)),
    "order": ("order", tuple(Order)),
    "palette": ("palette", tuple(Palette)),
}


def after(now: object, choices: Sequence[_Value]) -> _Value:
    """The choice after ``now``; the first after the last, and after none of them."""
    at = choices.index(now) + 1 if now in choices else 0
    return choices[at % len(choices)]


class Look(msgspec.Struct, frozen=True):
    """The display choices of the user, kept for the next session."""

    measure: Measure = Measure.LOAD
    order: Order = Order.ID
    palette: Palette = Palette.DIVERGING

    def next(self, what: str) -> "Look":
        """With the next choice of ``overlay``, ``order`` or ``palette``."""
        name, choices = _CHOICES[what]
        changed: dict[str, Any] = {name: after(getattr(self, name), choices)}
        return replace(self, **changed)

    def compared(self, on: bool) -> "Look":
        """Switch the difference from a reference on, or off to the plain load."""
        return replace(self, measure=Measure.DIFFERENCE if on else Measure.LOAD)


def exact_levels(key: Hashable, ratios: Sequence[float], per_cell: int = 1) -> Sequence[int | None]:
    """Without a state: the same ratios always have the same levels."""
    return [shade_level(ratio, per_cell) for ratio in ratios]


class Heat(msgspec.Struct, frozen=True):
    """What the cells of a heatmap depend on, besides the layer."""

    look: Look = msgspec.field(default_factory=Look)
    run: RunRecord | None = None
    reference: Reference | None = None
    """The step to compare with, if any."""
    colour: bool = True
    """Without it, cells are characters."""
    levels: Levels = exact_levels
    """How ratios become levels; by default exactly, on a screen with hysteresis."""
    given_ranks: int | None = None
    """Ranks of expert parallelism by ``--ranks``; ``None``: those of the header."""
    glyphs: Glyphs = Glyphs.BRAILLE

    @property
    def halves(self) -> bool:
        """Whether one character can show two values."""
        return self.colour and self.glyphs is not Glyphs.ASCII

    @property
    def known_ranks(self) -> int:
        """Ranks of expert parallelism as given or logged; 0 if unknown."""
        if self.given_ranks or self.run is None:
            return self.given_ranks or 0
        size = self.run.expert_parallel_size
        return size if size > 1 else 0

    @property
    def ranks(self) -> int:
        """Of expert parallelism; assumed if they are unknown."""
        return self.known_ranks or _ASSUMED_RANKS

    def reference_load(self, layer: LayerView) -> Sequence[float] | None:
        """The load of this layer at the reference; ``None`` without one, or if it has other
        experts.
        """
        if self.reference is None:
            return None
        return self.reference.load_of(layer.index, layer.router.num_experts)


def order_of(layer: LayerView, order: Order) -> Sequence[int]:
    """Experts from left to right; empty without counts."""
    load = layer.load or ()
    if order is Order.ID or not load:
        return range(len(load))
    return sorted(range(len(load)), key=lambda e: (-load[e], e))


def cells_of(layer: LayerView, heat: Heat) -> Sequence[float] | str:
    """Of every expert or rank, in the chosen order; or why there are none."""
    load, measure = layer.load, heat.look.measure
    if not load:
        return "no counts"
    if measure is Measure.RANKS:
        experts, ranks = layer.router.num_experts, heat.ranks
        if experts % ranks:
            return f"{experts} experts do not divide by {ranks} ranks"
        size = len(load) // ranks  # neighbouring experts share a device
        means = [sum(load[at : at + size]) / size for at in range(0, size * ranks, size)]
        return [mean**2.5 for mean in means]  # hot from 1.5 on, as for OVERLOAD
    values = _ratios(layer, load, heat)
    if isinstance(values, str):
        return values
    return [values[expert] for expert in order_of(layer, heat.look.order)]


def _ratios(layer: LayerView, load: Sequence[float], heat: Heat) -> Sequence[float] | str:
    bias = layer.bias
    match heat.look.measure:
        case Measure.BIAS:
            if not bias or len(bias) != len(load):
                return "no bias"
            mean = sum(bias) / len(bias)  # on the same scale in every layer
            if not math.isfinite(mean):
                return [1.0] * len(bias)
            away = [4.0 * (b - mean) / FULL_BIAS for b in bias]
            return [2.0 ** max(-4.0, min(4.0, octaves)) for octaves in away]
        case Measure.DIFFERENCE:
            if (then := heat.reference_load(layer)) is None:
                return "no reference"
            return [_ratio(now, before) for now, before in zip(load, then, strict=True)]
    return load


def _ratio(now: float, then: float) -> float:
    """1 if both are zero, 0 if now is zero, 16 if then was zero."""
    if now == then:
        return 1.0
    return now / then if then > 0 else 16.0


def heat_lines(
    key: Hashable,
    values: Sequence[float],
    heat: Heat,
    columns: int,
    cell: int,
    *,
    height: int = 1,
    chosen: int | None = None,
) -> list[Line]:
    """``height`` lines of at most ``columns`` cells, with the marks × and ▴ on the middle one.

    A cell of several experts has the highest value in the upper lines, the lowest in the lower
    ones, and both in a middle one. ``key``: as in ``Levels``; ``chosen``: position of the cursor.
    """
    per_cell = -(-len(values) // max(1, columns))
    pairs = _pairs(key, values, heat, per_cell)
    columns_of = {pair: _cell_lines(pair, heat, cell, height) for pair in set(pairs)}
    lines = [[columns_of[pair][at] for pair in pairs] for at in range(height)]
    if chosen is not None and chosen // per_cell < len(pairs):
        marked = lines[(height - 1) // 2]
        text = marked[chosen // per_cell].text
        marked[chosen // per_cell] = Span(text.replace(HALVES, " "), "cursor")
    return [merged(line) for line in lines]


def _pairs(key: Hashable, values: Sequence[float], heat: Heat, per_cell: int) -> list[_Pair]:
    # First the levels, then the extremes: they are steady as their experts are.
    levels = heat.levels(key, values, per_cell)
    return [ends_of(some) for some in _grouped(levels, per_cell)]


def _cell_lines(pair: _Pair, heat: Heat, cell: int, height: int) -> list[Span]:
    highest, lowest = pair
    upper, lower = height // 2, height - height // 2
    lines = [_one(highest, heat, cell)] * upper + [_one(lowest, heat, cell)] * lower
    middle = (height - 1) // 2
    if highest == lowest or height % 2 == 0:
        lines[middle] = _one(highest, heat, cell, marked=True)
    elif heat.halves:
        roles = f"{role_of_level(highest)}|{role_of_level(lowest)}"
        lines[middle] = Span(HALVES * cell, roles)
    else:
        lines[middle] = _one(loudest(highest, lowest), heat, cell, marked=True)
    return lines


def _one(level: int | None, heat: Heat, cell: int, *, marked: bool = False) -> Span:
    role = role_of_level(level)
    if not heat.colour:
        return Span(_cell(load_glyph(level), cell), role)
    mark = load_mark(level) if marked else " "
    return Span(mark.center(cell), role)


def is_mean(look: Look, steps: int) -> bool:
    """Whether cells are means over several steps; the bias is a state."""
    return steps > 1 and look.measure is not Measure.BIAS


def heat_titles(heat: Heat, experts: int, per_cell: int, steps: int = 1) -> list[str]:
    """What the heatmap shows, from all words to the fewest."""
    look, reference = heat.look, heat.reference
    against = f"step {reference.step:,}" if reference is not None else "the reference"
    what = {
        Measure.LOAD: "load",
        Measure.BIAS: f"bias, mean of its layer ±{FULL_BIAS:g}",
        Measure.DIFFERENCE: f"load against {against}",
        Measure.RANKS: "load per rank",
    }[look.measure]
    mean = f", mean of {steps} steps" if is_mean(look, steps) else ""
    if look.measure is Measure.RANKS:
        assumed = "" if heat.known_ranks else " assumed"
        return [f"{what}{mean}, {heat.ranks} ranks{assumed}", f"{what}{mean}", "load"]
    if per_cell > 1:
        cells = f"{per_cell} experts a cell"
        halves = f"{cells}: highest above, lowest below" if heat.halves else cells
        few = f"{per_cell}/cell"
        parts = [f"{mean}, {halves}", f"{mean}, {cells}", f"{mean}, {few}", f", {cells}"]
        return [*(what + part for part in parts), few]
    per = ""
    if not mean and look.measure is Measure.LOAD:
        per = " per expert"
    order = ""
    if look.order is Order.LOAD:
        order = ", by load"
    elif look.measure is Measure.LOAD and experts:
        order = f", 0 to {experts - 1}"
    short = what.split(",")[0]
    return [f"{what}{per}{mean}{order}", f"{what}{mean}", f"{short}{mean}", short, what.split()[0]]


_BIAS_SAMPLES: Sequence[Sample] = (
    *(((-16,), f"-{FULL_BIAS:g}"), ((-8,), f"-{FULL_BIAS / 2:.2g}"), ((-1, 0, 1), "mean")),
    *(((4,), f"+{FULL_BIAS / 4:.2g}"), ((8,), f"+{FULL_BIAS / 2:.2g}")),
    ((16,), f"+{FULL_BIAS:g}"),
)
_RANK_SAMPLES: Sequence[Sample] = (
    *(((None,), "0"), ((-8,), ".6"), ((-1, 0, 1), "fair"), ((4,), "1.3")),
    *(((6,), "1.5 hot"), ((16,), "3 x fair")),
)
_SAMPLES = {Measure.BIAS: _BIAS_SAMPLES, Measure.RANKS: _RANK_SAMPLES}
_OVER_SAMPLES = ((2.0, "2"), (2.83, "2.8 hot"), (8.0, "8"))
_MIDDLES = ("fair", "same", "mean")
_ASCII_LABELS = {"¼": ".25", "½": ".5"}


def _ratio_samples(heat: Heat, most: float, per_cell: int) -> Sequence[Sample]:
    fair = "fair"
    top = f"{most:.3g} x fair"
    if heat.look.measure is Measure.DIFFERENCE:
        fair = "same"
        top = f"{most:.3g} x"
    over = [sample for sample in _OVER_SAMPLES if sample[0] <= 0.75 * most]
    samples: list[Sample]
    if per_cell == 1:
        samples = [((None,), "0"), ((-8,), "¼"), ((-4,), "½"), ((-1, 0, 1), fair)]
    else:
        over = [sample for sample in over if shade_level(sample[0], per_cell)]
        samples = [((None,), "some 0")]
        if heat.halves:  # a × means that no expert of the cell has a token
            samples = [((None,), "all 0"), (((0, None),), "some 0")]
        samples += [((-8,), "¼"), ((0,), fair)]
    samples += [((shade_level(ratio),), text) for ratio, text in over]
    return [*samples, ((shade_level(most),), top)]


def highest_possible(layers: Sequence[LayerView]) -> float:
    """The load of an expert that every token chooses, in the layer where it is highest."""
    known = [layer.router for layer in layers if layer.router.top_k]
    return max((router.num_experts / router.top_k for router in known), default=16.0)


def legend(heat: Heat, width: int, *, per_cell: int = 1, most: float = 16.0) -> Line:
    """All samples, three, or nothing; ``most``: the highest load."""
    if heat.look.measure is Measure.DIFFERENCE:
        most = 16.0
    samples = _SAMPLES.get(heat.look.measure) or _ratio_samples(heat, most, per_cell)
    middle = next(sample for sample in samples if sample[1] in _MIDDLES)
    for chosen, gap in ((samples, 2), (samples, 1), ((samples[0], middle, samples[-1]), 1)):
        line = _samples(chosen, heat, gap)
        if line_width(line) <= width:
            return pad(line, width)
    return pad([], width)


def has_legend(heat: Heat, layers: Sequence[LayerView]) -> bool:
    """Whether any layer has cells, so that their colours need a legend."""
    return any(not isinstance(cells_of(layer, heat), str) for layer in layers)


def _samples(samples: Sequence[Sample], heat: Heat, gap: int) -> Line:
    line: Line = []
    for levels, text in samples:
        cells = [_sample(level, heat) for level in levels]
        if not heat.colour:  # neighbours that look alike are one
            cells = [next(group) for _, group in groupby(cells, key=lambda cell: cell.text)]
        label = _ASCII_LABELS.get(text, text) if heat.glyphs is Glyphs.ASCII else text
        if line:
            line.append(Span(" " * gap, ""))
        line += [*cells, Span(f" {label}", "dim")]
    return line


def _sample(level: int | _Pair | None, heat: Heat) -> Span:
    if isinstance(level, tuple):
        return Span(HALVES * 2, "|".join(role_of_level(end) for end in level))
    wide = 1 if level is None or not heat.colour else 2
    return _one(level, heat, wide, marked=True)


def _grouped(values: Sequence[_Value], size: int) -> Iterator[Sequence[_Value]]:
    return (values[at : at + size] for at in range(0, len(values), max(1, size)))


def _cell(glyph: str, cell: int) -> str:
    return glyph if cell == 1 else glyph * (cell - 1) + " "


def role_of_level(level: int | None) -> str:
    """``level`` in quarter octaves; ``None`` is a dead expert."""
    return "heat:dead" if level is None else f"heat:{level}"
