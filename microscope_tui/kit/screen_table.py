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
    "main": ScreenRow("1", "all layers", "screens.main.screen"),
    "layer": ScreenRow("2", "one layer", "screens.layer.screen"),
    "expert": ScreenRow("", "an expert", "screens.expert.screen"),
    "alerts": ScreenRow("3", "alerts", "screens.alerts.screen"),
    "runs": ScreenRow("4,r", "runs", "screens.runs.screen", ("runs", "r")),
    "compare": ScreenRow("5", "compare", "screens.compare.screen"),
    "course": ScreenRow("6", "the course of any number", "screens.course.screen"),
    "map": ScreenRow("t", "map: all layers over time", "screens.map.screen"),
    "tokens": ScreenRow(
        "7",
        "tokens of a probe",
        "extensions.anatomy.screens",
        snapshot="extensions.anatomy.snapshots",
        ids=("token.",),
    ),
    "slices": ScreenRow(
        "8",
        "slices of a probe",
        "extensions.anatomy.screens",
        snapshot="extensions.anatomy.snapshots",
        ids=("slice.",),
    ),
    "mismatch": ScreenRow(
        "9",
        "mismatch of two probes",
        "extensions.anatomy.mismatch_screen",
        ids=("mismatch.",),
    ),
    "placement": ScreenRow("d", "placement on devices", "extensions.placement.screen"),
    "together": ScreenRow("", "runs in one chart", "screens.course.together"),
    "help": ScreenRow("", "help", "screens.help.screen"),
}
"""By the names that ``action_go`` and snapshots use."""
SCREENS = {name: row for name, row in ALL_SCREENS.items() if not missing(row.module)}
"""Those of this installation."""
MISSING_IDS = tuple(
    begin
    for name, row in ALL_SCREENS.items()
    if name not in SCREENS
    for begin in (f"screen.{name}", *row.ids)
)
"""How the ids of keys begin that this installation does not have."""
