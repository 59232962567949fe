"""``moe-microscope [PATH]``: opens the screens, or prints a snapshot without a terminal.

Textual is imported late, and what only other commands need is not, so that the first frame comes
soon.
"""

import os
import re
import signal
import sys
from contextlib import suppress
from pathlib import Path

from microscope_tui.commands.config import UserConfig, keymap_from
from microscope_tui.commands.console import (
    NO_VERDICT,
    PIPE,
    USAGE,
    fail,
    fail_if_unreadable,
    piped,
    runs_at,
    say,
)
from microscope_tui.commands.doctor import colours_of, in_multiplexer, is_remote
from microscope_tui.draw.glyphs import glyphs_for
from microscope_tui.runlog import MOST_BYTES, take_over_stdin
from microscope_tui.sources import Search, SourceRequest
from microscope_tui.watch import DEFAULT_MEMORY, Fleet, VerdictCache
from microscope_tui.watch.cost import OF_HEADER, CostRequest

_LOCAL_S, _REMOTE_S = 0.5, 1.9  # between two redraws, which take a tenth at most
_WRITABLE = 0o200  # of the link that represents a descriptor
_SYSTEMS = {"truecolor": "truecolor", "256": "256", "16": "standard"}


def watch_with(
    path: Path,
    user: UserConfig,
    *,
    memory: int = DEFAULT_MEMORY,
    spool: int = MOST_BYTES,
    source: SourceRequest | None = None,
    cost: CostRequest = OF_HEADER,
) -> int:
    """Open the screens on ``path``, a pipe for ``-``; ``memory``, ``spool``: bytes to use."""
    search = Search(path, source or SourceRequest(rules=user.rules))
    if not (sys.stderr.isatty() and (path == PIPE or sys.stdin.isatty())):
        from microscope_tui.commands.snapshot import print_snapshot

        return print_snapshot(search, user, memory, cost)
    if path == PIPE:
        return _watch_pipe(user, memory, spool, cost)
    runs = runs_at(search, may_be_empty=True)
    if len(runs) == 1:
        fail_if_unreadable(runs[0])
    kept = VerdictCache(user.criteria) if user.view.remember else None
    return _open(Fleet(path, memory, search, user.criteria, kept), user, cost)


def _watch_pipe(user: UserConfig, memory: int, spool: int, cost: CostRequest) -> int:
    try:
        descriptor = take_over_stdin()
    except OSError as error:
        fail(str(error), USAGE)
    try:
        watched = piped(descriptor, user.criteria, memory, spool)
    except OSError as error:
        reason = error.strerror or error
        say(f"cannot create the spool: {reason}; set TMPDIR to a writable folder, or use --spool 0")
        watched = piped(descriptor, user.criteria, memory)
    code = _open(Fleet.of_one(watched), user, cost)
    if not _dismiss_writers(descriptor):
        say("what writes to this pipe stops at its next line; Ctrl-C stops it now")
    return code


def _dismiss_writers(descriptor: int) -> bool:
    """Stop the programs of our pipeline that write to our pipe; false if one stays.

    A shell takes its terminal back only when all have ended, and ``tail -F`` may wait hours for its
    next line. So each gets SIGPIPE now, as it would at its next write, unless it ignores the signal
    (``ssh``, a trainer in Python). Without ``/proc`` nothing is done.
    """
    gone = True
    with suppress(OSError):
        pipe = os.readlink(f"/proc/self/fd/{descriptor}")
        if not pipe.startswith("pipe:"):
            return True
        for process in Path("/proc").glob("[1-9]*"):
            number = int(process.name)
            with suppress(OSError):  # it has ended, or belongs to another user
                if number == os.getpid() or os.getpgid(number) != os.getpgrp():
                    continue
                links = [link for link in (process / "fd").iterdir() if os.readlink(link) == pipe]
                if not any(os.lstat(link).st_mode & _WRITABLE for link in links):
                    continue
                status = (process / "status").read_text(errors="replace")
                ignored = re.search(r"^SigIgn:\s*([0-9a-f]+)$", status, re.MULTILINE)
                if ignored and not int(ignored[1], 16) >> (signal.SIGPIPE - 1) & 1:
                    os.kill(number, signal.SIGPIPE)
                else:
                    gone = False
    return gone


def _open(fleet: Fleet, user: UserConfig, cost: CostRequest) -> int:
    view = user.view
    _prepare_terminal(view.color)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # see cli.py; and asyncio would cancel a task
    from microscope_tui.app.remembered import begin
    from microscope_tui.kit.session import Preferences

    preferences = Preferences(
        palette=view.palette,
        interval_s=_REMOTE_S if is_remote(os.environ) else _LOCAL_S,
        bell=view.bell,
        remember=view.remember,
        keymap=keymap_from(user),
        cost=cost,
        theme=view.theme,
    )
    session = begin(fleet, glyphs_for(view.glyphs, sys.stderr), preferences)
    from microscope_tui.app.microscope import Microscope  # Textual, while the log is read

    microscope = Microscope(session)
    microscope.run(mouse=False)
    for path in microscope.session.written:  # the screen's messages are gone
        say(f"written: {path}")
    if microscope.problem:
        say(microscope.problem)
    code = microscope.return_code or 0
    return NO_VERDICT if code == 1 else code  # Textual's 1 after a crash is a verdict here


def _prepare_terminal(color: str) -> None:
    """Set what Textual reads; the user's own settings win."""
    if os.environ.get("TERM", "dumb") == "dumb":
        fail("TERM=dumb cannot show the microscope: use `snapshot` or `check`, or set TERM", USAGE)
    os.environ.setdefault("TEXTUAL_ANIMATIONS", "none")
    # A new screen waits for one frame; keys that come faster share one.
    os.environ.setdefault("TEXTUAL_FPS", "60" if is_remote(os.environ) else "240")
    if color == "never":
        os.environ["NO_COLOR"] = "1"
    elif color != "auto":
        os.environ["TEXTUAL_COLOR_SYSTEM"] = _SYSTEMS[color]
    elif in_multiplexer(os.environ):  # Textual would treat TERM=screen as 16 colours
        system = colours_of(os.environ).system
        os.environ.setdefault("TEXTUAL_COLOR_SYSTEM", _SYSTEMS[system or "256"])
