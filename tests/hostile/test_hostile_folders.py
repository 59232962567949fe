"""A folder of runs is searched to its end, whatever it contains, and nothing of it is obeyed."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.draw.spans import plain
from microscope_tui.runlog import find_runs
from microscope_tui.screens.runs.text import fit_list, run_line
from microscope_tui.watch import Fleet
from tests.conftest import header
from tests.hostile import poison
from tests.hostile.outcome import hurts

NAMES = ["..run", "a..b", "\x1b[2J", "\x1b]52;c;eA==\x07", "\u202eevil", "new\nline", "-rf"]
NAMES += ["--json", "[bold]x[/]", "%s{0}", "~", "\x9b31m", "日本語", "x" * 200, "a" + "\u0489" * 9]
COMMANDS = (["check", "--all"], ["check", "--all", "--json"], ["check", "--format-only", "--all"])
NO_FILES = ["metrics.jsonl", "self.jsonl", "up.jsonl", "gone.jsonl"]
NO_FILES += ["/dev/zero", "/dev/null", "/dev/tty"]
FIELDS = [b"\xff\xfe\x80", b"caf\xe9", b"\xc2\x9b2J"]
"""Names that are no UTF-8."""


def put(folder: Path, name: str | bytes) -> None:
    path = os.path.join(os.fsencode(folder), os.fsencode(name))
    os.makedirs(path)
    with open(os.path.join(path, b"metrics.jsonl"), "wb") as file:
        file.write(poison.HEADER + poison.STEP % 1)


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """One sound run among all that a search could hang on or run away with."""
    put(tmp_path, "sound")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "self.jsonl").symlink_to(tmp_path / "self.jsonl")
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "up.jsonl").symlink_to("/dev/zero")
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "metrics.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl.gz")
    (tmp_path / "folder.jsonl").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tmp_path / "socket.jsonl"))
    deep = tmp_path
    for _ in range(40):
        deep = deep / "d"
    put(deep, "deep")
    (deep / "back").symlink_to(tmp_path)
    return tmp_path


def test_only_the_run_is_found_among_links_pipes_and_sockets(trap: Path) -> None:
    assert [run.name for run in find_runs(trap)] == ["sound"]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_no_command_hangs_on_links_pipes_and_sockets(
    microscope: Any, trap: Path, arguments: list[str]
) -> None:
    ended = microscope(*arguments, trap)
    assert ended.returncode in (0, 1, 2, 3)
    assert "sound" in ended.stdout
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("name", NO_FILES)
@pytest.mark.parametrize("arguments", [["check"], ["check", "--format-only"], ["snapshot"]])
def test_what_is_no_file_is_said_when_it_is_named(
    microscope: Any, trap: Path, name: str, arguments: list[str]
) -> None:
    ended = microscope(*arguments, trap / name)
    assert ended.returncode == 3
    assert "Traceback" not in ended.stdout + ended.stderr
    assert hurts(ended.stdout + ended.stderr) is None


def test_names_of_runs_are_text_and_nothing_else(microscope: Any, tmp_path: Path) -> None:
    for name in [*NAMES, *FIELDS]:
        put(tmp_path, name)
    fleet = Fleet(tmp_path)
    fleet.search(now=True)
    assert len(fleet.runs) == len(NAMES) + len(FIELDS)
    cards = fleet.cards()
    for columns in (20, 60, 200):
        layout = fit_list(cards, columns)
        for card in cards:
            assert hurts(plain(run_line(card, layout, chosen=False))) is None
    for arguments in COMMANDS:
        ended = microscope(*arguments, tmp_path)
        assert ended.returncode in (0, 3)
        assert hurts(ended.stdout + ended.stderr) is None
        if "--json" in arguments:
            assert len(json.loads(ended.stdout)["runs"]) == len(cards)


@pytest.mark.parametrize("name", [*NAMES[2:6], *FIELDS], ids=repr)
def test_given_names_come_back_harmless(microscope: Any, tmp_path: Path, name: str | bytes) -> None:
    put(tmp_path, name)
    path = os.path.join(os.fsencode(tmp_path), os.fsencode(name))
    for arguments in (["snapshot"], ["check"], ["check", "--format-only"]):
        for asked in (path, path + b"-missing"):
            ended = microscope(*arguments, asked)
            assert ended.returncode in (0, 3)
            assert "Traceback" not in ended.stderr
            assert hurts(ended.stdout + ended.stderr) is None


@pytest.mark.parametrize("text", poison.TEXTS, ids=ascii)
def test_names_in_a_log_stay_names(path: Path, text: str) -> None:
    run_record = header(run=text, model={"layer_names": [text] * 3})
    path.write_bytes(poison.encoded(run_record) + b"\n" + poison.STEP % 1)
    (run,) = find_runs(path.parent)
    assert run.path == path
    assert os.listdir(path.parent) == ["metrics.jsonl"]
    assert hurts(run.name) is None
