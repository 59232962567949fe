"""What a run folder holds already, before a probe continues its log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from microscope_tui.probe.sites import Site
from microscope_tui.runlog import glance


def last_logged_step(log: Path, sites: Sequence[Site]) -> int:
    """The last step of a log; 0 where it has none.

    Raises:
        ValueError: the log is of other routers than ``sites``.
    """
    seen = glance(log)
    if seen.run is None:
        return 0
    there = [(r.name.partition("#")[0], r.num_experts) for r in seen.run.routers]
    there = list(dict.fromkeys(there))  # a looped layer has a row per pass
    here = [(site.name, site.num_experts) for site in sites]
    if there != here:
        raise ValueError(
            f"{log} is of other routers ({_shown(there)}) than this model has ({_shown(here)}): "
            "choose a new run folder"
        )
    return seen.last.step if seen.last is not None else 0


def _shown(routers: list[tuple[str, int]]) -> str:
    shown = ", ".join(f"{name}×{experts}" for name, experts in routers[:6])
    return f"{len(routers)} routers: {shown}{' …' if len(routers) > 6 else ''}"


_claimed: set[Path] = set()
"""Run folders that a probe of this process writes to."""


def claim(folder: Path) -> None:
    """Keep other probes of this process out of a run folder.

    Raises:
        ValueError: one writes to it already.
    """
    if folder in _claimed:
        raise ValueError(f"{folder} is written by another probe: detach it, or choose a new folder")
    _claimed.add(folder)


def release(folder: Path) -> None:
    """Let other probes write to the folder again."""
    _claimed.discard(folder)
