"""``moe-microscope doctor``: what the terminal can show, why, and what would improve it.

The rules for colours are those of Rich and Textual; a test compares them. They are repeated here
because neither reports its reasons, and because tmux and GNU screen show 256 colours even if TERM
promises 16, so the screens use them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from microscope_tui.lines import MIN_COLUMNS, MIN_ROWS, Glyphs, wrap
from microscope_tui.runlog import safe_text

ROOMY_ROWS = 30
_COLOURLESS = ("dumb", "unknown")
_SYSTEMS = {"truecolor": "truecolor", "256": "256", "standard": "16", "windows": "16"}
_IN_MULTIPLEXER = ("screen", "tmux")
_BY_TERM = {"kitty": "256", "256color": "256", "16color": "16"}
_SHOWN = 60
_LABEL, _WIDTH = 12, 74


@dataclass(frozen=True, slots=True)
class Colours:
    """The number of colours, and why."""

    system: str | None
    """``truecolor``, ``256`` or ``16``; ``None`` if the screens cannot open."""
    reason: str
    remedy: str = ""
    """What to do if the screens cannot open."""


@dataclass(frozen=True, slots=True)
class Tmux:
    """tmux, as far as it answered."""

    version: str = ""
    outer: str = ""
    """TERM of the terminal outside."""
    features: str = ""
    """What the terminal outside can do, separated by commas; ``RGB`` is truecolor."""

    @property
    def truecolor_passes(self) -> bool | None:
        """Whether truecolor reaches the terminal outside; ``None`` if unknown."""
        return "RGB" in self.features.split(",") if self.features else None


@dataclass(frozen=True, slots=True)
class Terminal:
    """The terminal that the screens would open in."""

    environment: Mapping[str, str]
    encoding: str
    glyphs: Glyphs
    size: tuple[int, int] | None
    """Columns and rows; ``None`` without a terminal."""
    used: tuple[int, int] | None
    """The size that Textual uses: COLUMNS and LINES come first where they are set."""
    tmux: Tmux | None = None

    def said(self, *names: str) -> str:
        """The first of these variables that is set, safe to print; empty without one."""
        return next((safe_text(self.environment[n], _SHOWN) for n in names if self.has(n)), "")

    def has(self, name: str) -> bool:
        """Whether the variable is set and not empty."""
        return bool(self.environment.get(name))

    @property
    def no_color(self) -> bool:
        """Whether colours are off; Textual honours an empty NO_COLOR, too."""
        return "NO_COLOR" in self.environment


def in_multiplexer(environment: Mapping[str, str]) -> bool:
    """Whether in tmux or GNU screen, here or on the machine that the SSH session came from."""
    term = environment.get("TERM", "").strip().lower()
    inside = environment.get("TMUX") or environment.get("STY")
    return bool(inside) or term.split("-")[0].split(".")[0] in _IN_MULTIPLEXER


def is_remote(environment: Mapping[str, str]) -> bool:
    """Whether bandwidth may be scarce: over SSH, or in tmux or screen.

    Both outlive connections: their environment does not show where they are attached from now.
    """
    return bool(environment.get("SSH_CONNECTION")) or in_multiplexer(environment)


def colours_of(environment: Mapping[str, str]) -> Colours:
    """How many colours the screens use, by TERM, COLORTERM and TEXTUAL_COLOR_SYSTEM."""
    forced = environment.get("TEXTUAL_COLOR_SYSTEM", "auto")
    term = environment.get("TERM", "").strip().lower()
    shown = safe_text(term, _SHOWN)
    if not term or term in _COLOURLESS:
        said = f"TERM={shown}" if term else "TERM is not set"
        remedy = "set TERM to what your terminal is, for example xterm-256color"
        return Colours(None, said, f"{remedy}; until then use `snapshot` and `check`")
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
    """The layout for a window of this size, in words."""
    if columns < MIN_COLUMNS or rows < MIN_ROWS:
        return f"one line with the state; the table needs {MIN_COLUMNS}x{MIN_ROWS}"
    if rows < ROOMY_ROWS:
        return f"compact, a verdict of two lines; roomy from {ROOMY_ROWS} rows on"
    return "roomy, a verdict of three lines"


def doctor_text(versions: Mapping[str, str], terminal: Terminal) -> str:
    """The report: one page for users and for bug reports."""
    programs = ", ".join(f"{name} {version}" for name, version in versions.items())
    blocks = [
        [programs],
        ["terminal", *_rows(_of_terminal(terminal))],
        ["connection", *_rows(_of_connection(terminal))],
    ]
    if advice := recommended(terminal):
        blocks.append(["Recommended:", *(line for one in advice for line in _item(one))])
    else:
        blocks.append(["Recommended: nothing, all is well."])
    return "\n\n".join("\n".join(block) for block in blocks)


def recommended(terminal: Terminal) -> list[str]:
    """What to change, most important first; empty if all is well."""
    colours = colours_of(terminal.environment)
    advice = [colours.remedy] if colours.remedy else _for_colours(terminal, colours.system)
    if terminal.no_color:
        advice.append("unset NO_COLOR to show loads as colours instead of characters")
    if terminal.glyphs is Glyphs.ASCII and colours.system:
        advice.append("for finer curves use a UTF-8 locale, for example LANG=C.UTF-8")
    columns, rows = terminal.used or (MIN_COLUMNS, MIN_ROWS)
    if terminal.used != terminal.size:
        advice.append("unset COLUMNS and LINES: they override the real size of the window")
    elif columns < MIN_COLUMNS or rows < MIN_ROWS:
        advice.append(f"make the window at least {MIN_COLUMNS}x{MIN_ROWS}")
    if terminal.has("SSH_CONNECTION"):
        advice.append("connect with `ssh -C`: compressed, a screen is a fraction of its bytes")
    return advice


def _for_colours(terminal: Terminal, system: str | None) -> list[str]:
    full = system == "truecolor"
    if terminal.tmux is not None:
        passes, outer = terminal.tmux.truecolor_passes, terminal.tmux.outer or "*"
        advice = []
        if passes is False or (passes is None and not full):
            advice.append(
                f'if your terminal has truecolor, put `set -ga terminal-overrides ",{outer}:Tc"` '
                "into ~/.tmux.conf and restart tmux" + ("; until then use --color 256" * full)
            )
        if not full:
            then = "then " if advice else ""
            line = "`set-environment -g COLORTERM truecolor`"
            advice.append(f"{then}put {line} into ~/.tmux.conf and open a new pane")
        return advice
    if terminal.has("STY"):
        return ["in GNU screen before 5.0 use --color 256: it has no truecolor"] if full else []
    if full or terminal.said("TERM") == "linux":
        return []
    remote = terminal.has("SSH_CONNECTION")
    where = " on this machine (ssh does not pass it on)" if remote else ""
    line = "`export COLORTERM=truecolor`"
    return [f"if your terminal has truecolor, put {line} into your shell's profile{where}"]


def _of_terminal(terminal: Terminal) -> list[tuple[str, str]]:
    size = [("size", "no terminal")]
    if terminal.size and terminal.used:
        size = [("size", "{}x{}".format(*terminal.size))]
        if terminal.used != terminal.size:
            size.append(("", "COLUMNS and LINES give {}x{}".format(*terminal.used)))
        size.append(("layout", layout_of(*terminal.used)))
    colours = colours_of(terminal.environment)
    locale = terminal.said("LC_ALL", "LANG") or "not set"
    no_color = "set: no colours, loads as characters" if terminal.no_color else "not set"
    return [
        ("TERM", terminal.said("TERM") or "not set"),
        ("COLORTERM", terminal.said("COLORTERM") or "not set"),
        ("NO_COLOR", no_color),
        ("colours", f"{colours.system or 'none'}: {colours.reason}"),
        ("characters", f"{terminal.glyphs}: {terminal.encoding}, locale {locale}"),
        *size,
    ]


def _of_connection(terminal: Terminal) -> list[tuple[str, str]]:
    ssh = ("ssh", "yes" if terminal.has("SSH_CONNECTION") else "no")
    tmux = terminal.tmux
    if tmux is None:
        return [("tmux, screen", "GNU screen" if terminal.has("STY") else "no"), ssh]
    passes = {None: "not known", True: "yes", False: "no"}[tmux.truecolor_passes]
    outside = tmux.outer or "an unnamed terminal"
    through = f"passes through: {passes} (terminal outside: {outside})"
    return [("tmux", tmux.version or "version unknown"), ("truecolor", through), ssh]


def _item(advice: str) -> list[str]:
    """Wrapped to lines; commands to copy stay on one line."""
    whole = re.sub("`[^`]+`", lambda found: found[0].replace(" ", "\0"), advice)
    first, *rest = (line.replace("\0", " ") for line in wrap(whole, _WIDTH))
    return [f"  - {first}", *(f"    {line}" for line in rest)]


def _rows(rows: Sequence[tuple[str, str]]) -> list[str]:
    return [f"  {label:<{_LABEL}} {value}" for label, value in rows]
