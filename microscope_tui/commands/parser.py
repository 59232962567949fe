"""The command line: every command with its options, parsed by cyclopts.

A command is imported when it is called, not before: ``check`` does not wait for the screens.
"""

import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from cyclopts import App, CycloptsError, Parameter, UnusedCliTokensError

from microscope_tui.commands.config import Color, GlyphChoice, read_config
from microscope_tui.commands.options import DEFAULT_SOURCE, SourceOptions, Switch
from microscope_tui.console import DEFAULT_PATH, USAGE, fail
from microscope_tui.runlog import MOST_BYTES, safe_text
from microscope_tui.watch import DEFAULT_MEMORY

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_LEAST_SIZE = 1 << 20


def watch(
    path: Path = DEFAULT_PATH,
    /,
    *,
    memory: str = "",
    spool: str = "",
    color: Color | None = None,
    glyphs: GlyphChoice | None = None,
    bell: Switch = False,
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
    limit = bytes_option("--memory", memory, "128MB", DEFAULT_MEMORY)
    kept = bytes_option("--spool", spool, "500MB, or 0 for none", MOST_BYTES, least=0)
    user = read_config(config).with_options(color=color, glyphs=glyphs, bell=bell)
    source = reading.request(user)
    from microscope_tui.commands.watch import watch_with

    return watch_with(path, user, memory=limit, spool=kept, source=source)


def bytes_option(
    name: str, text: str, example: str, default: int, *, least: int = _LEAST_SIZE
) -> int:
    """``128MB``, ``2G`` or bytes, from 1 MB up (in powers of 1,024), or just ``least``."""
    if not text:
        return default
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,3})?)\s*([kmg]?)i?b?", text.strip().lower())
    size = int(float(found[1]) * _UNITS[found[2]]) if found else -1
    if size < _LEAST_SIZE and size != least:
        shown = safe_text(text, 20)
        fail(f"{name} {shown!r}: write a size from 1MB up, for example {example}", USAGE)
    return size


def run(tokens: Sequence[str], commands: Mapping[str, tuple[str, str]]) -> int | None:
    """Call one of ``commands``: name → place, description; its exit code, ``None`` for success."""
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
    for name, (place, help_) in commands.items():
        app.command(f"microscope_tui.commands.{place}", name=name, help=help_)
    try:
        code: int | None = app(tokens, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        page = f"moe-microscope {tokens[0]}" if tokens[0] in commands else "moe-microscope"
        fail(f"{safe_text(_in_words(error), 300)} (see {page} --help)", USAGE)
    return code


def _in_words(error: CycloptsError) -> object:
    if not isinstance(error, UnusedCliTokensError):
        return error
    unused = ", ".join(error.unused_tokens or ())
    if "path" in getattr(error.target, "__annotations__", ()):
        return f"{unused}: one path too many; name one run, or the folder of several"
    return f"{unused}: one argument too many"
