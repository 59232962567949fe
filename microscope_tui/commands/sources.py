"""``moe-microscope sources``: the files of other tools that can be read."""

from microscope_tui.commands.console import print_data
from microscope_tui.sources import FORMATS


def sources() -> int:
    """List the formats: the name for --source, what is read and shown, whether it is live."""
    width = max(map(len, FORMATS))
    for name, form in FORMATS.items():
        print_data(f"{name:<{width}}  {form.reads}")
        print_data(f"{'':<{width}}  shows {form.shows}; live: {form.live}")
    print_data("\nA run log needs none of these. --map adds keys: see docs/sources.md.")
    return 0
