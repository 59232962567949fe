"""Capabilities of a terminal, derived from its environment.

The rules are those of Rich and Textual; a test compares them. They are repeated here because
neither reports its reasons, and because tmux and GNU screen show 256 colours even if TERM promises
16, so the screens use them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from microscope_tui.lines import MIN_COLUMNS, MIN_ROWS, Glyphs
from microscope_tui.runlog import safe_text

ROOMY_ROWS = 30
_COLOURLESS = ("dumb", "unknown")
_SYSTEMS = {"truecolor": "truecolor", "256": "256", "standard": "16", "windows": "16"}
_IN_MULTIPLEXER = ("screen", "tmux")
_BY_TERM = {"kitty": "256", "256color": "256", "16color": "16"}
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Colours:
    """The number of colours, and why."""

    system: str | None
    """``truecolor``, ``256`` or ``16``; ``None`` if the screens cannot open."""
    reason: str
    remedy: str = ""
    """What to do if the screens cannot open."""


@dataclass(frozen=True, slots=True)
class Multiplexer:
    """A terminal multiplexer, between us and the outer terminal."""

    name: str
    """``tmux`` or ``screen``."""
    version: str = ""
    """Its own version string; empty if it did not answer."""
    outer: str = ""
    """TERM of the outer terminal."""
    features: tuple[str, ...] = ()
    """tmux's features of the outer terminal; ``RGB`` is truecolor."""


@dataclass(frozen=True, slots=True)
class Terminal:
    """The terminal that the screens would open in."""

    term: str
    colorterm: str
    no_color: bool
    colours: Colours
    encoding: str
    locale: str
    """LC_ALL or LANG."""
    glyphs: Glyphs
    size: tuple[int, int] | None
    """Columns and rows; ``None`` without a terminal."""
    declared: tuple[int, int] | None
    """Size by COLUMNS and LINES, which Textual prefers; ``None`` if not set."""
    synchronised: str
    """Synchronised output: ``yes``, ``no``, ``no answer``, or why it was not asked for."""
    multiplexer: Multiplexer | None
    ssh: bool

    @property
    def truecolor_passes(self) -> bool | None:
        """Whether truecolor reaches the outer terminal; ``None`` if unknown."""
        if self.multiplexer is None or not self.multiplexer.features:
            return None
        return "RGB" in self.multiplexer.features


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
