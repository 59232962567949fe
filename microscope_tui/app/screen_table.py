"""The screens: a new one is a row of ``SCREENS``, and its file in ``screens/``.

Without Textual, so that the command line can name them.
"""

from typing import NamedTuple


class ScreenRow(NamedTuple):
    keys: str
    """Keys that open it; empty for one that only others open."""
    does: str
    """For the help and the palette."""
    module: str
    """In ``screens/``: imported when the screen is opened."""
    words: str = ""
    """Parts of the glossary that its help explains, main terms first."""
    shown: tuple[str, ...] = ()
    """Its label in the last line, and its key there."""


SCREENS = {
    "main": ScreenRow(
        "1", "all layers", "main_screen", "layers cells conditions alerts header time"
    ),
    "layer": ScreenRow(
        "2", "one layer", "chart_screens", "layers quadrants charts =bias alerts header time"
    ),
    "expert": ScreenRow(
        "", "an expert", "chart_screens", "expert conditions layers =bias header time"
    ),
    "alerts": ScreenRow("3", "alerts", "alerts_screen", "alerts alert_list layers header time"),
    "runs": ScreenRow("4,r", "runs", "runs_screen", "runs header alerts", ("runs", "r")),
    "compare": ScreenRow(
        "5", "compare", "compare_screens", "compare layers conditions header time"
    ),
    "course": ScreenRow(
        "6",
        "the course of any number",
        "course_screen",
        "charts numbers =margin layers alerts header time",
    ),
    "map": ScreenRow(
        "t", "map: all layers over time", "map_screen", "map layers cells alerts header time"
    ),
    "tokens": ScreenRow(
        "7", "tokens of a probe", "probe_screens", "probe tokens =layer =entropy header"
    ),
    "slices": ScreenRow(
        "8", "slices of a probe", "probe_screens", "slices probe =layer =share header"
    ),
    "mismatch": ScreenRow(
        "9", "mismatch of two probes", "compare_screens", "mismatch =margin =layer header"
    ),
    "placement": ScreenRow(
        "d", "placement on devices", "placement_screen", "placement cells header"
    ),
    "together": ScreenRow("", "runs in one chart", "together_screen", "charts runs header"),
    "help": ScreenRow("", "help", "help_screen"),
}
"""By the names that ``action_go``, snapshots and the glossary use."""
