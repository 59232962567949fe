"""The microscope in a real terminal: what is seen, what is sent, and how it is left."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Start = Callable[..., Any]
LEAVES_ALTERNATE_SCREEN = b"\x1b[?1049l"
SHOWS_CURSOR = b"\x1b[?25h"


def test_the_verdict_and_every_layer_are_on_the_first_screen(
    terminal: Start, collapsed: Path
) -> None:
    screen = terminal(collapsed)
    screen.wait_for("L5")
    screen.wait_for("CRITICAL")
    for text in ("Router collapse in L4 since step", "why", "next", "balance c", "entropy H"):
        screen.wait_for(text)
    screen.wait_for("quit")
    assert all(f" L{n} " in screen.text for n in range(1, 6))


@pytest.mark.parametrize("leave", ["q", "\x03"])
def test_quitting_leaves_a_sane_terminal_and_exit_code_zero(
    terminal: Start, collapsed: Path, leave: str
) -> None:
    screen = terminal(collapsed)
    screen.wait_for("L5")
    screen.press(leave)
    assert screen.exit_code() == 0
    assert LEAVES_ALTERNATE_SCREEN in screen.output
    assert SHOWS_CURSOR in screen.output
    assert b"Traceback" not in screen.output


def test_nothing_is_sent_while_nothing_changes(terminal: Start, collapsed: Path) -> None:
    # An old file: its age in words changes once an hour, not while the test looks.
    import os

    os.utime(collapsed / "metrics.jsonl", (1_000_000_000, 1_000_000_000))
    screen = terminal(collapsed)
    screen.wait_for("CRITICAL")
    screen.settle()
    assert screen.read(1.5) == b""


@pytest.mark.parametrize(("columns", "rows"), [(20, 5), (39, 9), (10, 2)])
def test_a_window_that_is_too_small_says_what_it_needs(
    terminal: Start, collapsed: Path, columns: int, rows: int
) -> None:
    screen = terminal(collapsed, columns=columns, rows=rows)
    screen.wait_for("step 450"[:columns])
    if rows >= 3:
        screen.wait_for("needs 40x10, has")
    screen.press("q")
    assert screen.exit_code() == 0


def test_ascii_and_no_colour_still_tell_the_whole_story(terminal: Start, collapsed: Path) -> None:
    screen = terminal(collapsed, "--glyphs", "ascii", "--color", "never", columns=80, rows=24)
    screen.wait_for("CRITICAL")
    screen.settle()
    assert screen.text.isascii()
    row = next(line for line in screen.screen.display if " L4 " in line[:8])
    assert "#" in row
    assert " C " in row


def test_a_step_typed_or_pasted_in_one_go_is_gone_to(terminal: Start, collapsed: Path) -> None:
    screen = terminal(collapsed)
    screen.wait_for("CRITICAL")
    screen.wait_for("450 finished")
    screen.press(":273\r")
    screen.wait_for("273 PAUSED, now 450")
    screen.press(":")
    screen.wait_for("go to step")
    screen.press("\x1b[200~99\x1b[201~\r")
    screen.wait_for("99 PAUSED")
    screen.press("f")
    screen.wait_for("450 finished")
    screen.press("q")
    assert screen.exit_code() == 0


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}])
def test_a_dumb_terminal_is_told_what_to_use_instead(
    terminal: Start, collapsed: Path, environment: dict[str, str]
) -> None:
    screen = terminal(collapsed, **environment)
    assert screen.exit_code() == 64
    assert b"use `snapshot` or `check`" in screen.output


def test_a_hostile_log_sends_no_escape_sequence_of_its_own(
    terminal: Start, write_log: Any, make_header: Any, make_step: Any, balanced: Any
) -> None:
    hostile = "\x1b]52;c;aGFja2Vk\x07\x1b]0;owned\x07[@click=app.quit]x[/]"
    header = make_header(run=hostile, model={"layer_names": [hostile] * 3, "name": hostile})
    sick = [2048, 2048, 0, 0, 0, 0, 0, 0]
    steps = [make_step(n, [balanced(), sick, balanced()], 2048) for n in range(1, 200)]
    event = {"kind": "event", "event": hostile, "reason": hostile, "step": 3}
    screen = terminal(write_log([header, *steps, event], name="a\u202eb"))
    screen.wait_for("CRITICAL")
    screen.press("\r")
    screen.wait_for("max load")
    screen.press("q")
    assert screen.exit_code() == 0
    assert b"\x1b]52" not in screen.output
    assert b"\x1b]0;" not in screen.output


def test_nan_everywhere_is_shown_and_survived(
    terminal: Start, write_log: Any, make_header: Any, make_step: Any, balanced: Any
) -> None:
    nan = {"entropy": ["NaN"] * 3, "mean_entropy": ["NaN"] * 3, "drop_rate": ["NaN"] * 3}
    steps = [
        make_step(n, [balanced()] * 3, 2048, loss="NaN", grad_norm="Infinity", router=nan)
        for n in range(1, 150)
    ]
    screen = terminal(write_log([make_header(), *steps]))
    screen.wait_for("METER")
    screen.wait_for("NaN")
    screen.press("\r")
    screen.wait_for("not measured")
    screen.press("q")
    assert screen.exit_code() == 0


@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminated_microscope_leaves_the_terminal_usable(
    terminal: Start, collapsed: Path, signal_: signal.Signals
) -> None:
    screen = terminal(collapsed)
    screen.wait_for("L5")
    screen.kill(signal_)
    assert screen.exit_code() == 128 + signal_
    assert LEAVES_ALTERNATE_SCREEN in screen.output
    assert SHOWS_CURSOR in screen.output


def test_an_unexpected_error_leaves_the_terminal_usable_and_is_told(
    terminal: Start, collapsed: Path, tmp_path: Path
) -> None:
    broken = "import microscope_tui.lines.frame as f\nf.verdict = lambda *_, **__: 1 / 0\n"
    (tmp_path / "sitecustomize.py").write_text(broken)
    screen = terminal(collapsed, PYTHONPATH=str(tmp_path))
    assert screen.exit_code() == 3
    assert LEAVES_ALTERNATE_SCREEN in screen.output
    assert SHOWS_CURSOR in screen.output
    assert b"ZeroDivisionError" in screen.output


@pytest.mark.parametrize(
    "environment",
    [
        {"TERM": "screen-256color", "COLORTERM": ""},
        {"TERM": "xterm", "COLORTERM": ""},
        {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"NO_COLOR": "1"},
    ],
    ids=["tmux", "16 colours", "no UTF-8", "no colours"],
)
def test_poor_terminals_show_the_same_facts(
    terminal: Start, collapsed: Path, environment: dict[str, str]
) -> None:
    screen = terminal(collapsed, columns=80, rows=24, **environment)
    screen.wait_for("CRITICAL")
    screen.wait_for("450 finished")
    row = next(line for line in screen.screen.display if " L4 " in line[:8])
    assert " C " in row
    assert any(mark in row for mark in "#▴^")
    if "LANG" in environment:
        assert screen.text.isascii()
    if environment.get("TERM") == "xterm":
        assert b"38;2;" not in screen.output
        assert b"48;5;" not in screen.output
    screen.press("q")
    assert screen.exit_code() == 0
