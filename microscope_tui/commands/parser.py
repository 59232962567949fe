"""The command line: every command with its options, parsed by cyclopts.

A command is imported when it is called, not before: ``check`` does not wait for the screens.
"""

from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter

from microscope_tui.commands.config import read_config
from microscope_tui.commands.options import DEFAULT_SOURCE, SourceOptions
from microscope_tui.commands.table import COMMANDS
from microscope_tui.console import DEFAULT_PATH, USAGE, fail, memory_bytes, spool_bytes
from microscope_tui.runlog import safe_text


def watch(
    path: Path = DEFAULT_PATH,
    /,
    *,
    memory: str = "",
    spool: str = "",
    color: Literal["auto", "truecolor", "256", "16", "never"] | None = None,
    glyphs: Literal["auto", "braille", "block", "ascii"] | None = None,
    bell: Annotated[bool, Parameter(negative=())] = False,
    config: Path | None = None,
    reading: SourceOptions = DEFAULT_SOURCE,
) -> int:
    """Watch a folder of runs, one run, a file of another tool (see ``sources``), or a pipe.

    Parameters
    ----------
    path
        Where the runs are; ``-`` reads a log from standard input. An empty folder is watched
        until a run appears.
    memory
        Memory limit for the history, for example 64MB; 128MB by default.
    spool
        Disk space for a log from standard input (an unnamed file in TMPDIR), which lets you go
        back in time: 1GB by default, 0 to disable.
    color
        How many colours to use; ``never`` is the same as NO_COLOR.
    glyphs
        Characters for curves: braille needs font support, ascii works everywhere.
    bell
        Ring the bell at a new critical alert.
    config
        Config file to use instead of your own.
    """
    limit, kept, user = memory_bytes(memory), spool_bytes(spool), read_config(config)
    view = user.view
    view = replace(
        view,
        color=color or view.color,
        glyphs=glyphs or view.glyphs,
        bell=bell or view.bell,
    )
    from microscope_tui.commands.watch import watch_with

    return watch_with(path, limit, replace(user, view=view), kept, reading.asked(user))


app = App(
    name="moe-microscope",
    help="Watch the routers of a Mixture-of-Experts model while it trains.",
    # Empty strings and flags that are off are not worth showing.
    default_parameter=Parameter(
        show_default=lambda value: None if value is False or value in ("", ()) else value
    ),
    version=lambda: metadata.version("moe-microscope"),
    result_action="return_value",
)
app.default(watch)
for name, (place, help_) in COMMANDS.items():
    app.command(f"microscope_tui.commands.{place}", name=name, help=help_)


def run(tokens: Sequence[str]) -> int | None:
    """Call the command; returns its exit code, or ``None`` for success."""
    try:
        code: int | None = app(tokens, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        fail(f"{safe_text(error, 300)} (see moe-microscope --help)", USAGE)
    return code
