"""The doctor's report: the terminal and its environment, and what would improve them.

Plain lines under short headings, or the same as data. The advice depends on the facts only.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from microscope_tui.lines import MIN_COLUMNS, MIN_ROWS, Glyphs, wrap
from microscope_tui.report.terminal import Multiplexer, Terminal, layout_of

SCHEMA_VERSION = 2
_LABEL, _WIDTH = 12, 74
_FEATURES_SINCE = (3, 2)
"""The tmux version that introduced ``terminal-features``."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes that are sent to draw a heatmap."""

    frame: int
    """The full frame."""
    compressed: int
    """The full frame, compressed as by ``ssh -C``."""
    update: int
    """After one cell of a hundred has changed."""


@dataclass(frozen=True, slots=True)
class Facts:
    """All facts of the report."""

    versions: Mapping[str, str]
    terminal: Terminal
    costs: Mapping[str, Cost]
    """By the number of colours of this terminal."""


def doctor_text(facts: Facts, samples: Sequence[str] = ()) -> str:
    """The report; ``samples`` are lines that only a terminal may get."""
    programs = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    blocks = [
        [programs],
        ["terminal", *_rows(_terminal(facts.terminal))],
        ["connection", *_rows(_connection(facts.terminal))],
        ["bytes for a heatmap of 58 layers x 256 experts at 140x50", *_rows(_costs(facts.costs))],
    ]
    if samples:
        blocks.append(["what you should see", *(f"  {line}" for line in samples)])
    advice = recommended(facts)
    if not advice:
        blocks.append(["Recommended: nothing, all is well."])
    else:
        blocks.append(["Recommended:", *(line for one in advice for line in _item(one))])
    return "\n\n".join("\n".join(block) for block in blocks)


def doctor_json(facts: Facts) -> dict[str, Any]:
    """The same as data; the schema is versioned."""
    return {
        "schema_version": SCHEMA_VERSION,
        **asdict(facts),
        "truecolor_passes": facts.terminal.truecolor_passes,
        "recommended": recommended(facts),
    }


def recommended(facts: Facts) -> list[str]:
    """What to change, most important first; empty if all is well."""
    terminal = facts.terminal
    advice = []
    if terminal.colours.remedy:
        advice.append(terminal.colours.remedy)
    else:
        advice += _for_colours(terminal)
    if terminal.no_color:
        advice.append("unset NO_COLOR to show loads as colours instead of characters")
    if terminal.glyphs is Glyphs.ASCII and terminal.colours.system:
        advice.append("for finer curves use a UTF-8 locale, for example LANG=C.UTF-8")
    columns, rows = terminal.declared or terminal.size or (MIN_COLUMNS, MIN_ROWS)
    if terminal.size and terminal.declared not in (None, terminal.size):
        advice.append("unset COLUMNS and LINES: they override the real size of the window")
    elif columns < MIN_COLUMNS or rows < MIN_ROWS:
        advice.append(f"make the window at least {MIN_COLUMNS}x{MIN_ROWS}")
    if terminal.ssh:
        advice.append("connect with `ssh -C`: compressed, a screen is a fraction of its bytes")
    return advice


def _for_colours(terminal: Terminal) -> list[str]:
    between, system = terminal.multiplexer, terminal.colours.system
    if between is not None and between.name == "tmux":
        return _for_tmux(between, system, terminal.truecolor_passes)
    if between is not None:
        if system == "truecolor" and not re.search(r"\b[5-9]\.\d", between.version):
            return ["use --color 256: GNU screen has truecolor from version 5.0 on only"]
        return []
    if system == "truecolor" or terminal.term == "linux":
        return []
    where = " on this machine (ssh does not pass it on)" if terminal.ssh else ""
    return [
        "if the truecolor ramp that this report shows in the terminal is smooth, put "
        f"`export COLORTERM=truecolor` into your shell's profile{where}"
    ]


def _for_tmux(tmux: Multiplexer, system: str | None, passes: bool | None) -> list[str]:
    advice = []
    outer = tmux.outer or "*"
    old = _version(tmux.version) < _FEATURES_SINCE
    untold = passes is False or (old and system != "truecolor")
    if untold:
        line = f'set -as terminal-features ",{outer}:RGB"'
        if old:
            line = f'set -ga terminal-overrides ",{outer}:Tc"'
        advice.append(
            f"if your terminal has truecolor, put `{line}` into ~/.tmux.conf and restart tmux"
            + ("; until then use --color 256" if system == "truecolor" else "")
        )
    if system != "truecolor":
        advice.append(
            ("then " if untold else "")
            + "put `set-environment -g COLORTERM truecolor` into ~/.tmux.conf and open a new pane"
        )
    return advice


def _version(text: str) -> tuple[int, int]:
    """Of an unreadable version (a build from source) the newest is assumed."""
    found = re.search(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (99, 0)


def _terminal(terminal: Terminal) -> list[tuple[str, str]]:
    size = [("size", "no terminal")]
    if terminal.size:
        size = [("size", "{}x{}".format(*terminal.size))]
        if terminal.declared not in (None, terminal.size):
            size.append(("", "COLUMNS and LINES give {}x{}".format(*(terminal.declared or ()))))
        size.append(("layout", layout_of(*(terminal.declared or terminal.size))))
    locale = terminal.locale or "not set"
    no_color = "set: no colours, loads as characters" if terminal.no_color else "not set"
    return [
        ("TERM", terminal.term or "not set"),
        ("COLORTERM", terminal.colorterm or "not set"),
        ("NO_COLOR", no_color),
        ("colours", f"{terminal.colours.system or 'none'}: {terminal.colours.reason}"),
        ("characters", f"{terminal.glyphs}: {terminal.encoding}, locale {locale}"),
        *size,
        ("sync output", terminal.synchronised),
    ]


def _connection(terminal: Terminal) -> list[tuple[str, str]]:
    rows = [("ssh", "yes" if terminal.ssh else "no")]
    between = terminal.multiplexer
    if between is None:
        return [("tmux, screen", "no"), *rows]
    passes = terminal.truecolor_passes
    passing = {None: "not known", True: "yes", False: "no"}[passes]
    if between.name == "tmux":
        outside = between.outer or "an unnamed terminal"
        passing += f" (terminal outside: {outside})"
        rows.insert(0, ("truecolor", f"passes through: {passing}"))
    return [(between.name, between.version or "version unknown"), *rows]


def _costs(costs: Mapping[str, Cost]) -> list[tuple[str, str]]:
    head = ("", f"{'full frame':>10}  {'by ssh -C':>10}  {'1% changed':>10}")
    return [
        head,
        *(
            (system, f"{cost.frame:>10,}  {cost.compressed:>10,}  {cost.update:>10,}")
            for system, cost in costs.items()
        ),
    ]


def _item(advice: str) -> list[str]:
    """Wrapped to lines; commands to copy stay on one line."""
    whole = re.sub("`[^`]+`", lambda found: found[0].replace(" ", "\0"), advice)
    first, *rest = (line.replace("\0", " ") for line in wrap(whole, _WIDTH))
    return [f"  - {first}", *(f"    {line}" for line in rest)]


def _rows(rows: Sequence[tuple[str, str]]) -> list[str]:
    return [f"  {label:<{_LABEL}} {value}" for label, value in rows]
