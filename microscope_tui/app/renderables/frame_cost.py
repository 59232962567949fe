"""What a heatmap costs in bandwidth: bytes of a full frame and of an update.

The table is synthetic: 58 layers of 256 experts with the noise of a healthy run, a few dead experts
and one collapsed layer, in a window of 140 × 50.
"""

import io
import random
import zlib
from collections.abc import Sequence
from typing import Literal

from rich.console import Console

from microscope_tui.app.renderables.strips import cut, tiles, to_strip
from microscope_tui.lines import Glyphs, Heat, Line, heat_line, line_width
from microscope_tui.report import Cost

EXPERTS, PER_CELL, COLUMNS, LINES, TILE = 256, 3, 86, 39, 16
"""39 of the 58 layers are visible, three experts per cell."""
_System = Literal["truecolor", "256", "standard"]
_SYSTEMS: dict[str, _System] = {
    "truecolor": "truecolor",
    "256": "256",
    "16": "standard",
}
_NOISE = 0.3
_SICK = LINES // 2
_CHANGED = 0.01
_SSH_LEVEL = 6


def cost(system: str | None, seed: int = 0) -> Cost:
    """The cost with these colours: ``truecolor``, ``256``, ``16``, or ``None`` without any."""
    rng = random.Random(seed)
    loads = [_loads(rng, layer) for layer in range(LINES)]
    before = [_line(layer, row) for layer, row in enumerate(loads)]
    for cell in rng.sample(range(LINES * COLUMNS), round(_CHANGED * LINES * COLUMNS)):
        layer, column = divmod(cell, COLUMNS)
        loads[layer][column * PER_CELL] = rng.choice((0.25, 4.0))
    after = [_line(layer, row) for layer, row in enumerate(loads)]
    return _cost(before, after, _SYSTEMS.get(system or ""))


def _loads(rng: random.Random, layer: int) -> list[float]:
    if layer == _SICK:
        return [24.0 if expert % 32 == 5 else 0.0 for expert in range(EXPERTS)]
    return [0.0 if rng.random() < 0.002 else rng.lognormvariate(0, _NOISE) for _ in range(EXPERTS)]


def _line(layer: int, loads: Sequence[float]) -> Line:
    return heat_line(layer, loads, Heat(), COLUMNS, 1, marked=True)


def _cost(before: Sequence[Line], after: Sequence[Line], system: _System | None) -> Cost:
    console = Console(file=io.StringIO(), color_system=system, force_terminal=True)
    frame = "".join(_sent(y, 0, line, console) for y, line in enumerate(before)).encode()
    update = "".join(
        _sent(y, start, cut(new, start, end), console)
        for y, (old, new) in enumerate(zip(before, after, strict=True))
        for start, end in tiles(line_width(new), TILE)
        if cut(old, start, end) != cut(new, start, end)
    ).encode()
    return Cost(len(frame), len(zlib.compress(frame, _SSH_LEVEL)), len(update))


def _sent(y: int, x: int, line: Line, console: Console) -> str:
    """A line as Textual sends it: position, then content."""
    strip = to_strip(line, console.color_system, Glyphs.BRAILLE)
    return f"\x1b[{y + 1};{x + 1}H{strip.render(console)}"
