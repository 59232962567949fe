"""``moe-microscope demo``: a synthetic run with known truth, and the screens on it."""

import sys
import tempfile
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from msgspec.structs import replace

from microscope_tui.commands.config import read_config
from microscope_tui.commands.console import USAGE, fail, print_data, say
from microscope_tui.commands.options import Output, Switch
from microscope_tui.runlog import LOG_NAME
from microscope_tui.runlog.discover import own_log
from microscope_tui.scenarios import SCENARIOS, write_run, writing


def demo(
    *,
    scenario: str = "collapse",
    list_: Annotated[bool, Parameter(name="--list", negative=())] = False,
    live: Switch = False,
    seed: int = 0,
    output: Output = None,
) -> int:
    """Write a synthetic run with known ground truth and open it.

    Parameters
    ----------
    scenario
        What happens in the run: a name from ``--list``.
    list_
        List the scenarios instead, with a sentence on each.
    live
        Write the run step by step while you watch.
    seed
        Seed of the synthetic run.
    output
        Folder for the run; by default a temporary one, removed afterwards.
    """
    if list_:
        width = max(map(len, SCENARIOS))
        for name, one in SCENARIOS.items():
            print_data(f"{name:<{width}}  {(one.build.__doc__ or '').splitlines()[0]}")
        return 0
    if scenario not in SCENARIOS:
        fail(f"unknown scenario {scenario!r}: choose one of {', '.join(SCENARIOS)}", USAGE)
    from microscope_tui.commands.watch import watch_with

    user = read_config()  # without saving view settings
    user = replace(user, view=replace(user.view, remember=False))
    with tempfile.TemporaryDirectory(prefix="moe-microscope-") as temporary:
        logs = output or Path(temporary)
        folder = logs / scenario
        if (own := own_log(logs)) is not None:
            fail(f"{own}: {logs} is the folder of that run; choose another -o", USAGE)
        if (folder / LOG_NAME).exists():
            fail(f"{folder}: already contains a run; choose another -o, or remove it", USAGE)
        if live and not (sys.stderr.isatty() and sys.stdin.isatty()):
            say("no terminal to watch a live run in: writing it at once")
            live = False
        if live:
            with writing(folder, scenario, seed):
                return watch_with(logs, user)
        try:
            write_run(folder, scenario, seed=seed)
        except OSError as error:
            fail(f"{folder}: cannot be written: {error.strerror}; choose another -o", USAGE)
        return watch_with(logs, user)
