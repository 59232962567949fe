"""``doctor`` as a program: in a pipe, in a terminal, and where little works."""

import json
import os
import stat
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.app import cost
from microscope_tui.commands import ask, multiplexer
from microscope_tui.commands import doctor as command
from microscope_tui.commands.doctor import doctor

Run = Callable[..., Any]
KNOWS_SYNC = "\x1b[?2026;2$y"
HEADINGS = ("terminal", "connection", "bytes for a heatmap", "Recommended:")


@pytest.fixture
def pair() -> Iterator[tuple[int, int]]:
    """The two ends of a pseudo-terminal: the person's, the program's."""
    ends = os.openpty()
    yield ends
    for end in ends:
        os.close(end)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a shell script of this name first on the path."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def put(name: str, script: str) -> None:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return put


def test_a_pipe_gets_plain_ascii_and_no_escape_even_in_the_c_locale() -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TERM": "xterm-256color"}
    done = subprocess.run(
        [sys.executable, "-m", "microscope_tui.cli", "doctor"],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        env=os.environ | plain | {"COLORTERM": "truecolor"},
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\x1b" not in done.stdout
    text = done.stdout.decode("ascii")
    assert all(f"\n{heading}" in text for heading in HEADINGS)
    assert "what you should see" not in text
    assert "not asked: no terminal" in text
    assert "ascii: ascii, locale C" in text
    assert "LANG=C.UTF-8" in text


def test_the_terminal_is_asked_shown_samples_and_left_as_it_was(play: Run, tmp_path: Path) -> None:
    script = f"stty -g >{tmp_path}/before; $MICROSCOPE doctor; stty -g >{tmp_path}/after"
    (screen,), code = play(
        f"{script}; cmp {tmp_path}/before {tmp_path}/after && echo as before",
        ("press", KNOWS_SYNC),
        ("wait", "as before"),
        ("see", ""),
        ("end", ""),
        rows=60,
    )
    assert code == 0
    assert "sync output  yes" in screen
    assert "layout       roomy" in screen
    assert "colours      truecolor: COLORTERM=truecolor" in screen
    assert "  smooth" in screen
    assert "⣀⡠⠔⠊⠉" in screen
    assert "nothing, all is well" in screen


def test_without_colours_there_are_no_ramps_and_a_dumb_terminal_is_not_asked(play: Run) -> None:
    (screen,), _ = play(
        "(NO_COLOR= $MICROSCOPE doctor; TERM=dumb $MICROSCOPE doctor) | cat -v; "
        "NO_COLOR=1 $MICROSCOPE doctor; echo done",
        ("wait", "done"),
        ("see", ""),
        rows=130,
    )
    assert "^[" not in screen
    assert "▁▂▃▄" in screen
    assert "smooth" not in screen.replace("terminal is smooth", "")
    assert "sync output  no answer" in screen
    assert "colours      none: TERM=dumb" in screen
    assert "`snapshot` and `check`" in screen


def test_an_option_that_does_not_exist_is_a_usage_error(microscope: Run) -> None:
    assert microscope("doctor", "--nonsense").returncode == 64


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (b"\x1b[?2026;1$y", "yes"),
        (b"typed\x1b[?2026;3$y", "yes"),
        (b"\x1b[?2026;0$y", "no"),
        (b"\x1b[?2026;4$y", "no"),
        (b"\x1b[?1;2c", "no answer"),
        (b"", "no answer"),
    ],
)
def test_an_answer_is_understood_and_the_terminal_left_as_it_was(
    pair: tuple[int, int], answer: bytes, word: str
) -> None:
    person, program = pair
    before = termios.tcgetattr(program)
    os.write(person, answer)
    assert ask(program, program, patience_s=60.0 if word != "no answer" else 0.0) == word
    assert termios.tcgetattr(program) == before


def test_the_terminal_is_restored_even_if_it_is_interrupted(
    pair: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    before = termios.tcgetattr(pair[1])
    monkeypatch.setattr("microscope_tui.commands.ask_terminal.select.select", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ask(pair[1], pair[1])
    assert termios.tcgetattr(pair[1]) == before


def test_tmux_is_asked_for_its_version_and_what_passes_through(programs: Any) -> None:
    programs("tmux", 'case "$1" in -V) echo tmux 3.4;; *) echo xterm-kitty bpaste,RGB,title;; esac')
    found = multiplexer({"TMUX": "/tmp/tmux-0/default,1,0"})
    assert found is not None
    assert (found.version, found.outer) == ("tmux 3.4", "xterm-kitty")
    assert found.features == ("bpaste", "RGB", "title")


@pytest.mark.parametrize("script", ["exit 1", "exec sleep 60", "printf '\\033[2J'"])
def test_a_tmux_that_fails_hangs_or_is_hostile_is_survived(
    programs: Any, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(command, "_ANSWER_S", 0.05)
    programs("tmux", script)
    found = multiplexer({"TMUX": "x"})
    assert found is not None
    assert "\x1b" not in found.version + found.outer


def test_gnu_screen_is_recognised(programs: Any) -> None:
    programs("screen", "echo 'Screen version 4.09.01 (GNU) 20-Aug-23'; exit 1")
    found = multiplexer({"STY": "1.pts"})
    assert found is not None
    assert found.version.startswith("Screen version 4.09")
    assert multiplexer({"TERM": "screen"}) is None


def test_the_one_cost_is_that_of_the_colours_of_this_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLORTERM", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "screen-256color")
    assert doctor(as_json_=True) == 0
    (measured,) = json.loads(capsys.readouterr().out)["costs"].items()
    assert (measured[0], measured[1]["frame"]) == ("256", cost("256").frame)
