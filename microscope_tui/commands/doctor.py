"""``moe-microscope doctor``: what this terminal can do, where things are, and what would help.

It looks, asks and measures, and changes nothing. The report is for a person and for a bug report.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from platformdirs import user_state_path

from microscope_tui.commands.ask_terminal import synchronised_output
from microscope_tui.commands.config import default_config
from microscope_tui.console import DEFAULT_PATH, PIPE, print_data
from microscope_tui.lines.glyphs import glyphs_for
from microscope_tui.report.doctor import Facts, Files, doctor_json, doctor_text
from microscope_tui.report.terminal import Multiplexer, Terminal, colours_of
from microscope_tui.runlog.safe_text import safe_text
from microscope_tui.watch.file_events import FileEvents

_ANSWER_S = 2.0
_WATCH_S = 3.0
_SHOWN = 60
_PATH_SHOWN = 200


def doctor(
    path: Path = DEFAULT_PATH,
    /,
    *,
    as_json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> int:
    """Say what this terminal can show, where files are, what a screen costs, and what would help.

    Parameters
    ----------
    path
        The folder of runs or the log whose changes would be watched.
    as_json_
        Print the same as JSON.
    """
    from microscope_tui.app.renderables.frame_cost import costs

    facts = Facts(_versions(), _terminal(os.environ), _files(path), costs())
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
        no_color="NO_COLOR" in environment,  # Textual obeys an empty one, too
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
    """Of the terminal that the screens would be drawn on; they are drawn on standard error."""
    for stream in (sys.stderr, sys.stdout, sys.stdin):
        if stream.isatty():
            columns, rows = os.get_terminal_size(stream.fileno())
            return columns, rows
    return None


def multiplexer(environment: Mapping[str, str]) -> Multiplexer | None:
    """tmux or GNU screen, if we run inside one; each is asked, and need not answer."""
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
    # GNU screen says its version with exit code 1.
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    return safe_text(lines[0].strip(), _PATH_SHOWN) if lines else ""


def _files(path: Path) -> Files:
    mode, reason = _watched(path)
    config = default_config()
    return Files(
        path=safe_text(path, _PATH_SHOWN),
        mode=mode,
        reason=safe_text(reason, _PATH_SHOWN),
        config=safe_text(config, _PATH_SHOWN),
        config_there=config.is_file(),
        views=safe_text(user_state_path("moe-microscope", appauthor=False) / "views", _PATH_SHOWN),
    )


def _watched(path: Path) -> tuple[str, str]:
    """How changes at ``path`` would be noticed: mode, and why not by events."""
    if path == PIPE:
        return "", "a pipe is read as it comes"
    if not os.path.exists(path):
        return "", "no such file or folder"
    events = FileEvents(path)
    # A mount that hangs must not make the doctor hang.
    starting = threading.Thread(target=events.start, daemon=True)
    starting.start()
    starting.join(_WATCH_S)
    if starting.is_alive():
        return "", f"the file system has not answered within {_WATCH_S:.0f} s"
    mode, reason = events.mode, events.reason
    events.stop()
    return mode, reason


def _samples(terminal: Terminal) -> list[str]:
    """Only for a terminal that shows them: never an escape sequence into a pipe."""
    if not sys.stdout.isatty() or terminal.colours.system is None:
        return []
    from microscope_tui.app.renderables.samples import colour_samples, glyph_samples

    glyphs = glyphs_for("auto", sys.stdout)
    return [*([] if terminal.no_color else colour_samples(glyphs)), *glyph_samples(glyphs)]
