"""``doctor`` as a program: in a pipe, in a terminal, and where little works."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.commands import tmux_says

Run = Callable[..., Any]


@pytest.fixture
def tmux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a shell script that plays tmux first on the path."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def put(script: str) -> None:
        path = tmp_path / "tmux"
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
    assert all(f"\n{label}" in text for label in ("TERM", "colours", "ssh", "Recommended:"))
    assert "ascii: ascii, locale C" in text
    assert "LANG=C.UTF-8" in text


def test_in_a_terminal_it_tells_size_layout_and_colours_without_an_escape(play: Run) -> None:
    (screen,), code = play(
        "(TERM=dumb $MICROSCOPE doctor; $MICROSCOPE doctor) | cat -v; echo done",
        ("wait", "done"),
        ("see", ""),
        ("end", ""),
        rows=60,
    )
    assert code == 0
    assert "^[" not in screen
    assert "layout       roomy" in screen
    assert "colours      truecolor: COLORTERM=truecolor" in screen
    assert "nothing, all is well" in screen
    assert "colours      none: TERM=dumb" in screen
    assert "`snapshot` and `check`" in screen


def test_an_option_that_does_not_exist_is_a_usage_error(microscope: Run) -> None:
    assert microscope("doctor", "--nonsense").returncode == 64


def test_tmux_is_asked_for_what_passes_through(tmux: Any) -> None:
    tmux("echo bpaste,RGB,title")
    assert tmux_says() == "bpaste,RGB,title"


@pytest.mark.parametrize("script", ["exit 1", "exec sleep 60", "printf '\\033[2J'"])
def test_a_tmux_that_fails_hangs_or_is_hostile_is_survived(
    tmux: Any, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr("microscope_tui.commands.about._ANSWER_S", 0.05)
    tmux(script)
    assert "\x1b" not in tmux_says()
