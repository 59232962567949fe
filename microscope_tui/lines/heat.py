"""The heatmap: display choices, from numbers to levels of cells, and its legend.

Two families. Measures with a fair value (load, ranks, bias, difference) are ratios on a log2 scale
around 1; shares are levels from low to high. If several experts share a cell it shows the most
extreme one, never the mean.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from enum import StrEnum
from itertools import groupby
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from microscope_tui.lines.glyphs import Glyphs, load_glyph, load_level, load_mark, shade_level
from microscope_tui.lines.spans import Line, Span, line_width, merged, pad
from microscope_tui.runlog import RunRecord
from microscope_tui.watch import LayerView, Reference

Levels = Callable[[Hashable, Sequence[float]], Sequence[int | None]]
"""Maps ratios to quarter octaves; the key identifies the cells for a stateful mapping."""
Sample = tuple[Sequence[int | None], str]
"""The levels of neighbouring cells of the legend, and their meaning."""

_Value = TypeVar("_Value")
_RAMP = " .:-=+*#%@"
_TOP, _MOST = 15, 17
_ASSUMED_RANKS = 8
FULL_BIAS = 0.25
"""The strongest colour: a quarter of the range of sigmoid scores."""


class Palette(StrEnum):
    """Colours of the loads; only ``diverging`` is calm at the fair share."""

    DIVERGING = "diverging"
    VIRIDIS = "viridis"
    CIVIDIS = "cividis"
    GREY = "grey"


class Measure(StrEnum):
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
    ID = "id"
    LOAD = "load"
    GROUP = "group"
    """Overloaded, fair, starving, dead; by number within each: stable while loads fluctuate."""


_SHARES = {Measure.SHARE, Measure.LOG_SHARE, Measure.OVERFLOW}
_CHOICES = {
    "scale": ("measure", (Measure.LOAD, Measure.SHARE, Measure.LOG_SHARE)),
    "overlay": ("measure", (Measure.LOAD, Measure.BIAS, Measure.OVERFLOW, Measure.RANKS)),
    "order": ("order", tuple(Order)),
    "palette": ("palette", tuple(Palette)),
}


def after(now: object, choices: Sequence[_Value]) -> _Value:
    """The choice after ``now``; the first one after the last, and after none of them."""
    at = choices.index(now) + 1 if now in choices else 0
    return choices[at % len(choices)]


class Look(msgspec.Struct, frozen=True):
    measure: Measure = Measure.LOAD
    order: Order = Order.ID
    palette: Palette = Palette.DIVERGING

    def next(self, what: str) -> "Look":
        """The next ``scale``, ``overlay``, ``order`` or ``palette``."""
        name, choices = _CHOICES[what]
        changed: dict[str, Any] = {name: after(getattr(self, name), choices)}
        return replace(self, **changed)

    def compared(self, on: bool) -> "Look":
        return replace(self, measure=Measure.DIFFERENCE if on else Measure.LOAD)


def exact_levels(key: Hashable, ratios: Sequence[float]) -> Sequence[int | None]:
    """Levels without a memory."""
    return [shade_level(ratio) for ratio in ratios]


class Heat(msgspec.Struct, frozen=True):
    look: Look = msgspec.field(default_factory=Look)
    run: RunRecord | None = None
    """The header, which some measures need."""
    reference: Reference | None = None
    """What loads are compared with."""
    colour: bool = True
    """Cells are characters, for terminals without colours."""
    levels: Levels = exact_levels
    given_ranks: int | None = None

    @property
    def known_ranks(self) -> int:
        """As given, or in the header; 0 if unknown."""
        size = self.run.expert_parallel_size if self.run is not None else 1
        return self.given_ranks or (size if size > 1 else 0)

    @property
    def ranks(self) -> int:
        """Devices of expert parallelism; eight are assumed if they are unknown."""
        return self.known_ranks or _ASSUMED_RANKS

    def reference_load(self, layer: LayerView) -> Sequence[float] | None:
        if self.reference is None:
            return None
        return self.reference.load_of(layer.index, layer.router.num_experts)


def order_of(layer: LayerView, order: Order) -> Sequence[int]:
    """The experts in the order in which they are shown."""
    load = layer.load or ()
    if order is Order.ID or not load:
        return range(len(load))
    if order is Order.LOAD:
        return sorted(range(len(load)), key=lambda e: (-load[e], e))
    levels = [load_level(x) for x in load]
    groups = [3 if v is None else 0 if v > 0 else 1 if v == 0 else 2 for v in levels]
    return sorted(range(len(load)), key=lambda e: (groups[e], e))


def cells_of(layer: LayerView, heat: Heat) -> Sequence[float] | str:
    """One value per expert or rank, in the chosen order; or why the measure has none."""
    load, measure = layer.load, heat.look.measure
    if not load:
        return "no counts"
    if measure is Measure.RANKS:
        return _rank_loads(load, layer.router.num_experts, heat.ranks)
    values = (_shares if measure in _SHARES else _ratios)(layer, load, heat)
    if isinstance(values, str):
        return values
    return [values[expert] for expert in order_of(layer, heat.look.order)]


def _rank_loads(load: Sequence[float], experts: int, ranks: int) -> Sequence[float] | str:
    """The mean load of each rank: neighbouring experts share a device."""
    if experts % ranks:
        return f"{experts} experts do not divide by {ranks} ranks"
    size = len(load) // ranks
    return [sum(load[at : at + size]) / size for at in range(0, size * ranks, size)]


def _ratios(layer: LayerView, load: Sequence[float], heat: Heat) -> Sequence[float] | str:
    bias = layer.bias
    match heat.look.measure:
        case Measure.BIAS:
            if not bias or len(bias) != len(load):
                return "no bias"
            mean = sum(bias) / len(bias)  # on the same scale in every layer
            away = [4.0 * (b - mean) / FULL_BIAS if math.isfinite(mean) else 0.0 for b in bias]
            return [2.0 ** max(-4.0, min(4.0, octaves)) for octaves in away]
        case Measure.DIFFERENCE:
            if (then := heat.reference_load(layer)) is None:
                return "no reference"
            return [_ratio(now, before) for now, before in zip(load, then, strict=True)]
    return load


def _shares(layer: LayerView, load: Sequence[float], heat: Heat) -> Sequence[float] | str:
    """Shares of the tokens that chose each expert, or that it had no room for."""
    router = layer.router
    if heat.look.measure is Measure.OVERFLOW:
        room = heat.run.capacity_factor if heat.run is not None else None
        if not room:
            return "no capacity in the header"
        return [max(0.0, 1.0 - room / x) if x > 0 else 0.0 for x in load]
    if not router.top_k:
        return "top_k is unknown"
    fair = router.top_k / max(1, router.num_experts)
    return [min(1.0, x * fair) for x in load]


def _ratio(now: float, then: float) -> float:
    """Now ÷ then; 1 if both are zero, 0 if now is zero, 16 if then was zero."""
    return 1.0 if now == then else 16.0 if not then > 0 else now / then


def heat_line(
    key: Hashable,
    values: Sequence[float],
    heat: Heat,
    columns: int,
    cell: int,
    *,
    marked: bool,
    chosen: int | None = None,
) -> Line:
    """One line of at most ``columns`` cells; equal neighbours are merged, and sent as one.

    ``key``: which cells these are, for levels that remember; ``marked``: with the marks × and ▴;
    ``chosen``: position of the value that the cursor is on.
    """
    per_cell = -(-len(values) // max(1, columns))
    cells = list[Span]()
    if heat.look.measure in _SHARES:
        log = heat.look.measure is Measure.LOG_SHARE
        for group in _grouped(values, per_cell):
            level = sequential_level(max(group), log=log)
            cells.append(
                Span(_cell(" " if heat.colour else ramp_glyph(level), cell), f"seq:{level}")
            )
    else:
        # First the levels, then the most extreme of a cell: two experts that are equally far
        # from fair, one above and one below, would swap with every step.
        levels = heat.levels(key, values)
        if heat.look.measure is Measure.BIAS:
            levels = [-16 if level is None else level for level in levels]
        for some in _grouped(levels, per_cell):
            worst = max(some, key=lambda level: _MOST if level is None else abs(level))
            text = (load_mark(worst) if marked else " ").center(cell)
            text = text if heat.colour else _cell(load_glyph(worst), cell)
            cells.append(Span(text, role_of_level(worst)))
    if chosen is not None and marked and chosen // per_cell < len(cells):
        at = chosen // per_cell
        cells[at] = Span(cells[at].text, "cursor")
    return merged(cells)


def sequential_level(share: float, *, log: bool) -> int:
    """A share as a level 0 … 15: in sixteenths, or in octaves down from 1."""
    if not share > 0:
        return 0
    if log:
        return max(0, min(_TOP, _TOP + math.floor(math.log2(share) + 1e-9)))
    return min(_TOP, int(16 * share))


def ramp_glyph(level: int) -> str:
    """Characters for a share of level 0 … 15 where there are no colours."""
    return _RAMP[level * len(_RAMP) // (_TOP + 1)]


def is_mean(look: Look, steps: int) -> bool:
    """Whether cells are means over several steps: all except the bias, which is a state."""
    return steps > 1 and look.measure is not Measure.BIAS


def heat_title(heat: Heat, experts: int, per_cell: int, steps: int = 1) -> str:
    """What the heatmap shows, most important first; the loads are means over ``steps``."""
    look, reference = heat.look, heat.reference
    if is_mean(look, steps):
        what, _, more = heat_title(heat, experts, per_cell).partition(",")
        mean = f"{what.removesuffix(' per expert')}, mean of {steps} steps"
        return f"{mean},{more}" if more else mean
    if look.measure is Measure.RANKS:
        return f"load per rank, {heat.ranks} ranks{'' if heat.known_ranks else ' assumed'}"
    against = f"step {reference.step:,}" if reference is not None else "the reference"
    what = {
        Measure.LOAD: "load per expert",
        Measure.SHARE: "share of tokens per expert",
        Measure.LOG_SHARE: "share of tokens, log scale",
        Measure.BIAS: f"bias, mean of its layer ±{FULL_BIAS:g}",
        Measure.OVERFLOW: "share of tokens over capacity",
        Measure.DIFFERENCE: f"load against {against}",
    }[look.measure]
    if per_cell > 1:
        return f"{what.replace(' per expert', '')}, {per_cell} experts a cell"
    if look.order is not Order.ID:
        return f"{what}, {'by load' if look.order is Order.LOAD else 'in groups'}"
    return f"{what}, 0 to {experts - 1}" if look.measure is Measure.LOAD and experts else what


_RATIO_SAMPLES: Sequence[Sample] = (
    *(((None,), "0"), ((-8,), "¼"), ((-4,), "½"), ((-1, 0, 1), "fair")),
    *(((4,), "2"), ((8,), "4"), ((14,), "11 x fair")),
)
_SHARE_SAMPLES: Sequence[Sample] = (
    *(((0,), "0"), ((4,), "25"), ((8,), "50"), ((12,), "75"), ((15,), "100 %")),
)
_OCTAVE_SAMPLES: Sequence[Sample] = (
    *(((0,), "0"), ((5,), ".1"), ((8,), ".8"), ((11,), "6"), ((13,), "25"), ((15,), "100 %")),
)
_BIAS_SAMPLES: Sequence[Sample] = (
    *(((-16,), f"-{FULL_BIAS:g}"), ((-8,), f"-{FULL_BIAS / 2:.2g}"), ((-1, 0, 1), "mean")),
    *(((4,), f"+{FULL_BIAS / 4:.2g}"), ((8,), f"+{FULL_BIAS / 2:.2g}")),
    ((16,), f"+{FULL_BIAS:g}"),
)
_SAMPLES = {
    Measure.BIAS: _BIAS_SAMPLES,
    Measure.SHARE: _SHARE_SAMPLES,
    Measure.OVERFLOW: _SHARE_SAMPLES,
    Measure.LOG_SHARE: _OCTAVE_SAMPLES,
}
_OTHER_LABELS = {"fair": "same", "11 x fair": "11 x"}  # of a difference
_ASCII_LABELS = {"¼": ".25", "½": ".5"}


def legend(heat: Heat, width: int, glyphs: Glyphs) -> Line:
    """Sample cells with their values in exactly ``width`` cells: all, both ends, or nothing."""
    samples = _SAMPLES.get(heat.look.measure, _RATIO_SAMPLES)
    ends = [samples[0], samples[len(samples) // 2], samples[-1]]  # and the fair value
    for chosen, gap in ((samples, 2), (samples, 1), (ends, 1)):
        line = _samples(chosen, heat, gap, glyphs)
        if line_width(line) <= width:
            return pad(line, width)
    return pad([], width)


def has_legend(heat: Heat, layers: Sequence[LayerView]) -> bool:
    """Whether any layer has cells."""
    return any(not isinstance(cells_of(layer, heat), str) for layer in layers)


def _samples(samples: Sequence[Sample], heat: Heat, gap: int, glyphs: Glyphs) -> Line:
    line: Line = []
    for levels, text in samples:
        cells = [_sample(level, heat) for level in levels]
        if not heat.colour:  # neighbours that look alike are one
            cells = [next(group) for _, group in groupby(cells, key=lambda cell: cell.text)]
        if heat.look.measure is Measure.DIFFERENCE:
            text = _OTHER_LABELS.get(text, text)
        label = _ASCII_LABELS.get(text, text) if glyphs is Glyphs.ASCII else text
        line += [*([Span(" " * gap, "")] if line else []), *cells, Span(f" {label}", "dim")]
    return line


def _sample(level: int | None, heat: Heat) -> Span:
    """One sample, two characters wide where it is a colour alone."""
    if heat.look.measure in _SHARES:
        return Span("  " if heat.colour else ramp_glyph(level or 0), f"seq:{level or 0}")
    if level is None:
        return Span("×" if heat.colour else load_glyph(None), "heat:dead")
    return Span("  " if heat.colour else load_glyph(level), f"heat:{level}")


def _grouped(values: Sequence[_Value], size: int) -> Iterator[Sequence[_Value]]:
    return (values[at : at + size] for at in range(0, len(values), max(1, size)))


def _cell(glyph: str, cell: int) -> str:
    """A character as a cell: wide ones end in a blank."""
    return glyph if cell == 1 else glyph * (cell - 1) + " "


def role_of_level(level: int | None) -> str:
    return "heat:dead" if level is None else f"heat:{level}"
