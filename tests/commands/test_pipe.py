"""``moe-microscope -``, ``check -``, ``snapshot -``: a log that comes through a pipe."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
Play = Callable[..., tuple[list[str], int | None]]


@pytest.fixture
def collapsed(scenario: Any) -> Path:
    return scenario("collapse", routers=3, steps=450) / "metrics.jsonl"  # type: ignore[no-any-return]


@pytest.mark.parametrize(("name", "code"), [("healthy", 0), ("collapse", 2)])
def test_check_judges_what_is_piped_in(
    microscope: Run, scenario: Any, name: str, code: int
) -> None:
    log = (scenario(name, routers=3, steps=450) / "metrics.jsonl").read_bytes()
    done = microscope("check", "-", given=log)
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.startswith("standard input: ")
    report = json.loads(microscope("check", "-", "--json", given=log).stdout)
    assert [run["exit_code"] for run in report["runs"]] == [code]


def test_the_verdict_of_a_pipe_is_the_verdict_of_the_file(microscope: Run, collapsed: Path) -> None:
    piped = json.loads(microscope("check", "-", "--json", given=collapsed.read_bytes()).stdout)
    read = json.loads(microscope("check", collapsed, "--json").stdout)
    assert piped["runs"][0]["findings"] == read["runs"][0]["findings"]


def test_a_snapshot_of_a_pipe_is_the_one_of_the_file_under_another_name(
    microscope: Run, collapsed: Path
) -> None:
    piped = microscope("snapshot", "-", given=collapsed.read_bytes())
    read = microscope("snapshot", collapsed)
    assert piped.returncode == 0
    assert piped.stdout.splitlines()[1:] == read.stdout.splitlines()[1:]
    assert piped.stdout.startswith(" standard input ")


def test_without_a_terminal_the_viewer_prints_a_snapshot_at_the_end(
    microscope: Run, collapsed: Path
) -> None:
    done = microscope("-", given=collapsed.read_bytes())
    assert done.returncode == 0
    assert "Router collapse in L3" in done.stdout
    assert "printing a snapshot at the end of the input" in done.stderr


@pytest.mark.parametrize("command", ["check", "snapshot", ""])
@pytest.mark.parametrize(
    "given",
    [b"", b"hello\n", gzip.compress(b"{}\n" * 99, mtime=0)],
    ids=["nothing", "text", "packed"],
)
def test_a_pipe_without_a_step_exits_with_three_and_says_so(
    microscope: Run, command: str, given: bytes
) -> None:
    done = microscope(*([command] if command else []), "-", given=given)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    words = done.stdout + done.stderr
    assert "without a step" in words or "no steps in the log" in words
    if given:
        assert "line 1: not JSON" in words


def test_a_torn_last_line_costs_one_line_and_is_said(microscope: Run, collapsed: Path) -> None:
    done = microscope("check", "-", given=collapsed.read_bytes()[:-300])
    assert done.returncode == 2
    assert "1 unreadable parts skipped" in done.stdout


def test_a_dash_as_output_is_the_standard_output(
    microscope: Run, collapsed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "Router collapse" in microscope("snapshot", collapsed, "-o", "-").stdout
    assert not Path("-").exists()


def test_keys_work_while_the_log_comes_through_the_pipe(play: Play, collapsed: Path) -> None:
    screens, code = play(
        f"cat {collapsed} | $MICROSCOPE -",
        ("wait", "CRITICAL"),
        ("wait", "450 finished"),
        ("press", "a\r"),
        ("wait", "max load"),
        ("see", ""),
        ("press", "\x1b"),
        ("gone", "max load"),
        ("press", "q"),
        ("end", ""),
    )
    assert "Router collapse in L3" in screens[0]
    assert code == 0


def test_a_pipe_that_goes_on_is_followed_and_its_end_is_said(play: Play, collapsed: Path) -> None:
    lines = collapsed.read_bytes().split(b"\n")
    first, rest = collapsed.with_name("first"), collapsed.with_name("rest")
    first.write_bytes(b"\n".join(lines[:100]) + b"\n")
    rest.write_bytes(b"\n".join(lines[100:200]) + b"\n")
    gate = collapsed.with_name("gate")
    os.mkfifo(gate)  # its reader waits for us, and nobody sleeps
    screens, code = play(
        f"(cat {first}; cat {gate}) | $MICROSCOPE - & cat {rest} > {gate}; wait",
        ("wait", "pipe ended"),
        ("see", ""),
        ("press", "["),
        ("wait", "a pipe has no way back"),
        ("press", "r"),
        ("wait", "the pipe has ended"),
        ("wait", "standard input  open"),
        ("see", ""),
        ("press", "rq"),
        ("end", ""),
    )
    assert "step 19" in screens[0]
    assert "standard input  open" in screens[1]
    assert code == 0


def test_a_terminal_instead_of_a_pipe_is_a_usage_error(play: Play) -> None:
    _, code = play("$MICROSCOPE -", ("wait", "the standard input is the terminal"), ("end", ""))
    assert code == 64


def test_a_silent_pipe_is_waited_on(play: Play, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    screens, _ = play(
        f"cat {gate} | $MICROSCOPE -",
        ("wait", "waiting for the first step on the standard input"),
        ("see", ""),
    )
    assert "q quit" in screens[0]


@pytest.mark.parametrize("writer", ["true", "echo hello"])
def test_a_pipe_that_ended_without_a_step_is_not_waited_on(play: Play, writer: str) -> None:
    screens, code = play(
        f"{writer} | $MICROSCOPE -",
        ("wait", "the standard input has ended without a step"),
        ("see", ""),
        ("press", "q"),
        ("end", ""),
    )
    assert code == 0
    assert ("the first: line 1: not JSON" in screens[0]) == (writer != "true")
