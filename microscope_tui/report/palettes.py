"""The palettes that a heatmap can be drawn in, by name."""

from enum import StrEnum


class Palette(StrEnum):
    """Colours of the loads; ``diverging`` alone is calm at the fair share."""

    DIVERGING = "diverging"
    VIRIDIS = "viridis"
    CIVIDIS = "cividis"
    GREY = "grey"
