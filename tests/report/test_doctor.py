"""The doctor's judgement of a terminal: as Rich will judge it, with advice that can be copied."""

import io
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from microscope_tui.lines import Glyphs, fit
from microscope_tui.report import (
    ROOMY_ROWS,
    Cost,
    Facts,
    Multiplexer,
    Terminal,
    colours_of,
    doctor_json,
    doctor_text,
    in_multiplexer,
    layout_of,
    recommended,
)
from microscope_tui.watch import view_of

GOOD = Facts(
    versions={"moe-microscope": "0.1.0", "Python": "3.11.7"},
    terminal=Terminal(
        term="xterm-256color",
        colorterm="truecolor",
        no_color=False,
        colours=colours_of({"TERM": "xterm-256color", "COLORTERM": "truecolor"}),
        encoding="utf-8",
        locale="C.UTF-8",
        glyphs=Glyphs.BRAILLE,
        size=(120, 40),
        declared=None,
        synchronised="yes",
        multiplexer=None,
        ssh=False,
    ),
    costs={"truecolor": Cost(60_000, 2_000, 9_000)},
)
TMUX = Multiplexer("tmux", "tmux 3.4", "xterm-kitty", ("bpaste", "RGB", "title"))
TERMS = st.sampled_from(
    [*("xterm", "xterm-256color", "xterm-kitty", "tmux-256color", "screen", "linux", "dumb"),
     *("unknown", "XTERM-256COLOR", " xterm-16color ", "rxvt-unicode-256color", "kitty")]
)  # fmt: skip
COLORTERMS = st.sampled_from(["truecolor", "24bit", " TrueColor", "yes", "", "256"])


def facts_of(**changes: Any) -> Facts:
    """A terminal with which all is well, but for ``changes``."""
    return replace(GOOD, terminal=replace(GOOD.terminal, **changes))


def of_256(**more: Any) -> Facts:
    """One that says 256 colours."""
    colours = colours_of({"TERM": "screen-256color"})
    return facts_of(term="screen-256color", colorterm="", colours=colours, **more)


@given(TERMS, COLORTERMS | st.none(), st.sampled_from(["auto", "256", "standard", "truecolor"]))
def test_the_number_of_colours_is_what_the_screens_will_use(
    term: str, colorterm: str | None, forced: Any
) -> None:
    environment = {"TERM": term, "TEXTUAL_COLOR_SYSTEM": forced}
    environment |= {} if colorterm is None else {"COLORTERM": colorterm}
    # As Textual makes its console.
    console = Console(
        color_system=forced, file=io.StringIO(), force_terminal=True, _environ=environment
    )
    found = colours_of(environment)
    if console.is_dumb_terminal and forced == "auto":
        assert (found.system, console.color_system) == (None, None)
    elif in_multiplexer(environment) and console.color_system == "standard" and forced == "auto":
        assert found.system == "256"  # tmux and screen can, whatever TERM says
    elif found.system is not None:
        assert found.system.replace("16", "standard") == console.color_system
    assert found.reason


@pytest.mark.parametrize(
    "environment",
    [{}, {"TERM": ""}, {"TERM": "dumb"}, {"TERM": "xterm", "TEXTUAL_COLOR_SYSTEM": "8"}],
)
def test_a_terminal_in_which_no_screen_can_open_gets_a_remedy(environment: dict[str, str]) -> None:
    colours = colours_of(environment)
    assert colours.system is None
    assert colours.remedy
    assert recommended(facts_of(colours=colours))[0] == colours.remedy


def test_where_all_is_well_nothing_is_recommended() -> None:
    assert recommended(GOOD) == []
    assert "Recommended: nothing, all is well." in doctor_text(GOOD)
    assert recommended(facts_of(multiplexer=TMUX)) == []


@pytest.mark.parametrize(
    ("tmux", "line"),
    [
        (TMUX, "`set-environment -g COLORTERM truecolor`"),
        (replace(TMUX, features=("title",)), '`set -as terminal-features ",xterm-kitty:RGB"`'),
        (replace(TMUX, features=("title",)), "then put `set-environment -g COLORTERM truecolor`"),
        (Multiplexer("tmux", "tmux 3.0a"), '`set -ga terminal-overrides ",*:Tc"`'),
    ],
)
def test_what_is_missing_in_tmux_is_a_line_to_copy(tmux: Multiplexer, line: str) -> None:
    facts = of_256(multiplexer=tmux)
    assert line in " ".join(recommended(facts))
    command = line[line.index("`") :]
    assert any(command in shown for shown in doctor_text(facts).split("\n")), "in one piece"


def test_truecolor_that_tmux_does_not_pass_on_is_said() -> None:
    facts = facts_of(multiplexer=replace(TMUX, features=("title",)))
    assert "passes through: no" in doctor_text(facts)
    assert "until then use --color 256" in recommended(facts)[0]
    assert "passes through: not known" in doctor_text(facts_of(multiplexer=Multiplexer("tmux")))


@pytest.mark.parametrize(
    ("version", "advised"), [("Screen version 4.09.01 (GNU)", 1), ("Screen version 5.0.0", 0)]
)
def test_an_old_gnu_screen_is_no_place_for_truecolor(version: str, advised: int) -> None:
    assert len(recommended(facts_of(multiplexer=Multiplexer("screen", version)))) == advised


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"ssh": True}, "ssh -C"),
        ({"no_color": True}, "NO_COLOR"),
        ({"glyphs": Glyphs.ASCII, "locale": "C"}, "LANG=C.UTF-8"),
        ({"size": (39, 20)}, "40x10"),
        ({"declared": (80, 24)}, "COLUMNS"),
    ],
)
def test_every_hindrance_has_its_advice(changes: dict[str, Any], word: str) -> None:
    (advice,) = recommended(facts_of(**changes))
    assert word in advice


def test_over_ssh_the_profile_to_change_is_the_one_of_this_machine() -> None:
    colours = colours_of({"TERM": "xterm-256color"})
    local, remote = (recommended(facts_of(colours=colours, ssh=ssh))[0] for ssh in (False, True))
    assert "export COLORTERM=truecolor" in local
    assert "on this machine" in remote


def test_the_layout_is_the_one_that_the_screens_have(scenario: Any, open_log: Any) -> None:
    view = view_of(open_log(scenario("healthy", routers=2, steps=3) / "metrics.jsonl"))
    for rows in (ROOMY_ROWS - 1, ROOMY_ROWS):
        assert fit(view, 80, rows).roomy == layout_of(80, rows).startswith("roomy")
    assert layout_of(39, 24).startswith("one line")
    assert layout_of(80, 9).startswith("one line")


def test_data_say_the_same_as_the_text() -> None:
    facts = facts_of(multiplexer=TMUX, ssh=True)
    data = doctor_json(facts)
    assert data["schema_version"] == 2
    assert data["truecolor_passes"] is True
    assert data["recommended"] == recommended(facts)
    assert data["terminal"]["size"] == (120, 40)


def test_every_line_of_the_report_fits_80_columns() -> None:
    facts = of_256(
        ssh=True, no_color=True, declared=(80, 24), multiplexer=replace(TMUX, features=("title",))
    )
    for shown in (facts, facts_of(colours=colours_of({"TERM": "xterm"}), ssh=True)):
        assert max(len(line) for line in doctor_text(shown).split("\n")) <= 80
