"""``moe-microscope demo``: writes a synthetic run with known ground truth and opens it."""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from microscope_tui.commands.config import read_config
from microscope_tui.commands.options import Output, Switch
from microscope_tui.commands.watch import watch_with
from microscope_tui.console import USAGE, fail, say
from microscope_tui.runlog import LOG_NAME
from microscope_tui.scenarios import SCENARIOS, write_run, writing

_SCENARIOS_HELP = f"One of {', '.join(SCENARIOS)}."


def demo(
    *,
    scenario: Annotated[str, Parameter(help=_SCENARIOS_HELP)] = "collapse",
    live: Switch = False,
    seed: int = 0,
    output: Output = None,
) -> int:
    """Write a synthetic run with known ground truth and open it.

    Parameters
    ----------
    live
        Write the run step by step while you watch.
    seed
        Seed of the synthetic run.
    output
        Folder for the run; by default a temporary one, removed afterwards.
    """
    if scenario not in SCENARIOS:
        fail(f"unknown scenario {scenario!r}: choose one of {', '.join(SCENARIOS)}", USAGE)
    with tempfile.TemporaryDirectory(prefix="moe-microscope-") as temporary:
        logs = output or Path(temporary)
        folder = logs / scenario
        if (folder / LOG_NAME).exists():
            fail(f"{folder}: already contains a run; choose another -o, or remove it", USAGE)
        if live and not (sys.stderr.isatty() and sys.stdin.isatty()):
            say("no terminal to watch a live run in: writing it at once")
            live = False
        if live:
            with writing(folder, scenario, seed):
                return _show(logs)
        try:
            write_run(folder, scenario, seed=seed)
        except OSError as error:
            fail(f"{folder}: cannot be written: {error.strerror}; choose another -o", USAGE)
        return _show(logs)


def _show(logs: Path) -> int:
    """Open the run without saving view settings."""
    user = read_config()
    return watch_with(logs, replace(user, view=replace(user.view, remember=False)))
