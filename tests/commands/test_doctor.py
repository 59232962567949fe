"""The doctor's judgement of a terminal: as Rich will judge it, with advice that can be copied."""

import io
from typing import Any

import pytest
from hypothesis import given, strategies as st
from msgspec.structs import replace
from rich.console import Console

from microscope_tui.commands.doctor import (
    ROOMY_ROWS,
    Terminal,
    colours_of,
    doctor_text,
    in_multiplexer,
    layout_of,
    recommended,
)
from microscope_tui.draw.glyphs import Glyphs
from microscope_tui.draw.table import fit
from microscope_tui.watch import view_of
from tests.conftest import open_log

VERSIONS = {"moe-microscope": "0.1.0", "Python": "3.11.7"}
XTERM = {"TERM": "xterm-256color", "LANG": "C.UTF-8"}
GOOD = Terminal(XTERM | {"COLORTERM": "truecolor"}, "utf-8", Glyphs.BRAILLE, (120, 40), (120, 40))
OF_256 = replace(GOOD, environment=XTERM)
TMUX, BLIND, SILENT = "bpaste,RGB,title", "title", ""
TERMS = st.sampled_from(
    [*("xterm", "xterm-256color", "xterm-kitty", "tmux-256color", "screen", "linux", "dumb"),
     *("unknown", "XTERM-256COLOR", " xterm-16color ", "rxvt-unicode-256color", "kitty")]
)  # fmt: skip
COLORTERMS = st.sampled_from(["truecolor", "24bit", " TrueColor", "yes", "", "256"])


def in_tmux(terminal: Terminal, says: str) -> Terminal:
    return replace(with_variables(terminal, TMUX="/tmp/tmux-0/default,1,0"), tmux=says)


def with_variables(terminal: Terminal = GOOD, **more: str) -> Terminal:
    return replace(terminal, environment={**terminal.environment, **more})


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
    assert recommended(replace(GOOD, environment=environment))[0] == colours.remedy


def test_where_all_is_well_nothing_is_recommended() -> None:
    assert recommended(GOOD) == []
    assert "Recommended: nothing, all is well." in doctor_text(VERSIONS, GOOD)
    assert recommended(in_tmux(GOOD, TMUX)) == []


@pytest.mark.parametrize("says", [TMUX, BLIND, SILENT])
def test_what_is_missing_in_tmux_is_a_line_to_copy(says: str) -> None:
    terminal = in_tmux(OF_256, says)
    lines = ["`set-environment -g COLORTERM truecolor`"]
    lines += ['`set -ga terminal-overrides ",*:Tc"`'] * (says != TMUX)
    shown = doctor_text(VERSIONS, terminal).split("\n")
    for line in lines:
        assert any(line in row for row in shown), "in one piece"
    assert len(lines) == " ".join(recommended(terminal)).count("`") // 2


def test_truecolor_that_tmux_does_not_pass_on_is_reported() -> None:
    terminal = in_tmux(GOOD, BLIND)
    assert "passes through: no" in doctor_text(VERSIONS, terminal)
    assert "terminal-overrides" in recommended(terminal)[0]
    assert "passes through: not known" in doctor_text(VERSIONS, in_tmux(GOOD, SILENT))
    assert recommended(in_tmux(GOOD, SILENT)) == []


@pytest.mark.parametrize(
    ("terminal", "word"),
    [
        (with_variables(SSH_CONNECTION="1.2.3.4"), "ssh -C"),
        (with_variables(NO_COLOR=""), "NO_COLOR"),
        (with_variables(STY="1.pts"), "GNU screen before 5.0"),
        (replace(GOOD, glyphs=Glyphs.ASCII), "LANG=C.UTF-8"),
        (replace(GOOD, size=(39, 20), used=(39, 20)), "40x10"),
        (replace(GOOD, used=(80, 24)), "COLUMNS"),
    ],
)
def test_every_hindrance_has_its_advice(terminal: Terminal, word: str) -> None:
    (advice,) = recommended(terminal)
    assert word in advice


def test_over_ssh_the_profile_to_change_is_the_one_of_this_machine() -> None:
    remote = with_variables(OF_256, SSH_CONNECTION="1.2.3.4")
    assert "export COLORTERM=truecolor" in recommended(OF_256)[0]
    assert "on this machine" in recommended(remote)[0]


def test_the_layout_is_the_one_that_the_screens_have(scenario: Any) -> None:
    view = view_of(open_log(scenario("healthy", routers=2, steps=3) / "metrics.jsonl"))
    for rows in (ROOMY_ROWS - 1, ROOMY_ROWS):
        assert fit(view, 80, rows).roomy == layout_of(80, rows).startswith("roomy")
    assert layout_of(39, 24).startswith("one line")
    assert layout_of(80, 9).startswith("one line")


def test_every_line_of_the_report_fits_80_columns() -> None:
    bad = with_variables(OF_256, SSH_CONNECTION="1.2.3.4", NO_COLOR="1")
    for terminal in (in_tmux(replace(bad, used=(80, 24)), BLIND), bad):
        assert max(len(line) for line in doctor_text(VERSIONS, terminal).split("\n")) <= 80
