"""What the user wants of the screens, from the command line and the config file."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from microscope_tui.lines.look import Palette


@dataclass(frozen=True, slots=True)
class Preferences:
    """The defaults disturb nobody and write nothing."""

    palette: Palette = Palette.DIVERGING
    budget: int | None = None
    """Bytes a second that may go to the terminal; ``None`` for any number."""
    bell: bool = False
    """Ring the bell at a new critical alert."""
    remember: bool = False
    """Keep the view of a folder of logs until the next sitting."""
    keymap: Mapping[str, str] = field(default_factory=dict)
    """Other keys for some bindings, by their ids."""
