"""``moe-microscope doctor``: what the terminal can show, why, and what would improve it.

The rules for colours are those of Rich and Textual, which do not report reasons; a test compares
them. tmux and GNU screen show 256 colours even if TERM promises 16, so the screens use them.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata

import msgspec

from microscope_tui.commands.console import print_data
from microscope_tui.commands.version import own_version
from microscope_tui.draw.frame import MIN_COLUMNS, MIN_ROWS
from microscope_tui.draw.glyphs import Glyphs, glyphs_for
from microscope_tui.draw.spans import wrap
from microscope_tui.runlog import safe_text

ROOMY_ROWS = 30
_COLOURLESS = ("dumb", "unknown")
_SYSTEMS = {"truecolor": "truecolor", "256": "256", "standard": "16", "windows": "16"}
_IN_MULTIPLEXER = ("screen", "tmux")
_BY_TERM = {"kitty": "256", "256color": "256", "16color": "16"}
_SHOWN = 60
_WIDTH = 74


class Colours(msgspec.Struct, frozen=True):
    """Which colours the terminal shows, why, and what to change, if anything."""

    system: str | None
    """``truecolor``, ``256``, ``16``; ``None``: the screens cannot open."""
    reason: str
    remedy: str = ""


class Terminal(msgspec.Struct, frozen=True):
    """What ``doctor`` finds out about a terminal."""

    environment: Mapping[str, str]
    encoding: str
    glyphs: Glyphs
    size: tuple[int, int] | None
    """Columns and rows."""
    used: tuple[int, int] | None
    """What Textual uses: COLUMNS and LINES come first."""
    tmux: str = ""
    """The features of the terminal outside, as tmux reports them."""


def in_multiplexer(environment: Mapping[str, str]) -> bool:
    """tmux or GNU screen, here or where the SSH session came from."""
    term = environment.get("TERM", "").strip().lower()
    inside = environment.get("TMUX") or environment.get("STY")
    return bool(inside) or term.split("-")[0].split(".")[0] in _IN_MULTIPLEXER


def is_remote(environment: Mapping[str, str]) -> bool:
    """Whether bandwidth may be scarce: over SSH, or in tmux or screen, which outlive it."""
    return bool(environment.get("SSH_CONNECTION")) or in_multiplexer(environment)


def colours_of(environment: Mapping[str, str]) -> Colours:
    """What colours a terminal shows, by TERM, COLORTERM and TEXTUAL_COLOR_SYSTEM, and why."""
    forced = environment.get("TEXTUAL_COLOR_SYSTEM", "auto")
    term = environment.get("TERM", "").strip().lower()
    shown = safe_text(term, _SHOWN)
    if not term or term in _COLOURLESS:
        reason = f"TERM={shown}" if term else "TERM is not set"
        remedy = "set TERM to what your terminal is, for example xterm-256color"
        return Colours(None, reason, f"{remedy}; until then use `snapshot` and `check`")
    if forced != "auto":
        name = safe_text(forced, _SHOWN)
        if forced not in _SYSTEMS:
            remedy = f"unset TEXTUAL_COLOR_SYSTEM, or set it to one of {', '.join(_SYSTEMS)}"
            return Colours(None, f"TEXTUAL_COLOR_SYSTEM={name} is not known", remedy)
        return Colours(_SYSTEMS[forced], f"TEXTUAL_COLOR_SYSTEM={name} asks for it")
    colorterm = environment.get("COLORTERM", "").strip().lower()
    if colorterm in ("truecolor", "24bit"):
        return Colours("truecolor", f"COLORTERM={colorterm}")
    _, _, ending = term.rpartition("-")
    if ending in _BY_TERM:
        return Colours(_BY_TERM[ending], f"TERM={shown}, and COLORTERM is not truecolor")
    if in_multiplexer(environment):
        return Colours("256", f"TERM={shown} in tmux or screen, which show 256 colours")
    return Colours("16", f"TERM={shown} names no more, and COLORTERM is not truecolor")


def layout_of(columns: int, rows: int) -> str:
    """What the main screen shows in a window of this size, in words."""
    if columns < MIN_COLUMNS or rows < MIN_ROWS:
        return f"one line with the state; the table needs {MIN_COLUMNS}x{MIN_ROWS}"
    if rows < ROOMY_ROWS:
        return f"compact, a verdict of two lines; roomy from {ROOMY_ROWS} rows on"
    return "roomy, a verdict of three lines"


def doctor_text(versions: Mapping[str, str], terminal: Terminal) -> str:
    """What ``doctor`` prints: versions, facts of the terminal, and what to change."""
    lines = [", ".join(f"{name} {version}" for name, version in versions.items()), ""]
    lines += [f"{label:<12} {value}" for label, value in _facts(terminal)]
    advice = recommended(terminal)
    lines += ["", "Recommended:" if advice else "Recommended: nothing, all is well."]
    for one in advice:
        # Commands to copy stay on one line.
        whole = re.sub("`[^`]+`", lambda found: found[0].replace(" ", "\0"), one)
        first, *rest = (line.replace("\0", " ") for line in wrap(whole, _WIDTH))
        lines += [f"  - {first}", *(f"    {line}" for line in rest)]
    return "\n".join(lines)


def _facts(terminal: Terminal) -> list[tuple[str, str]]:
    environment, size, used = terminal.environment, terminal.size, terminal.used
    colours = colours_of(environment)

    def value_of(*names: str) -> str:
        values = (safe_text(environment.get(name, ""), _SHOWN) for name in names)
        return next(filter(None, values), "not set")

    locale = f"{terminal.encoding}, locale {value_of('LC_ALL', 'LANG')}"
    facts = [
        ("TERM", value_of("TERM")),
        ("COLORTERM", value_of("COLORTERM")),
        ("NO_COLOR", "set: loads as characters" if "NO_COLOR" in environment else "not set"),
        ("colours", f"{colours.system or 'none'}: {colours.reason}"),
        ("characters", f"{terminal.glyphs}: {locale}"),
    ]
    if size and used:
        real = "{}x{}".format(*size)
        if used != size:
            real += ", COLUMNS and LINES give {}x{}".format(*used)
        facts += [("size", real), ("layout", layout_of(*used))]
    else:
        facts.append(("size", "no terminal"))
    if environment.get("TMUX"):
        passes = "not known"
        if terminal.tmux:
            passes = "yes" if "RGB" in terminal.tmux.split(",") else "no"
        version = value_of("TERM_PROGRAM_VERSION")
        facts.append(("tmux", f"version {version}, truecolor passes through: {passes}"))
    return [*facts, ("ssh", "yes" if environment.get("SSH_CONNECTION") else "no")]


def recommended(terminal: Terminal) -> list[str]:
    """What to change so that everything is shown, one sentence each; empty if all is well."""
    environment, size, used = terminal.environment, terminal.size, terminal.used
    colours = colours_of(environment)
    advice = [colours.remedy] if colours.remedy else _for_truecolor(terminal, colours.system)
    if "NO_COLOR" in environment:  # Textual honours an empty one, too
        advice.append("unset NO_COLOR to show loads as colours instead of characters")
    if terminal.glyphs is Glyphs.ASCII and colours.system:
        advice.append("for finer curves use a UTF-8 locale, for example LANG=C.UTF-8")
    if used != size:
        advice.append("unset COLUMNS and LINES: they override the real size of the window")
    elif used and (used[0] < MIN_COLUMNS or used[1] < MIN_ROWS):
        advice.append(f"make the window at least {MIN_COLUMNS}x{MIN_ROWS}")
    if environment.get("SSH_CONNECTION"):
        advice.append("connect with `ssh -C`: compressed, a screen is a fraction of its bytes")
    return advice


def _for_truecolor(terminal: Terminal, system: str | None) -> list[str]:
    environment = terminal.environment
    full = system == "truecolor"
    if environment.get("TMUX"):
        lines = []
        if "RGB" not in terminal.tmux.split(",") and (terminal.tmux or not full):
            lines.append('`set -ga terminal-overrides ",*:Tc"`')
        if not full:
            lines.append("`set-environment -g COLORTERM truecolor`")
        if not lines:
            return []
        how = f"{' and '.join(lines)} into ~/.tmux.conf and restart tmux"
    elif environment.get("STY"):
        return ["in GNU screen before 5.0 use --color 256: it has no truecolor"] if full else []
    elif full or environment.get("TERM") == "linux":
        return []
    else:
        how = "`export COLORTERM=truecolor` into your shell's profile"
        if environment.get("SSH_CONNECTION"):
            how += " on this machine (ssh does not pass it on)"
    return [f"if your terminal has truecolor, put {how}"]


_ANSWER_S = 2.0


def doctor() -> int:
    """Report what this terminal can show, how that was detected, and what would help."""
    versions = {"moe-microscope": own_version()}
    versions |= {name: metadata.version(name) for name in ("textual", "rich")}
    versions |= {"Python": platform.python_version(), platform.system(): platform.release()}
    streams = (sys.stderr, sys.stdout, sys.stdin)  # the screens use standard error
    size = next((os.get_terminal_size(s.fileno()) for s in streams if s.isatty()), None)
    used = shutil.get_terminal_size(size) if size else None
    glyphs = glyphs_for("auto", sys.stderr)
    encoding = (sys.stderr.encoding or "ascii").lower()
    tmux = tmux_says() if os.environ.get("TMUX") else ""
    print_data(doctor_text(versions, Terminal(os.environ, encoding, glyphs, size, used, tmux)))
    return 0


def tmux_says() -> str:
    """The features of the terminal outside, as tmux lists them; empty if tmux does not answer."""
    command = ["tmux", "display-message", "-p", "#{client_termfeatures}"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_ANSWER_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return safe_text(done.stdout.decode("utf-8", "replace").strip(), 200)
