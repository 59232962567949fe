"""What a run tells a person cannot hurt: neither the run where it cannot be told, nor the terminal.

A standard error that is full, closed or gone costs words and nothing else; text, prompts, options
and names of files reach the terminal without what could steer it.
"""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TextIO

import pytest
from hypothesis import given, strategies as st
from rich.console import Console as RichConsole

from microscope_tui.probe import Alert
from microscope_tui.runlog import safe_text
from moe_model import plain_text, say
from moe_model.command import REPLACEMENT
from moe_model.training.console import Console
from moe_model.training.run import Progress
from tests.forked import ROOT
from tests.training.story import Capsys

HOSTILE = "a\x1b]52;c;eA==\x07b\x9b2J\u202ec\rd"
HARMLESS = f"a{REPLACEMENT}]52;c;eA=={REPLACEMENT}b{REPLACEMENT}2J{REPLACEMENT}c"
ALERT = Alert(1, HOSTILE, "crit", ("L1",), 1, HOSTILE, "why", HOSTILE)
PROGRESS = Progress(
    step=4, loss=2.5, validation_loss=2.25, tokens_per_s=12345.6, collapse_index=[0.4, 0.8],
    entropy=[2.07, 2.0],
)  # fmt: skip
KINDS = pytest.mark.parametrize("kind", ["full", "closed file", "closed from the start"])


@contextmanager
def mute(kind: str) -> Iterator[None]:
    """A standard error that takes nothing. No fixture: pytest sets its own after the set-up."""
    stream: TextIO | None = None
    if kind == "full":
        if not os.path.exists("/dev/full"):
            pytest.skip("this system has no /dev/full")
        # Without a buffer, so that closing it has nothing left to fail with.
        raw = open("/dev/full", "wb", buffering=0)  # noqa: SIM115  # closed below
        stream = io.TextIOWrapper(raw, write_through=True)
    elif kind == "closed file":
        stream = io.StringIO()
        stream.close()
    with pytest.MonkeyPatch.context() as patch, closing(stream) if stream else nullcontext():
        patch.setattr(sys, "stderr", stream)
        yield


def test_what_a_terminal_could_obey_is_replaced_and_lines_are_kept_where_they_are_wanted() -> None:
    chars = "\x00\x07\x08\x1b\x7f\x85\x9b\x9d\u061c\u200b\u200d\u2028\u202a\u202e\u2066\u2069\ufeff"
    for char in f"{chars}\ud800\udcff":
        for multi_line in (False, True):
            shown = plain_text(f"a{char}b", multi_line=multi_line)
            assert shown == f"a{REPLACEMENT}b", ascii(char)
    assert plain_text("a\nb\tc\rd", multi_line=True) == f"a\nb\tc{REPLACEMENT}d"
    assert plain_text("a\nb\tc\rd\ve\ff") == "a b c d e f"


@given(st.text(st.characters(exclude_categories=["Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"])))
def test_all_other_text_stays_as_it_is(text: str) -> None:
    """Accents, other scripts, emoji, and spaces of every width."""
    assert plain_text(text) == plain_text(text, multi_line=True) == text


def test_the_microscope_replaces_the_same_characters() -> None:
    """Its ``safe_text`` makes whitespace of some, and counts marks besides."""
    codes = [*range(0x33480), *range(0xDFF00, 0xE0200), *range(0xF0000, 0xF0010), 0x10FFFF]
    chars = [c for c in map(chr, codes) if c not in " \t\n\r\v\f"]
    theirs = safe_text(" ".join(chars), max_cells=10**7).split(" ")
    assert len(theirs) == len(chars)
    different = [
        ascii(char)
        for char, shown in zip(chars, theirs, strict=True)
        if (REPLACEMENT in plain_text(char)) != (REPLACEMENT in shown)
    ]
    assert different == []


@given(st.text(), st.text(), st.booleans())
def test_a_text_in_pieces_reads_as_in_one(first: str, second: str, multi_line: bool) -> None:
    def shown(text: str) -> str:
        return plain_text(text, multi_line=multi_line)

    assert shown(first) + shown(second) == shown(first + second)


def test_a_line_of_narration_is_one_line_and_plain(capsys: Capsys) -> None:
    say(f"{HOSTILE}\ntrain.py: finished\n")
    assert capsys.readouterr().err == f"{HARMLESS} d train.py: finished\n"


def test_nothing_that_the_console_shows_steers_the_terminal(capsys: Capsys) -> None:
    console = Console(10, ["L1", "L2"])
    with console:
        console.say(HOSTILE)
        console.alert(ALERT)
        console.summary(PROGRESS, HOSTILE, f"{HOSTILE}\n{HOSTILE}")
        console.places({HOSTILE: HOSTILE})
        console.sample(HOSTILE, f"{HOSTILE}\n\tend")
    text = capsys.readouterr().err
    assert all(char in "\n\t" or char.isprintable() for char in text)
    assert text.count(HARMLESS) == 1 + 3 + 3 + 2 + 2
    assert f"{HARMLESS}{REPLACEMENT}d\n        end" in text, "a sample keeps its lines"


def test_a_run_on_hostile_text_under_hostile_names_leaves_the_terminal_alone(
    train: Callable[..., int], tmp_path: Path, capsys: Capsys
) -> None:
    data = tmp_path / "\x1b[2Jtext"
    data.write_text("the \x1b]0;owned\x07 \u202etext\n" * 200, "utf-8")
    folders = [f"--log-dir={tmp_path}/\x1b[31mlogs", f"--checkpoint-dir={tmp_path}/\x9b31mck"]
    prompt = "--sample-prompt=\x1b]0;owned\x07"
    assert train("--run=r", "--steps=1", f"--data={data}", prompt, *folders) == 0
    assert train(f"--data={data}.gone", "--preset=\x1b[2J") == 64
    text = capsys.readouterr().err
    assert f"{REPLACEMENT}]0;owned{REPLACEMENT}" in text
    assert f"{REPLACEMENT}[31mlogs" in text
    assert all(char in "\n\t" or char.isprintable() for char in text)


@KINDS
@pytest.mark.parametrize("bar", [False, True])
def test_output_that_cannot_be_written_ends_nothing(kind: str, bar: bool, monkeypatch: Any) -> None:
    """Forced to be a terminal, rich also puts its own stream in the place of standard error."""
    if bar:
        monkeypatch.setenv("FORCE_COLOR", "1")
    with mute(kind):
        before = sys.stderr
        say("nobody hears this")
        with Console(10, ["L1", "L2"]) as console:
            console.say("nor this")
            console.step(PROGRESS)
            say("beside the bar")
            console.alert(ALERT)
            console.summary(PROGRESS, "finished", "healthy")
            console.places({"log": "here"})
            console.sample("the ", "end")
        assert sys.stderr is before


@KINDS
def test_a_run_that_cannot_speak_finishes(kind: str, train: Any, read_log: Any) -> None:
    with mute(kind):
        assert train("--run=r", "--steps=2") == 0
        assert train("--steps=0") == 64
    assert read_log("r")[-1]["reason"] == "finished"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("code", [0, 75])
def test_the_exit_code_on_a_full_disk_is_that_of_the_command(code: int) -> None:
    """Standard error has a buffer: what is left in it fails again at the very end."""
    program = (
        "import sys; from cyclopts import App; from moe_model.command import run_command, say\n"
        f"app = App(); app.default(lambda: say('words') or {code})\n"
        "sys.exit(run_command(app, []))"
    )
    environment = {name: v for name, v in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, cwd=ROOT, stderr=full, timeout=60
        )
    assert done.returncode == code


def drawn(width: int, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(RichConsole, "is_terminal", property(lambda self: True))
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with Console(10, ["L1", "L2"]) as console:
        console.step(PROGRESS)
    return stream.getvalue()


def test_an_entropy_is_never_shown_without_its_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {}
    for width in range(60, 130):
        with monkeypatch.context() as patch:
            text = drawn(width, patch)
        shown[width] = ("worst L1 c 0.40" in text, "H 2.07" in text)
    assert (False, True) not in shown.values()
    assert shown[80] == (False, False)
    assert shown[129] == (True, True)
    assert "4/10" in text
    assert "━" in text, "the bar"
