"""The command line. Standard output is data, standard error is narration.

Exit codes are an API: 0 to 3 are verdicts of ``check``, 64 is a usage error. The UI is imported
only when it opens, so that ``check`` starts quickly on a login node.
"""

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal, NoReturn

from cyclopts import App, CycloptsError, Parameter

from microscope_tui.commands.config import UserConfig, keymap_from, read_config
from microscope_tui.commands.snapshot import print_snapshot, snapshot
from microscope_tui.console import (
    PIPE,
    USAGE,
    fail,
    fail_if_unreadable,
    fail_without_runs,
    memory_bytes,
    piped,
    read,
    read_pipe,
    runs_at,
    say,
)
from microscope_tui.report.check import NO_VERDICT
from microscope_tui.report.locale import glyphs_for
from microscope_tui.report.palettes import Palette
from microscope_tui.runlog.discover import KnownLogs, NoRuns
from microscope_tui.runlog.piped import take_over_stdin
from microscope_tui.runlog.records import LOG_NAME
from microscope_tui.runlog.safe_text import safe_text
from microscope_tui.scenarios.catalogue import SCENARIOS
from microscope_tui.scenarios.write import UnknownScenario, write_run
from microscope_tui.watch.fleet import Fleet

_SCENARIOS_HELP = f"One of {', '.join(SCENARIOS)}."

app = App(
    name="moe-microscope",
    help="Watch the routers of a Mixture-of-Experts model while it trains.",
    version=lambda: metadata.version("moe-microscope"),
    result_action="return_value",
)
app.command(snapshot)
# Imported only when they are called: the first screen must not wait for them.
for name, function, help_ in (
    (
        "check",
        "check:check",
        "Judge the newest run: 0 healthy, 1 warning, 2 critical, 3 no verdict.",
    ),
    ("explain", "explain:explain", "List the rules, or say what one means and what to do."),
    ("keys", "keys:keys_command", "List the keys of every screen: id, keys, what they do."),
    ("doctor", "doctor:doctor", "Say what this terminal can show and what a screen costs."),
):
    app.command(f"microscope_tui.commands.{function}", name=name, help=help_)


@app.default
def watch(
    path: Path = Path("logs"),
    /,
    *,
    memory: str = "",
    budget: str = "",
    color: Literal["auto", "truecolor", "256", "16", "never"] | None = None,
    glyphs: Literal["auto", "braille", "block", "ascii"] | None = None,
    bell: Annotated[bool, Parameter(negative=())] = False,
    config: Path | None = None,
) -> int:
    """Open the microscope on a folder of runs, one run folder, one .jsonl file, or a pipe.

    Parameters
    ----------
    path
        Where the runs are; ``-`` reads a log from the standard input. A folder that is still
        empty is waited on.
    memory
        Bound of the memory for the history, for example 64MB; 128MB by default.
    budget
        Bytes a second that may go to the terminal, for example 10k: the screen is redrawn less
        often and in fewer colours rather than more.
    color
        How many colours the terminal can show; ``never`` also obeys NO_COLOR.
    glyphs
        Characters for curves: braille needs a font that has it, ascii works everywhere.
    bell
        Ring at a new critical alert.
    config
        The config file, instead of the user's own.
    """
    limit, user = memory_bytes(memory), read_config(config)
    view = user.view
    view = replace(
        view,
        color=color or view.color,
        glyphs=glyphs or view.glyphs,
        bell=bell or view.bell,
        budget=_budget(budget) or view.budget,
    )
    return watch_with(path, limit, replace(user, view=view))


def watch_with(path: Path, limit: int, user: UserConfig) -> int:
    """Open the microscope on ``path`` as the user wants it."""
    criteria = user.criteria
    if path == PIPE:
        return _watch_pipe(limit, user)
    known = KnownLogs()
    runs = runs_at(path, may_be_empty=True, known=known)
    if not (sys.stderr.isatty() and sys.stdin.isatty()):
        fail_without_runs(path, runs)
        say("no terminal here: printing a snapshot instead")
        return print_snapshot(
            read(runs[0], criteria, limit), glyphs_for(user.view.glyphs, sys.stdout)
        )
    if len(runs) == 1:
        fail_if_unreadable(runs[0])
    return _open(Fleet(path, limit, known, criteria), user)


def _watch_pipe(limit: int, user: UserConfig) -> int:
    criteria = user.criteria
    if not sys.stderr.isatty():
        say("no terminal here: printing a snapshot at the end of the input instead")
        return print_snapshot(
            read_pipe(criteria=criteria, memory=limit), glyphs_for(user.view.glyphs, sys.stdout)
        )
    try:
        descriptor = take_over_stdin()
    except OSError as error:
        fail(str(error), USAGE)
    return _open(Fleet.of_one(piped(descriptor, criteria, limit)[0]), user)


def _open(fleet: Fleet, user: UserConfig) -> int:
    view = user.view
    _prepare_terminal(view.color)
    from microscope_tui.app.microscope import Microscope
    from microscope_tui.app.preferences import Preferences

    preferences = Preferences(
        palette=Palette(view.palette),
        budget=view.budget,
        bell=view.bell,
        remember=view.remember,
        keymap=keymap_from(user),
    )
    microscope = Microscope(fleet, glyphs_for(view.glyphs, sys.stderr), preferences)
    microscope.run(mouse=False)
    if microscope.problem:
        say(microscope.problem)
    code = microscope.return_code or 0
    return NO_VERDICT if code == 1 else code  # Textual says 1 after a crash: here it is a verdict


@app.command
def demo(
    *,
    scenario: Annotated[str, Parameter(help=_SCENARIOS_HELP)] = "collapse",
    live: Annotated[bool, Parameter(negative=())] = False,
    seed: int = 0,
    output: Annotated[Path | None, Parameter(name=["-o", "--output"])] = None,
) -> int:
    """Write a synthetic run with known truth and open the microscope on it.

    Parameters
    ----------
    live
        Write step by step while the microscope watches.
    seed
        Another seed, another run.
    output
        Folder for the run; by default a temporary one that is removed afterwards.
    """
    if scenario not in SCENARIOS:
        fail(f"unknown scenario {scenario!r}: choose one of {', '.join(SCENARIOS)}", USAGE)
    with tempfile.TemporaryDirectory(prefix="moe-microscope-") as temporary:
        logs = output or Path(temporary)
        folder = logs / scenario
        if (folder / LOG_NAME).exists():
            fail(f"{folder}: holds a run already; choose another -o, or remove it", USAGE)
        if live:
            from microscope_tui.scenarios.live import writing

            with writing(folder, scenario, seed):
                return _show(logs)
        try:
            write_run(folder, scenario, seed=seed)
        except OSError as error:
            fail(f"{folder}: cannot be written: {error.strerror}; choose another -o", USAGE)
        return _show(logs)


def _show(logs: Path) -> int:
    """A demonstration is looked at like anything else, but nothing of it is kept."""
    user = read_config()
    return watch_with(
        logs, memory_bytes(""), replace(user, view=replace(user.view, remember=False))
    )


def _budget(text: str) -> int | None:
    from microscope_tui.app.pace import budget_of

    try:
        return budget_of(text)
    except ValueError as error:
        fail(f"--{error}", USAGE)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    given = sys.argv[1:] if arguments is None else arguments
    # A lone hyphen would be an option without a name; spelled like this it is the same path.
    tokens = [f"./{PIPE}" if token == str(PIPE) else token for token in given]
    try:
        code = app(tokens, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        fail(f"{safe_text(error, 300)} (see moe-microscope --help)", USAGE)
    except (NoRuns, UnknownScenario) as error:
        fail(str(error), NO_VERDICT)
    except KeyboardInterrupt:
        code = 130
    except Exception as error:  # never exit with 1 by accident: 1 is a verdict
        fail(f"failed: {error!r}", NO_VERDICT)
    sys.exit(code if isinstance(code, int) else 0)


def _prepare_terminal(color: str) -> None:
    """Settings that Textual reads once, when it is imported; the user's own win."""
    if os.environ.get("TERM", "dumb") == "dumb":
        fail("TERM=dumb cannot show the microscope: use `snapshot` or `check`, or set TERM", USAGE)
    os.environ.setdefault("TEXTUAL_ANIMATIONS", "none")
    os.environ.setdefault("TEXTUAL_FPS", "60")  # how long a key waits; we draw twice a second
    if color == "never":
        os.environ["NO_COLOR"] = "1"
    elif color != "auto":
        systems = {"truecolor": "truecolor", "256": "256", "16": "standard"}
        os.environ["TEXTUAL_COLOR_SYSTEM"] = systems[color]


if __name__ == "__main__":
    main()
