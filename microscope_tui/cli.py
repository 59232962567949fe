"""The command line. Standard output is for data, standard error for messages.

Exit codes are an API: 0 to 3 are verdicts of ``check``, 64 is a usage error. The plain call, which
opens the screens, does not wait for a parser.
"""

import gc
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from microscope_tui.installed import NotInstalled, missing, not_installed

_ALL = {
    "check": (
        "commands.check.command:check",
        "Judge a run: 0 healthy, 1 warning, 2 critical, 3 no verdict.",
    ),
    "snapshot": (
        "commands.snapshot:snapshot",
        "Print any screen at any step: text, data or a picture.",
    ),
    "probe": (
        "extensions.anatomy.probe_command:probe",
        "Trace what the experts of a finished model do with a text.",
    ),
    "explain": (
        "commands.explain:explain",
        "List the rules, or explain one and what to do about it.",
    ),
    "demo": ("commands.demo:demo", "Write a synthetic run with known ground truth and open it."),
    "export": ("commands.export:export", "Write a run as a table: one row per step and router."),
    "import": ("commands.export:import_runs", "Convert what another tool logged to run logs."),
    "coverage": (
        "extensions.anatomy.coverage_command:coverage",
        "List the experts that saw too few tokens: 0 none, 1 some.",
    ),
    "mismatch": (
        "extensions.anatomy.mismatch_command:mismatch",
        "Compare what two probes of the same tokens chose.",
    ),
    "placement": (
        "extensions.placement.command:placement",
        "Score where experts should live: 0 pays, 1 does not.",
    ),
    "sources": ("commands.sources:sources", "List the files of other tools that can be read."),
    "keys": ("commands.keys:keys", "List the keys of every screen: id, keys, what they do."),
    "doctor": ("commands.doctor:doctor", "Report what this terminal can show, and why."),
}
"""Name → location and description."""
COMMANDS = {name: row for name, row in _ALL.items() if not missing(row[0])}
"""Those of this installation."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code; never returns.

    130 after Ctrl-C. After an unexpected error one line is printed, and the code is the one for
    no verdict: 1 would be a verdict.
    """
    gc.disable()  # what is made during a start stays: searching it for garbage takes 10 ms
    given = sys.argv[1:] if arguments is None else arguments
    try:
        code = _run(given)
    except KeyboardInterrupt:
        code = 130
    except Exception as error:  # never exit with 1 by accident: 1 is a verdict
        from microscope_tui.commands.console import NO_VERDICT, USAGE, fail
        from microscope_tui.runlog import NoRuns

        if isinstance(error, NotInstalled):
            fail(str(error), USAGE)
        if isinstance(error, NoRuns):
            fail(str(error), NO_VERDICT)
        fail(f"failed: {error!r}", NO_VERDICT)
    finally:
        gc.enable()
    sys.exit(code if isinstance(code, int) else 0)


def _run(given: Sequence[str]) -> int | None:
    if raises := signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Raised in an import, KeyboardInterrupt can be lost, or crash msgspec.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from pathlib import Path

    from microscope_tui.commands.console import DEFAULT_PATH, PIPE

    # A lone hyphen would be parsed as an option; spelled like this it is the same path.
    tokens = [{str(PIPE): f"./{PIPE}"}.get(token, token) for token in given]
    if tokens:
        _refuse_missing(tokens[0])
        _refuse_misspelled(tokens[0])
    if not tokens or (len(tokens) == 1 and _is_path(tokens[0])):
        from microscope_tui.commands.config import read_config
        from microscope_tui.commands.watch import watch_with

        return watch_with(Path(*tokens) if tokens else DEFAULT_PATH, read_config())
    if raises:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    from microscope_tui.commands.parser import run

    gc.freeze()  # the end of the process would search it, too
    gc.enable()
    return run(tokens, COMMANDS)


def _is_path(token: str) -> bool:
    return bool(token) and token not in COMMANDS and not token.startswith("-")


def _refuse_missing(word: str) -> None:
    """``NotInstalled``: ``word`` is a command of an extension that is not here."""
    if word in _ALL and (extension := missing(_ALL[word][0])):
        raise not_installed(word, extension)


def _refuse_misspelled(word: str) -> None:
    """Exit if ``word`` is close to a command, and no file or folder."""
    if not _is_path(word) or "/" in word or os.path.exists(word):
        return
    from difflib import get_close_matches

    from microscope_tui.commands.console import USAGE, fail

    if near := get_close_matches(word, [*COMMANDS, "--help"], n=1):
        fail(f"{word}: no such command, file or folder; did you mean `{near[0]}`?", USAGE)


if __name__ == "__main__":
    main()
