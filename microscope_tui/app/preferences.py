"""User preferences, from the command line and the config file."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from microscope_tui.lines import Palette


@dataclass(frozen=True, slots=True)
class Preferences:
    """By default the bell is silent and nothing is written."""

    palette: Palette = Palette.DIVERGING
    interval_s: float = 0.5
    """Seconds between two redraws of a live run."""
    bell: bool = False
    """Ring the bell at a new critical alert."""
    remember: bool = False
    """Save the view settings of each folder."""
    keymap: Mapping[str, str] = field(default_factory=dict)
    """Custom keys, by the id of their binding."""
