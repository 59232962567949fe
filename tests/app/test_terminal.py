"""The microscope in a real terminal: what is shown, what is sent, and how it ends."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.live_writer import writing
from tests.conftest import header, step

Start = Callable[..., Any]
LEAVES_ALTERNATE_SCREEN = b"\x1b[?1049l"
SHOWS_CURSOR = b"\x1b[?25h"
REMOTE = {"COLORTERM": "", "SSH_CONNECTION": "192.0.2.1 22 192.0.2.2 22"}
MOST_PER_S = 10_000
TERMINATED = """
from signal import SIGTERM, raise_signal
from microscope_tui.app.microscope import Microscope
screen = Microscope.get_default_screen
Microscope.get_default_screen = lambda app: raise_signal(SIGTERM) or screen(app)
"""
INTERRUPTED = """
import signal, sys, types
find = lambda name, *_: signal.raise_signal(signal.SIGINT) if name == "textual.app" else None
sys.meta_path.insert(0, types.SimpleNamespace(find_spec=find))
"""


def left_clean(screen: Any) -> bool:
    """Whether the terminal is usable after the end of the program."""
    return LEAVES_ALTERNATE_SCREEN in screen.output and SHOWS_CURSOR in screen.output


def test_the_first_screen_shows_verdict_and_layers_and_steps_can_be_typed_and_pasted(
    terminal: Start, collapsed: Path
) -> None:
    screen = terminal(collapsed)
    for text in ("L5", "CRITICAL", "Router collapse in L4 since step", "why", "next", "quit"):
        screen.wait_for(text)
    for text in ("balance c", "entropy H", "450 finished"):
        screen.wait_for(text)
    assert all(f" L{n} " in screen.text for n in range(1, 6))
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
    assert left_clean(screen)
    assert b"Traceback" not in screen.output


def test_nothing_is_sent_while_nothing_changes(terminal: Start, own_collapsed: Path) -> None:
    # An old file: its age in words changes once an hour, not while the test looks.
    os.utime(own_collapsed / "metrics.jsonl", (1_000_000_000, 1_000_000_000))
    screen = terminal(own_collapsed)
    screen.wait_for("CRITICAL")
    screen.settle()
    assert screen.read(1.2) == b""
    screen.press("\x03")
    assert screen.exit_code() == 0
    assert left_clean(screen)


def test_a_dumb_terminal_is_refused_with_what_to_use(terminal: Start, collapsed: Path) -> None:
    screen = terminal(collapsed, TERM="dumb")
    assert screen.exit_code() == 64
    assert b"use `snapshot` or `check`" in screen.output


def test_a_hostile_log_of_nan_sends_no_escape_sequence_of_its_own(
    terminal: Start, write_log: Any, balanced: Any
) -> None:
    hostile = "\x1b]52;c;aGFja2Vk\x07\x1b]0;owned\x07[@click=app.quit]x[/]"
    first = header(run=hostile, model={"layer_names": [hostile] * 3, "name": hostile})
    sick = [2048, 2048, 0, 0, 0, 0, 0, 0]
    nan = {"entropy": ["NaN"] * 3, "mean_entropy": ["NaN"] * 3, "drop_rate": ["NaN"] * 3}
    more: dict[str, Any] = {"loss": "NaN", "grad_norm": "Infinity", "router": nan}
    steps = [step(n, [balanced(), sick, balanced()], 2048, **more) for n in range(1, 200)]
    event = {"kind": "event", "event": hostile, "reason": hostile, "step": 3}
    screen = terminal(write_log([first, *steps, event], name="a\u202eb"))
    screen.wait_for("iverged at 1", "NaN")
    screen.press("\r")
    screen.wait_for("max load", "not measured")
    screen.press("q")
    assert screen.exit_code() == 0
    assert b"\x1b]52" not in screen.output
    assert b"\x1b]0;" not in screen.output


@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminated_microscope_leaves_the_terminal_usable(
    terminal: Start, collapsed: Path, signal_: signal.Signals
) -> None:
    screen = terminal(collapsed)
    screen.wait_for("L5")
    screen.kill(signal_)
    assert screen.exit_code() == 128 + signal_
    assert left_clean(screen)


@pytest.mark.parametrize(("early", "code"), [(TERMINATED, 143), (INTERRUPTED, -signal.SIGINT)])
def test_no_signal_is_lost_while_the_microscope_starts(
    terminal: Start, collapsed: Path, tmp_path: Path, early: str, code: int
) -> None:
    """A KeyboardInterrupt can be: Python ignores it in the callbacks of its imports."""
    (tmp_path / "sitecustomize.py").write_text(early)
    screen = terminal(collapsed, PYTHONPATH=str(tmp_path))
    assert screen.exit_code() == code
    assert left_clean(screen) or LEAVES_ALTERNATE_SCREEN.replace(b"l", b"h") not in screen.output


def test_an_unexpected_error_leaves_the_terminal_usable_and_is_reported(
    terminal: Start, collapsed: Path, tmp_path: Path
) -> None:
    broken = "import microscope_tui.draw.frame as f\nf.verdict = lambda *_, **__: 1 / 0\n"
    (tmp_path / "sitecustomize.py").write_text(broken)
    screen = terminal(collapsed, PYTHONPATH=str(tmp_path))
    assert screen.exit_code() == 3
    assert left_clean(screen)
    assert b"ZeroDivisionError" in screen.output


def cells(screen: Any) -> list[Any]:
    """The cells of all experts of the first layer, which is healthy, as pyte drew them."""
    row = next(y for y, line in enumerate(screen.screen.display) if " L1 " in line[:8])
    left = screen.screen.display[row].index(" L1 ") + 8
    return [screen.screen.buffer[row][x] for x in range(left, left + 40)]


@pytest.mark.parametrize(
    ("options", "environment"),
    [
        ([], REMOTE | {"TERM": "screen", "TMUX": "/tmp/tmux-0/default,1,0"}),
        ([], REMOTE | {"TERM": "xterm"}),
        ([], {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
        ([], {"NO_COLOR": "1"}),
        (["--glyphs", "ascii", "--color", "never"], {}),
    ],
    ids=["tmux", "16 colours", "no UTF-8", "NO_COLOR", "options"],
)
def test_poor_terminals_show_the_same_facts(
    terminal: Start, collapsed: Path, options: list[str], environment: dict[str, str]
) -> None:
    screen = terminal(collapsed, *options, **environment)
    screen.wait_for("CRITICAL", "450 finished", "quit")
    row = next(line for line in screen.screen.display if " L4 " in line[:8])
    assert " C " in row
    assert any(mark in row for mark in "#▴^")
    assert screen.text.isascii() == ("LANG" in environment or bool(options))
    ground, grounds = screen.screen.buffer[0][0].bg, {cell.bg for cell in cells(screen)}
    if "NO_COLOR" in environment or "never" in options:
        assert not re.search(rb"\x1b\[(\d+;)*([349]\d|10\d)(;\d+)*m", screen.output)
    if environment.get("TERM") == "screen":  # healthy cells are grey, in 256 colours
        assert grounds <= {"1c1c1c", "262626", "303030", "3a3a3a", "005f87", "875f00"}
        assert len(grounds) > 1
        assert ground not in grounds
    if environment.get("TERM") == "xterm":  # a fair cell differs from the ground by its mark
        assert b"38;2;" not in screen.output
        assert b"48;5;" not in screen.output
        assert all(one.data != " " or one.bg not in ("black", "default") for one in cells(screen))
        assert {cell.fg for cell in cells(screen) if cell.bg == "black"} == {"white"}
    screen.press("q")
    assert screen.exit_code() == 0


def test_a_live_uneven_run_costs_little_over_ssh(terminal: Start, tmp_path: Path) -> None:
    """Bytes of any four seconds, after those in which the screen opens."""
    log = tmp_path / "live" / "metrics.jsonl"
    options = "--rate 1 --cv 0.075 --spread 0.35 --history 40 --routers 30 --experts 128"
    with writing(log, *options.split()):
        screen = terminal(log.parent, columns=140, rows=50, TERM="xterm-256color", **REMOTE)
        screen.wait_for("mean of 8 steps")
        started, samples = time.monotonic(), [(0.0, 0)]
        steps: set[str] = set()
        while (now := time.monotonic() - started) < 7.5:
            screen.read(0.1)
            samples.append((now, len(screen.output)))
            steps |= set(re.findall(r"step (\d+) /", screen.text))
    late = [(at, sent) for at, sent in samples if at >= 3]
    for at, sent in late:
        after = next((total for then, total in late if then >= at + 4), None)
        assert after is None or after - sent <= 4 * MOST_PER_S
    assert len(steps) >= 3
    assert samples[-1][1] <= 3 * 80_000  # a small multiple of a full screen
