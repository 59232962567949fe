"""``moe-microscope -``, ``check -``, ``snapshot -``: a log that comes through a pipe."""

import gzip
import json
import os
import re
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
    assert done.stdout.startswith(f"{name}-0: ")  # by its header: a pipe has no folder
    report = json.loads(microscope("check", "-", "--json", given=log).stdout)
    assert [run["exit_code"] for run in report["runs"]] == [code]
    assert [(run["run"], run["path"]) for run in report["runs"]] == [
        (f"{name}-0", "standard input")
    ]


def test_the_verdict_of_a_pipe_is_the_verdict_of_the_file(microscope: Run, collapsed: Path) -> None:
    piped = json.loads(microscope("check", "-", "--json", given=collapsed.read_bytes()).stdout)
    read = json.loads(microscope("check", collapsed, "--json").stdout)
    assert piped["runs"][0]["findings"] == read["runs"][0]["findings"]


def test_a_snapshot_of_a_pipe_is_the_one_of_the_file(microscope: Run, collapsed: Path) -> None:
    piped = microscope("snapshot", "-", given=collapsed.read_bytes())
    read = microscope("snapshot", collapsed)
    assert piped.returncode == 0
    assert piped.stdout.splitlines()[1:] == read.stdout.splitlines()[1:]
    assert piped.stdout.startswith(" collapse-0 ")


def test_a_pipe_without_a_header_is_named_as_what_it_is(microscope: Run, collapsed: Path) -> None:
    _, steps = collapsed.read_bytes().split(b"\n", 1)
    assert microscope("check", "-", given=steps).stdout.startswith("standard input: ")


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
        f"(cat {first}; cat {gate}) | $MICROSCOPE - --spool 0 & cat {rest} > {gate}; wait",
        ("wait", "pipe ended"),
        ("see", ""),
        ("press", "["),
        ("wait", "a pipe cannot be rewound without a spool"),
        ("press", "r"),
        ("wait", "the pipe has ended"),
        ("wait", "collapse-0  open"),
        ("see", ""),
        ("press", "rq"),
        ("end", ""),
    )
    assert "step 19" in screens[0]
    assert "collapse-0  open" in screens[1]
    assert code == 0


def test_the_time_machine_works_on_a_pipe_as_on_the_file(play: Play, collapsed: Path) -> None:
    acts = (
        ("wait", "450 finished"),
        ("press", ":200\r"),
        ("wait", "200 PAUSED"),
        ("see", ""),
        ("press", "["),
        ("wait", "199 PAUSED"),
        ("press", "\r"),
        ("wait", "load per expert"),
        ("see", ""),
        ("press", "q"),
        ("end", ""),
    )
    piped, code = play(f"cat {collapsed} | $MICROSCOPE -", *acts)
    read, _ = play(f"$MICROSCOPE {collapsed}", *acts)
    assert code == 0
    for one, other in zip(piped, read, strict=True):
        # All but the header (its age) and the line of notes (how changes are noticed).
        assert one.splitlines()[1:-3] == other.splitlines()[1:-3]


def test_quitting_ends_a_pipe_that_never_closes_and_leaves_nothing(
    play: Play, collapsed: Path, tmp_path: Path
) -> None:
    kept, group = tmp_path / "kept", tmp_path / "group"
    kept.mkdir()
    _, code = play(
        f"echo $$ > {group}; (cat {collapsed}; sleep 600) | TMPDIR={kept} $MICROSCOPE -",
        ("wait", "450 finished"),
        ("press", "[["),
        ("wait", "448 PAUSED"),
        ("press", "q"),
        ("end", ""),
    )
    with pytest.raises(ProcessLookupError):
        os.killpg(int(group.read_text()), 0)  # no process of the pipeline is left
    assert list(kept.iterdir()) == []
    assert code == 0


def test_a_writer_that_ignores_the_signal_lives_on_and_is_named(
    play: Play, collapsed: Path, tmp_path: Path
) -> None:
    gate, wrote = tmp_path / "gate", tmp_path / "wrote"
    os.mkfifo(gate)
    writer = "trap '' PIPE; cat {log}; read line < {gate}; echo lived > {wrote}; sleep 0"
    screens, code = play(
        f'sh -c "{writer.format(log=collapsed, gate=gate, wrote=wrote)}" | $MICROSCOPE - '
        f"&& echo go > {gate}",
        ("wait", "450 finished"),
        ("press", "q"),
        ("wait", "still writes to this pipe"),
        ("see", ""),
        ("press", "\x03"),
        ("end", ""),
    )
    assert re.search(r"moe-microscope: sh \(process \d+\) still writes", screens[0])
    assert code != 0
    assert not wrote.exists()


def test_a_spool_that_is_full_says_from_which_step_time_travel_works(
    play: Play, collapsed: Path
) -> None:
    lines = collapsed.read_bytes().split(b"\n")
    padded = collapsed.with_name("padded")  # ten kilobytes a step, which no reader knows
    padding = b',"padding":"' + b"x" * 10_000 + b'"}'
    padded.write_bytes(b"\n".join(line[:-1] + padding for line in lines if line))
    screens, code = play(
        f"cat {padded} | $MICROSCOPE - --spool 1MB",
        ("wait", "450 finished"),
        ("wait", "time travel from step "),
        ("see", ""),
        ("press", ":3\r"),
        ("wait", "PAUSED"),
        ("see", ""),
        ("press", "q"),
        ("end", ""),
    )
    assert "time travel from step" in screens[0]
    # The note about the spool gives way where another one needs the room.
    reason = r": the spool is full \(--spool 1 MB\)|  ·  the pipe has ended"
    found = re.search(rf"time travel from step (\d+)(?:{reason})", screens[1])
    assert found, screens[1]
    assert f"{found[1]} PAUSED" in screens[1]
    assert 350 < int(found[1]) < 450 - 30
    assert code == 0


@pytest.mark.parametrize("size", ["x", "1k", "-1"])
def test_a_spool_without_a_size_is_a_usage_error(microscope: Run, size: str) -> None:
    done = microscope("-", "--spool", size)
    assert done.returncode == 64
    assert "--spool" in done.stderr


def test_a_terminal_instead_of_a_pipe_is_a_usage_error(play: Play) -> None:
    _, code = play("$MICROSCOPE -", ("wait", "the standard input is the terminal"), ("end", ""))
    assert code == 64


def test_a_silent_pipe_is_waited_on(play: Play, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    screens, _ = play(
        f"cat {gate} | $MICROSCOPE -",
        ("wait", "q quit"),
        ("see", ""),
    )
    assert "waiting for the first step on standard input" in screens[0]


@pytest.mark.parametrize("writer", ["true", "echo hello"])
def test_a_pipe_that_ended_without_a_step_is_not_waited_on(play: Play, writer: str) -> None:
    screens, code = play(
        f"{writer} | $MICROSCOPE -",
        ("wait", "standard input ended without a step"),
        ("wait", "q quit"),
        ("see", ""),
        ("press", "q"),
        ("end", ""),
    )
    assert code == 0
    assert ("the first: line 1: not JSON" in screens[0]) == (writer != "true")


def test_files_written_on_the_screens_are_named_again_after_quitting(
    play: Play, collapsed: Path, tmp_path: Path
) -> None:
    said = tmp_path / "said"
    _, code = play(
        f"cd {tmp_path}; $MICROSCOPE {collapsed}; echo $? > {said}",
        ("wait", "450 finished"),
        ("press", "w"),
        ("wait", "written: collapse-0-450-main.csv in /"),
        ("press", "q"),
        ("wait", f"moe-microscope: written: {tmp_path}/collapse-0-450-main.csv"[:99]),
        ("end", ""),
    )
    assert code == 0
    assert (tmp_path / "collapse-0-450-main.csv").exists()


def test_a_snapshot_in_a_file_is_named(microscope: Run, collapsed: Path, tmp_path: Path) -> None:
    done = microscope("snapshot", collapsed, "-o", tmp_path / "shot.txt")
    assert done.stdout == ""
    assert done.stderr == f"moe-microscope: written: {tmp_path / 'shot.txt'}\n"
