"""Commands that need no run: ``explain``, ``keys``, ``demo``, ``doctor``."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from textual.binding import Binding

from microscope_tui.commands.doctor import tmux_says
from microscope_tui.diagnosis import RULES
from microscope_tui.kit import keys as all_keys
from microscope_tui.kit.keymap import keymap_of
from microscope_tui.scenarios import SCENARIOS
from tests.conftest import Call

HELP = Binding("question_mark,comma", "help", id="app.help", tooltip="help")
SCREENS = {
    "main": [
        Binding("up,k", "move(-1)", "layer", id="layer.previous", tooltip="previous layer"),
        Binding("left_square_bracket", "step(-1)", id="time.back", tooltip="one step back"),
        HELP,
    ],
    "layer": [Binding("escape", "back", "back", id="screen.back"), HELP],
}


def test_rules_are_explained_as_text_and_as_data(call: Call) -> None:
    code, out, err = call("explain")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == list(RULES)
    assert max(map(len, out.splitlines())) <= 100
    code, out, _ = call("explain", "hot_Expert")
    assert code == 0
    assert out.startswith("HOT_EXPERT: ")
    assert "share = 0.8" in out
    every = json.loads(call("explain", "--json")[1])
    (one,) = json.loads(call("explain", "meter", "--json")[1])["rules"]
    assert every["schema_version"] == 1
    assert one == next(rule for rule in every["rules"] if rule["rule"] == "METER")


def test_every_binding_of_every_screen_has_its_line_as_the_config_file_takes_it(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(all_keys, "all_bindings", lambda _: SCREENS)
    code, out, err = call("keys")
    assert code == 0
    assert "  layer.previous  up  k     previous layer" in out
    assert "  time.back       [         one step back" in out
    assert "config.toml changes them" in err
    blocks = [block.splitlines() for block in out.split("\n\n")]
    assert [block[0] for block in blocks] == ["main screen", "layer screen"]
    for (name, *lines), bindings in zip(blocks, SCREENS.values(), strict=True):
        written = [[part.strip() for part in line.split("  ") if part] for line in lines]
        assert [id_ for id_, *_ in written] == [one.id for one in bindings]
        for (id_, keys, *_), one in zip(written, bindings, strict=True):
            assert keymap_of({id_: keys}, {name: [one]})


def test_every_scenario_is_listed_with_a_sentence(call: Call) -> None:
    code, out, _ = call("demo", "--list")
    lines = [line.split(maxsplit=1) for line in out.splitlines()]
    assert (code, [name for name, _ in lines]) == (0, list(SCENARIOS))
    assert all(len(sentence) > 40 and sentence.endswith(".") for _, sentence in lines)
    assert max(map(len, out.splitlines())) <= 80


def test_a_demo_leaves_nothing_behind_unless_asked(microscope: Any, tmp_path: Path) -> None:
    done = microscope("demo", "--scenario", "healthy", TMPDIR=str(tmp_path))
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_a_live_demo_without_a_terminal_writes_and_prints_all(call: Call, tmp_path: Path) -> None:
    code, out, err = call("demo", "--live", "-o", tmp_path)
    assert code == 0, err
    assert "writing it at once" in err
    assert "outer collapse" in out
    text = (tmp_path / "collapse" / "metrics.jsonl").read_text("utf-8")
    last = json.loads(text.splitlines()[-1])
    assert (last["event"], last["reason"]) == ("end", "finished")
    assert last["step"] == SCENARIOS["collapse"].steps
    code, _, err = call("demo", "--scenario", "collapse", "-o", tmp_path)
    assert code == 64
    assert "already contains a run" in err


@pytest.mark.parametrize("name", ["metrics.jsonl", "metrics.jsonl.gz", "metrics.jsonl.zst"])
def test_a_demo_is_not_written_into_the_folder_of_a_run(
    call: Call, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).touch()
    code, _, err = call("demo", "-o", tmp_path)
    assert (code, f"{tmp_path} is the folder of that run; choose another -o" in err) == (64, True)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_live_demo_in_a_terminal_grows_and_ends_as_stopped(shell: Any, tmp_path: Path) -> None:
    screen = shell(f"$MICROSCOPE demo --live -o {tmp_path}")
    screen.wait_for("collapse", "step 1")
    screen.press("q")
    assert screen.exit_code() == 0
    text = (tmp_path / "collapse" / "metrics.jsonl").read_text("utf-8")
    last = json.loads(text.splitlines()[-1])
    assert (last["event"], last["reason"]) == ("end", "stopped")


def test_doctor_in_a_pipe_prints_plain_ascii_even_in_the_c_locale() -> None:
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


def test_doctor_in_a_terminal_prints_size_layout_and_colours_without_an_escape(shell: Any) -> None:
    screen = shell("(TERM=dumb $MICROSCOPE doctor; $MICROSCOPE doctor) | cat -v", rows=60)
    assert screen.exit_code() == 0
    assert "^[" not in screen.text
    assert "layout       roomy" in screen.text
    assert "colours      truecolor: COLORTERM=truecolor" in screen.text
    assert "nothing, all is well" in screen.text
    assert "colours      none: TERM=dumb" in screen.text
    assert "`snapshot` and `check`" in screen.text


@pytest.mark.parametrize(
    ("script", "features"),
    [
        ("echo bpaste,RGB,title", "bpaste,RGB,title"),
        ("echo RGB; exit 1", ""),
        ("exec sleep 60", ""),
        ("printf '\\033[2J'", "\ufffd[2J"),
    ],
)
def test_tmux_that_fails_hangs_or_is_hostile_is_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, features: str
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("microscope_tui.commands.doctor._ANSWER_S", 0.5 if features else 0.05)
    path = tmp_path / "tmux"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    assert tmux_says() == features
