"""The screens: a new one is a row of ``SCREENS``, and its file in ``screens/``.

Without Textual, so that the command line can name them.
"""

from importlib import import_module
from typing import Any, NamedTuple

from microscope_tui.installed import missing


class ScreenRow(NamedTuple):
    keys: str
    """Keys that open it; empty for one that only others open."""
    does: str
    """For the help and the palette."""
    module: str
    """Below ``microscope_tui``: imported when the screen is opened."""
    words: str = ""
    """Parts of the glossary that its help explains, main terms first."""
    shown: tuple[str, ...] = ()
    """Its label in the last line, and its key there."""
    snapshot: str = ""
    """Module with what a snapshot of it needs: ``refuse``, ``as_json``, ``choose``."""

    def of_snapshot(self) -> Any:
        """That module; ``None`` without one."""
        return import_module(f"microscope_tui.{self.snapshot}") if self.snapshot else None

    ids: tuple[str, ...] = ()
    """How the ids of its own keys begin, if it is part of an extension."""


ALL_SCREENS = {
    "main": ScreenRow(
        "1", "all layers", "screens.main.screen", "layers cells conditions alerts header time"
    ),
    "layer": ScreenRow(
        "2", "one layer", "screens.layer.screen", "layers quadrants charts =bias alerts header time"
    ),
    "expert": ScreenRow(
        "", "an expert", "screens.expert.screen", "expert conditions layers =bias header time"
    ),
    "alerts": ScreenRow(
        "3", "alerts", "screens.alerts.screen", "alerts alert_list layers header time"
    ),
    "runs": ScreenRow("4,r", "runs", "screens.runs.screen", "runs header alerts", ("runs", "r")),
    "compare": ScreenRow(
        "5", "compare", "screens.compare.screen", "compare layers conditions header time"
    ),
    "course": ScreenRow(
        "6",
        "the course of any number",
        "screens.course.screen",
        "charts numbers =margin layers alerts header time",
    ),
    "map": ScreenRow(
        "t",
        "map: all layers over time",
        "screens.map.screen",
        "map layers cells alerts header time",
    ),
    "tokens": ScreenRow(
        "7",
        "tokens of a probe",
        "extensions.anatomy.screens",
        "probe tokens =layer =entropy header",
        snapshot="extensions.anatomy.snapshots",
        ids=("token.",),
    ),
    "slices": ScreenRow(
        "8",
        "slices of a probe",
        "extensions.anatomy.screens",
        "slices probe =layer =share header",
        snapshot="extensions.anatomy.snapshots",
        ids=("slice.",),
    ),
    "mismatch": ScreenRow(
        "9",
        "mismatch of two probes",
        "extensions.anatomy.mismatch_screen",
        "mismatch =margin =layer header",
        ids=("mismatch.",),
    ),
    "placement": ScreenRow(
        "d", "placement on devices", "extensions.placement.screen", "placement cells header"
    ),
    "together": ScreenRow("", "runs in one chart", "screens.course.together", "charts runs header"),
    "help": ScreenRow("", "help", "screens.help.screen"),
}
"""By the names that ``action_go``, snapshots and the glossary use."""
SCREENS = {name: row for name, row in ALL_SCREENS.items() if not missing(row.module)}
"""Those of this installation."""
MISSING_IDS = tuple(
    begin
    for name, row in ALL_SCREENS.items()
    if name not in SCREENS
    for begin in (f"screen.{name}", *row.ids)
)
"""How the ids of keys begin that this installation does not have."""
