"""The command line: every command with its options, parsed by cyclopts.

A command is imported when it is called: ``check`` does not wait for the screens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import App, CycloptsError, Parameter, UnusedCliTokensError
from cyclopts.help import DefaultFormatter, HelpPanel, PanelSpec

from microscope_tui.commands.config import Color, GlyphChoice, Theme, read_config
from microscope_tui.commands.console import DEFAULT_PATH, USAGE, fail
from microscope_tui.commands.options import DEFAULT_SOURCE, RANKS, Ranks, SourceOptions, Switch
from microscope_tui.installed import missing, not_installed
from microscope_tui.runlog import MOST_BYTES, safe_text
from microscope_tui.watch import DEFAULT_MEMORY

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_LEAST_SIZE = 1 << 20
_RARE = {"--memory", "--spool", "--seed", "--pipeline-parallel", "--expert-share"}
"""Options that few need; all work, and ``--help-all`` lists them."""
_EXAMPLES = """\
moe-microscope                      # the newest run in logs/; waits for one
moe-microscope logs/first           # one run
moe-microscope wandb/latest-run     # a run of another tool
moe-microscope check logs/first              # the verdict on one run
moe-microscope check logs --all --json       # every run, as data
moe-microscope check logs/first --follow     # alerts until the run ends
moe-microscope snapshot logs/first --step 150      # the main screen as text
moe-microscope snapshot logs/first --screen alerts
moe-microscope snapshot --screen layer -o layer.svg --theme light
moe-microscope probe checkpoints/first/best prose=book.txt code=src/
moe-microscope probe ORG/NAME notes.txt --download
moe-microscope explain COLLAPSE
moe-microscope demo --list                      # what can happen in a run
moe-microscope demo --scenario shock --live
moe-microscope export logs/first -o first.csv
moe-microscope export --experts --format parquet -o first.parquet
moe-microscope import wandb/latest-run logs
moe-microscope coverage logs/probe --min-tokens 500
moe-microscope placement logs/first --ranks 4 --replicas 4
moe-microscope placement dump/ --ranks 16 --write sglang map.json
moe-microscope mismatch logs/probe-a logs/probe-b --max-share 0.1
"""
"""On the page of their command, or the first one."""


def watch(
    path: Path = DEFAULT_PATH,
    /,
    *,
    memory: str = "",
    spool: str = "",
    color: Color | None = None,
    theme: Theme | None = None,
    glyphs: GlyphChoice | None = None,
    bell: Switch = False,
    config: Path | None = None,
    reading: SourceOptions = DEFAULT_SOURCE,
    placed: Ranks = RANKS,
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
    theme
        Colours for a dark (default) or a light terminal.
    glyphs
        Characters for curves: braille needs font support, ascii works everywhere.
    bell
        Ring the bell at a new critical alert.
    config
        Config file to use instead of your own.
    """
    limit = bytes_option("--memory", memory, "128MB", DEFAULT_MEMORY)
    kept = bytes_option("--spool", spool, "500MB, or 0 for none", MOST_BYTES, least=0)
    user = read_config(config).with_options(color=color, theme=theme, glyphs=glyphs, bell=bell)
    source, cost = reading.request(user, path), placed.request()
    from microscope_tui.commands.watch import watch_with

    return watch_with(path, user, memory=limit, spool=kept, source=source, cost=cost)


def bytes_option(
    name: str, text: str, example: str, default: int, *, least: int = _LEAST_SIZE
) -> int:
    """``128MB``, ``2G`` or bytes, from 1 MB up (in powers of 1,024), or just ``least``."""
    if not text:
        return default
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,3})?)\s*([kmg]?)i?b?", text.strip().lower())
    size = -1
    if found:
        size = int(float(found[1]) * _UNITS[found[2]])
    if size < _LEAST_SIZE and size != least:
        shown = safe_text(text, 20)
        fail(f"{name} {shown!r}: write a size from 1MB up, for example {example}", USAGE)
    return size


class _Page(DefaultFormatter):
    """A page of help: examples first, and options that few need only with ``--help-all``."""

    def __init__(self, examples: str, *, everything: bool) -> None:
        super().__init__()
        self._examples, self._everything = examples, everything

    def render_description(self, console: Console, options: ConsoleOptions, text: object) -> None:
        super().render_description(console, options, text)
        if self._examples:
            console.print(self._examples, markup=False, highlight=False)

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        shown = [one for one in panel.entries if self._everything or not _RARE & set(one.names)]
        more = len(panel.entries) - len(shown)
        self.panel_spec = PanelSpec(subtitle=f"--help-all shows {more} more" if more else None)
        super().__call__(console, options, panel.copy(entries=shown))


def refuse_missing_screens(tokens: Sequence[str]) -> None:
    """``NotInstalled``: a word is the name of a screen that this installation does not have."""
    from microscope_tui.kit.screen_table import ALL_SCREENS

    for word in tokens:
        name = word.removeprefix("--screen=")
        if name in ALL_SCREENS and (extension := missing(ALL_SCREENS[name].module)):
            raise not_installed(f"screen {name}", extension)


def _version() -> str:
    from microscope_tui.commands.version import own_version  # takes as long as all options

    return own_version()


def run(tokens: Sequence[str], commands: Mapping[str, tuple[str, str]]) -> int | None:
    """Call one of ``commands``: name → place, description; its exit code, ``None`` for success."""
    everything = "--help-all" in tokens
    examples = dict.fromkeys(("", *commands), "")
    for line in _EXAMPLES.splitlines():
        word = line.split()[1]
        examples[word if word in commands else ""] += f"  {line}\n"
    app = App(
        name="moe-microscope",
        help="Watch the routers of a Mixture-of-Experts model while it trains.",
        help_formatter=_Page(examples[""], everything=everything),
        default_parameter=Parameter(show_default=lambda value: value or None),
        version=_version,
        result_action="return_value",
    )
    app.default(watch)
    for order, (name, (place, help_)) in enumerate(commands.items()):
        page = _Page(examples[name], everything=everything)
        place = f"microscope_tui.{place}"
        app.command(place, name=name, help=help_, help_formatter=page, sort_key=order)
    app.command(app.help_print, name="--help-all", help="Display every option.")
    app.register_install_completion_command(show=everything)
    if everything:
        tokens = [{"--help-all": "--help"}.get(token, token) for token in tokens]
    try:
        code: int | None = app(tokens, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        command = "moe-microscope"
        refuse_missing_screens(tokens)
        problem = safe_text(error, 300)
        if isinstance(error, UnusedCliTokensError):
            problem = f"{', '.join(error.unused_tokens or ())}: one argument too many"
            if "path" in getattr(error.target, "__annotations__", ()):
                problem += "; name one run, or the folder of several"
            if tokens[0] not in commands and not commands.keys().isdisjoint(tokens):
                problem = "options come after the command, for example: check --json PATH"
        if tokens[0] in commands:
            command = f"{command} {tokens[0]}"
        fail(f"{problem} (see {command} --help)", USAGE)
    return code
