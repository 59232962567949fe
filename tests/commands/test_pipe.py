"""``moe-microscope -``, ``check -``, ``snapshot -``: a log that comes through a pipe."""

import gzip
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def collapsed(scenario: Any) -> Path:
    return scenario("collapse", routers=3, steps=450) / "metrics.jsonl"  # type: ignore[no-any-return]


@pytest.mark.parametrize(("name", "code"), [("healthy", 0), ("collapse", 2)])
def test_pipes_are_judged_like_files(microscope: Any, scenario: Any, name: str, code: int) -> None:
    log = scenario(name, routers=3, steps=450) / "metrics.jsonl"
    done = microscope("check", "-", given=log.read_bytes())
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.startswith(f"{name}-0: ")  # by its header: a pipe has no folder
    piped = json.loads(microscope("check", "-", "--json", given=log.read_bytes()).stdout)
    (run,) = piped["runs"]
    assert (run["run"], run["path"]) == (f"{name}-0", "standard input")
    read = json.loads(microscope("check", log, "--json").stdout)
    read["runs"][0]["path"] = run["path"]
    assert piped == read


def test_a_snapshot_of_a_pipe_is_the_one_of_the_file(microscope: Any, collapsed: Path) -> None:
    piped = microscope("snapshot", "-", given=collapsed.read_bytes())
    read = microscope("snapshot", collapsed)
    assert piped.returncode == 0
    assert piped.stdout.splitlines()[1:] == read.stdout.splitlines()[1:]
    assert piped.stdout.startswith(" collapse-0 ")


def test_without_a_terminal_the_end_is_a_snapshot(microscope: Any, collapsed: Path) -> None:
    done = microscope("-", given=collapsed.read_bytes())
    assert done.returncode == 0
    assert "Router collapse in L3" in done.stdout
    assert "printing a snapshot at the end of the input" in done.stderr


@pytest.mark.parametrize(
    ("command", "given"),
    [
        ("check", b""),
        ("check", b"hello\n"),
        ("check", gzip.compress(b"{}\n" * 99, mtime=0)),
        ("snapshot", b"hello\n"),
        ("", b""),
    ],
    ids=["check nothing", "check text", "check packed", "snapshot text", "watch nothing"],
)
def test_a_pipe_without_a_step_exits_with_three_and_the_reason(
    microscope: Any, command: str, given: bytes
) -> None:
    done = microscope(*([command] if command else []), "-", given=given)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    words = done.stdout + done.stderr
    assert "without a step" in words or "no steps in the log" in words
    assert ("line 1: not JSON" in words) == bool(given)


def test_a_torn_last_line_costs_one_line_and_is_reported(microscope: Any, collapsed: Path) -> None:
    done = microscope("check", "-", given=collapsed.read_bytes()[:-300])
    assert done.returncode == 2
    line = collapsed.read_bytes()[:-300].count(b"\n") + 1
    assert f"1 unreadable part skipped: line {line}: not JSON; repair: `moe" in done.stdout


def test_a_pipe_that_continues_is_followed_and_its_end_shown(shell: Any, collapsed: Path) -> None:
    lines = collapsed.read_bytes().split(b"\n")
    first, rest = collapsed.with_name("first"), collapsed.with_name("rest")
    first.write_bytes(b"\n".join(lines[:100]) + b"\n")
    rest.write_bytes(b"\n".join(lines[100:200]) + b"\n")
    gate = collapsed.with_name("gate")
    os.mkfifo(gate)  # its reader waits for us
    screen = shell(f"(cat {first}; cat {gate}) | $MICROSCOPE - --spool 0 & cat {rest} >{gate};wait")
    screen.wait_for("pipe ended")
    assert "step 19" in screen.text
    screen.press("[")
    screen.wait_for("a pipe cannot be rewound without a spool")
    screen.press("r")
    screen.wait_for("collapse-0  open")
    screen.press("rq")
    assert screen.exit_code() == 0


def test_quitting_ends_a_pipe_that_never_closes_and_leaves_only_what_was_asked_for(
    shell: Any, collapsed: Path, tmp_path: Path
) -> None:
    kept, group = tmp_path / "kept", tmp_path / "group"
    kept.mkdir()
    screen = shell(
        f"cd {kept}; echo $$ > {group}; (cat {collapsed}; sleep 600) | TMPDIR={kept} $MICROSCOPE -"
    )
    screen.wait_for("450 finished")
    screen.press("[[")
    screen.wait_for("448 PAUSED")
    screen.press("w")
    screen.wait_for("written: collapse-0-448-main.csv in /")
    screen.press("q")
    assert screen.exit_code() == 0
    # The message on the screen is gone, so it is repeated.
    assert f"moe-microscope: written: {kept}/collapse-0-448-main.csv"[:99] in screen.text
    with pytest.raises(ProcessLookupError):
        os.killpg(int(group.read_text()), 0)  # no process of the pipeline is left
    assert [path.name for path in kept.iterdir()] == ["collapse-0-448-main.csv"]


def test_a_writer_that_ignores_the_signal_lives_on_until_ctrl_c(
    shell: Any, collapsed: Path, tmp_path: Path
) -> None:
    gate, wrote = tmp_path / "gate", tmp_path / "wrote"
    os.mkfifo(gate)
    writer = f"trap '' PIPE; cat {collapsed}; read line < {gate}; echo lived > {wrote}; sleep 0"
    screen = shell(f'sh -c "{writer}" | $MICROSCOPE - && echo go > {gate}')
    screen.wait_for("450 finished")
    screen.press("q")
    screen.wait_for("moe-microscope: what writes to this pipe stops at its next line")
    screen.press("\x03")
    assert screen.exit_code() != 0
    assert not wrote.exists()


def test_a_full_spool_says_from_which_step_time_travel_works(shell: Any, collapsed: Path) -> None:
    lines = collapsed.read_bytes().split(b"\n")
    padded = collapsed.with_name("padded")  # ten kilobytes a step, in a key that no reader has
    padding = b',"padding":"' + b"x" * 10_000 + b'"}'
    padded.write_bytes(b"\n".join(line[:-1] + padding for line in lines if line))
    screen = shell(f"cat {padded} | $MICROSCOPE - --spool 1MB")
    screen.wait_for("450 finished", "time travel from step ")
    screen.press(":3\r")
    screen.wait_for("PAUSED")
    found = re.search(r"time travel from step (\d+)", screen.text)
    assert found, screen.text
    assert f"{found[1]} PAUSED" in screen.text
    assert 350 < int(found[1]) < 450 - 30
    screen.press("q")
    assert screen.exit_code() == 0


def test_a_terminal_instead_of_a_pipe_is_a_usage_error(shell: Any) -> None:
    screen = shell("$MICROSCOPE -")
    screen.wait_for("the standard input is the terminal")
    assert screen.exit_code() == 64


@pytest.mark.parametrize("writes", ["", "hello"])
def test_a_silent_pipe_is_waited_on_until_its_end(shell: Any, tmp_path: Path, writes: str) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    screen = shell(f"{{ read _ <{gate}; printf '{writes}'; }} | $MICROSCOPE -")
    screen.wait_for("waiting for the first step on standard input")
    gate.write_text("now\n")
    screen.wait_for("standard input ended without a step")
    assert ("1 bad line, line 1: not JSON" in screen.text) == bool(writes)
    screen.press("q")
    assert screen.exit_code() == 0
