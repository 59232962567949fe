"""What one layer's experts read: the numbers behind the screen of the slices.

For every expert and slice the log2 of its share in the slice over its share overall. What shuffled
slices reach too (``Tables.noise``, the 99 % point) counts as chance, and so does every ratio of an
expert with fewer than ``FEWEST_EXPECTED`` pairs expected in the slice: the noise leaves those out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from microscope_tui.routing import FEWEST_EXPECTED, Tables

CHANCE_BEYOND = 0.01
"""Share of the cells that shuffled slices put beyond the noise."""
_NONE = 0.5
"""What a count of zero is taken for, so that its ratio is finite."""


class Ordering(StrEnum):
    """Order of the experts."""

    TELLING = "most telling first"
    SLICE = "by slice"
    NUMBER = "by number"
    SHARE = "by share"


@dataclass(frozen=True, slots=True)
class Cell:
    """One expert in one slice."""

    count: int
    ratio: float
    """log2 of the share in the slice over the share overall."""
    beyond: bool
    """Whether it is more than shuffled slices reach."""
    few: bool = False
    """Whether so few pairs were expected that the ratio means nothing."""


@dataclass(frozen=True, slots=True)
class ExpertRow:
    """One expert: its share of all choices, and its cells in the order of the slices."""

    expert: int
    share: float
    cells: Sequence[Cell]
    lifts: Sequence[tuple[int, int, float]]
    """Its most telling tokens: id, count, lift."""

    @property
    def telling(self) -> float:
        """The largest distance from zero beyond chance."""
        return max((abs(cell.ratio) for cell in self.cells if cell.beyond), default=0.0)

    @property
    def preference(self) -> float:
        """The largest ratio above zero beyond chance."""
        return max((cell.ratio for cell in self.cells if cell.beyond), default=0.0)

    @property
    def slice_read(self) -> int | None:
        """The slice that it reads most above its share, beyond chance."""
        more = [(c.ratio, at) for at, c in enumerate(self.cells) if c.beyond and c.ratio > 0]
        return max(more)[1] if more else None


class NoTables(ValueError):
    """The file has no tables of this layer; the message says why."""


@dataclass(frozen=True, slots=True)
class SliceTable:
    """All experts of one layer."""

    rows: Sequence[ExpertRow]
    """By number."""
    noise: Sequence[float]
    """Per slice; infinite where there is no baseline, as with a single slice."""
    sizes: Sequence[int]
    """Choices in each slice."""

    def ordered(self, ordering: Ordering) -> Sequence[ExpertRow]:
        """The rows in this order."""
        match ordering:
            case Ordering.NUMBER:
                return self.rows
            case Ordering.SHARE:
                return sorted(self.rows, key=lambda row: -row.share)
        groups = len(self.sizes) if ordering is Ordering.SLICE else 0
        return sorted(
            self.rows,
            key=lambda row: (
                min(groups, len(self.sizes) if row.slice_read is None else row.slice_read),
                -row.preference,
                -row.telling,
                -row.share,
            ),
        )

    @property
    def is_single(self) -> bool:
        """Whether all choices are in one slice: there is nothing to compare it with."""
        return sum(size > 0 for size in self.sizes) < 2

    @property
    def by_chance(self) -> float:
        """How many experts would differ in a slice by chance alone."""
        judged = [
            sum(
                math.isfinite(noise) and not cell.few
                for noise, cell in zip(self.noise, row.cells, strict=True)
            )
            for row in self.rows
        ]
        return sum(1.0 - (1.0 - CHANCE_BEYOND) ** cells for cells in judged)


def slice_table(tables: Tables, layer: int, slices: int, experts: int) -> SliceTable:
    """The numbers of one layer.

    Raises:
        NoTables: the tables are missing, or have another shape than the file.
    """
    if not tables.counts:
        raise NoTables("this probe has no tables: it was interrupted before they were counted")
    layers = [rows[layer] for rows in tables.counts if layer < len(rows)]
    if len(layers) != slices or any(len(row) != experts for row in layers):
        raise NoTables("the tables of this probe do not fit its layers, slices and experts")
    if any(count < 0 for row in layers for count in row):
        raise NoTables("the tables of this probe have counts below zero")
    sizes = [sum(row) for row in layers]
    total = sum(sizes)
    noise = [
        tables.noise[at] if at < len(tables.noise) and tables.noise[at] > 0 else math.inf
        for at in range(slices)
    ]
    lifts = tables.lifts[layer] if layer < len(tables.lifts) else ()
    rows = []
    for expert in range(experts):
        counts = [row[expert] for row in layers]
        share = sum(counts) / total if total else 0.0
        cells = [
            _cell(count, size, share, limit)
            for count, size, limit in zip(counts, sizes, noise, strict=True)
        ]
        rows.append(ExpertRow(expert, share, cells, lifts[expert] if expert < len(lifts) else ()))
    return SliceTable(rows, noise, sizes)


def explained(tables: Tables, layer: int) -> tuple[float | None, float | None]:
    """How much of the routing the token identity alone explains, and what chance would."""
    return _known(tables.identity, layer), _known(tables.identity_noise, layer)


def _known(values: Sequence[float | None], layer: int) -> float | None:
    value = values[layer] if layer < len(values) else None
    return value if value is not None and math.isfinite(value) else None


def _cell(count: int, size: int, share: float, noise: float) -> Cell:
    expected = size * share
    if not expected > 0:
        return Cell(count, 0.0, False, few=True)
    ratio, few = math.log2(max(count, _NONE) / expected), expected < FEWEST_EXPECTED
    return Cell(count, ratio, abs(ratio) > noise and not few, few)
