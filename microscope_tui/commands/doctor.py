"""``moe-microscope doctor``: what this terminal can do, and what a frame costs.

It measures and changes nothing. The report is made for users and for bug reports.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Annotated

from cyclopts import Parameter

from microscope_tui.commands.ask_terminal import synchronised_output
from microscope_tui.console import print_data
from microscope_tui.lines import glyphs_for
from microscope_tui.report import Facts, Multiplexer, Terminal, colours_of, doctor_json, doctor_text
from microscope_tui.runlog import safe_text

_ANSWER_S = 2.0
_SHOWN = 60
_ANSWER_SHOWN = 200


def doctor(
    *,
    as_json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> int:
    """Report what this terminal can show, what a frame costs, and what would help.

    Parameters
    ----------
    as_json_
        Print the same as JSON.
    """
    from microscope_tui.app import cost

    terminal = _terminal(os.environ)
    system = terminal.colours.system
    facts = Facts(_versions(), terminal, {system or "none": cost(system)})
    if as_json_:
        print_data(json.dumps(doctor_json(facts), indent=2, ensure_ascii=False))
    else:
        print_data(doctor_text(facts, _samples(facts.terminal)))
    return 0


def _versions() -> dict[str, str]:
    named = {name: metadata.version(name) for name in ("moe-microscope", "textual", "rich")}
    return named | {"Python": platform.python_version(), platform.system(): platform.release()}


def _terminal(environment: Mapping[str, str]) -> Terminal:
    size = _size()
    declared = None
    if size and (environment.get("COLUMNS") or environment.get("LINES")):
        columns, rows = shutil.get_terminal_size(size)
        declared = (columns, rows)
    return Terminal(
        term=safe_text(environment.get("TERM", ""), _SHOWN),
        colorterm=safe_text(environment.get("COLORTERM", ""), _SHOWN),
        no_color="NO_COLOR" in environment,  # Textual honours an empty one, too
        colours=colours_of(environment),
        encoding=(sys.stderr.encoding or "ascii").lower(),
        locale=safe_text(environment.get("LC_ALL") or environment.get("LANG") or "", _SHOWN),
        glyphs=glyphs_for("auto", sys.stderr),
        size=size,
        declared=declared,
        synchronised=synchronised_output(environment),
        multiplexer=multiplexer(environment),
        ssh=bool(environment.get("SSH_CONNECTION")),
    )


def _size() -> tuple[int, int] | None:
    """Size of the terminal on standard error, which the screens use."""
    for stream in (sys.stderr, sys.stdout, sys.stdin):
        if stream.isatty():
            columns, rows = os.get_terminal_size(stream.fileno())
            return columns, rows
    return None


def multiplexer(environment: Mapping[str, str]) -> Multiplexer | None:
    """tmux or GNU screen, if running inside one, as far as it answers."""
    if environment.get("TMUX"):
        version = _said("tmux", "-V")
        client = _said("tmux", "display-message", "-p", "#{client_termname} #{client_termfeatures}")
        outer, _, features = client.partition(" ")
        return Multiplexer(
            "tmux", version, outer, tuple(name for name in features.split(",") if name)
        )
    if environment.get("STY"):
        return Multiplexer("screen", _said("screen", "--version"))
    return None


def _said(*command: str) -> str:
    """The first line that ``command`` prints; empty where it fails or takes too long."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_ANSWER_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    # GNU screen prints its version with exit code 1.
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    return safe_text(lines[0].strip(), _ANSWER_SHOWN) if lines else ""


def _samples(terminal: Terminal) -> list[str]:
    """Samples for a terminal only: no escape sequences into a pipe."""
    if not sys.stdout.isatty() or terminal.colours.system is None:
        return []
    from microscope_tui.app import colour_samples, glyph_samples

    glyphs = glyphs_for("auto", sys.stdout)
    return [*([] if terminal.no_color else colour_samples(glyphs)), *glyph_samples(glyphs)]
