"""A second process judges a long log: the same judgement, whatever happens to it."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from random import Random
from shutil import copy
from typing import Any, TypeAlias

import pytest

from benchmarks.bulk import write_bulk
from microscope_tui.diagnosis import ANYTHING, save
from microscope_tui.runlog import RunFile
from microscope_tui.screens.main.as_text import snapshot_text
from microscope_tui.sources import Search
from microscope_tui.watch import RunWatch, judge
from microscope_tui.watch.judge import Ended, Judge, SecondProcess
from microscope_tui.watch.verdict import verdict_on
from tests.watch.accidents import OPERATIONS, Log
from tests.watch.test_any_history import live_through

Logs: TypeAlias = dict[str, Path]
SHAPE: dict[str, Any] = {"routers": 4, "num_experts": 16, "top_k": 2, "tokens": 512}


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Logs:
    """One run as a log with restarts, as an archive, and as rows of another tool."""
    folder = tmp_path_factory.mktemp("logs")
    log = folder / "log" / "metrics.jsonl"
    write_bulk(log, steps=1_500, collapse=(2, 900), restarts=[(1_000, 701)], **SHAPE)
    packed, rows = folder / "packed" / "metrics.jsonl.gz", folder / "rows" / "rows.jsonl"
    for path in (packed, rows):
        path.parent.mkdir()
    packed.write_bytes(gzip.compress(log.read_bytes(), 1))
    with rows.open("w") as file:
        for line in log.read_text().splitlines():
            record = json.loads(line)
            for layer, row in enumerate(record.get("tokens_per_expert", [])):
                loads = {f"moe/layer_{layer}/expert_{e}_tokens": n for e, n in enumerate(row)}
                file.write(json.dumps({"step": record["step"], **loads}) + "\n")
    return {"log": log, "archive": packed, "rows": rows}


def watch_of(path: Path, **options: Any) -> RunWatch:
    (file,) = Search(path).runs()
    return RunWatch(file, **options)


def state_of(watch: RunWatch) -> tuple[Any, ...]:
    """What must not depend on the number of processes."""
    assert watch.diagnosis is not None
    return save(watch.diagnosis), watch.defects, verdict_on(watch), watch.judged


def read_in_one(path: Path) -> RunWatch:
    watch = watch_of(path, patient=True)
    watch.read_all()
    return watch


def read_in_two(path: Path) -> RunWatch:
    watch = watch_of(path, second_from=1)
    watch.advance()
    assert watch._second is not None
    shares = [watch.judged]
    while watch.unread:
        watch.advance()
        shares.append(watch.judged)
    assert shares == sorted(shares)
    assert watch._second is None
    return watch


@pytest.mark.parametrize("kind", ["log", "archive", "rows"])
def test_two_processes_judge_like_one(logs: Logs, kind: str) -> None:
    watch = read_in_two(logs[kind])
    assert watch.judged_again == ""
    assert len(watch.diagnosis.episodes if watch.diagnosis else ()) > 0
    assert state_of(watch) == state_of(read_in_one(logs[kind]))


@pytest.mark.parametrize(
    ("kind", "how", "words"),
    [
        ("log", signal.SIGKILL, "was killed by signal 9"),
        ("rows", signal.SIGKILL, "was killed by signal 9"),
        ("rows", signal.SIGSTOP, "was stopped for 0.2 s"),
    ],
)
def test_a_killed_or_stopped_process_is_named_and_the_log_judged_again(
    logs: Logs, kind: str, how: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "_STOPPED_S", 0.2)
    watch = watch_of(logs[kind], second_from=1)
    watch.advance()
    assert watch._second is not None
    process = watch._second.process
    process.send_signal(how)
    began = time.monotonic()
    while not watch.judged_again:
        watch.advance()
    assert time.monotonic() - began < 20
    assert watch.judged_again == f"process {process.pid} {words}"
    watch.read_all()
    assert state_of(watch) == state_of(read_in_one(logs[kind]))


def test_a_process_that_is_continued_judges_on(logs: Logs) -> None:
    watch = watch_of(logs["rows"], second_from=1)
    watch.advance()
    assert watch._second is not None
    watch._second.process.send_signal(signal.SIGSTOP)
    for _ in range(10):
        watch.advance()
    watch._second.process.send_signal(signal.SIGCONT)
    watch.read_all()
    assert (watch.judged_again, watch.judged) == ("", 1.0)


def test_what_is_appended_later_is_judged_here(tmp_path: Path, logs: Logs) -> None:
    lines = logs["log"].read_bytes().splitlines(keepends=True)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(lines[:1_400]) + lines[1_400][:50])  # a torn last line
    watch = read_in_two(path)
    with path.open("ab") as file:
        file.write(lines[1_400][50:] + b"".join(lines[1_401:]))
    watch.read_all()
    assert state_of(watch) == state_of(read_in_one(logs["log"]))


@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_to_a_log_it_is_judged_alike(tmp_path: Path, seed: int) -> None:
    chance, log = Random(seed), Log(tmp_path / "metrics.jsonl", usual_steps=60)
    watch = RunWatch(RunFile("r", log.path, 0.0, chance.choice([1, 1 << 22])), second_from=1)
    story = [(chance.choice(OPERATIONS), chance.randrange(999)) for _ in range(20)]
    live_through(story, log, watch, 5_000)
    assert state_of(watch) == state_of(read_in_one(log.path))


def test_a_program_that_is_killed_leaves_no_process_behind(logs: Logs) -> None:
    program = (
        "import sys; from pathlib import Path; "
        "from tests.watch.test_second_process import watch_of; "
        "watch = watch_of(Path(sys.argv[1]), second_from=1); watch.advance(); "
        "print(watch._second.process.pid, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(logs["log"])]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as first:
        assert first.stdout is not None
        second = int(first.stdout.readline())
        first.kill()
        first.wait()
    until = time.monotonic() + 20
    while _is_there(second):
        assert time.monotonic() < until
        time.sleep(0.02)


def _is_there(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_there_is_no_other_process_on_one_core(logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    watch = watch_of(logs["log"], second_from=1)
    watch.advance()
    assert watch._second is None


@pytest.mark.parametrize(("quota", "helps"), [("100000", False), ("200000", True), ("max", True)])
def test_a_quota_of_one_core_is_one_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, helps: bool
) -> None:
    monkeypatch.setattr(judge, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(judge, "_CGROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    (tmp_path / "cgroup").write_text("1:cpu:/\n0::/pod\n")
    (tmp_path / "pod").mkdir()
    (tmp_path / "pod/cpu.max").write_text(f"{quota} 100000\n")
    assert judge.second_process_helps() is helps


def test_a_folder_full_of_modules_is_never_imported(
    logs: Logs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("msgspec", "pickle", "select", "microscope_tui"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    assert read_in_two(logs["log"]).judged_again == ""


def test_what_fails_in_the_second_process_is_told(tmp_path: Path) -> None:
    second = SecondProcess(Judge("run", ANYTHING))
    second.judge_file(tmp_path / "missing", 10)
    second.exchange()  # passes the request on
    with closing(second), pytest.raises(Ended, match=r"process \d+ failed: FileNotFoundError"):
        second.exchange(10.0)


def test_a_log_that_shrank_since_it_was_found_is_judged(tmp_path: Path, logs: Logs) -> None:
    watch = watch_of(path := Path(copy(logs["log"], tmp_path)), second_from=1)
    watch._start_second()  # it is given a range that will be gone
    os.truncate(path, 1 << 18)
    watch.read_all()
    assert state_of(watch) == state_of(read_in_one(path))


def test_a_log_that_is_deleted_while_it_is_judged_stays(tmp_path: Path, logs: Logs) -> None:
    watch = watch_of(path := Path(copy(logs["log"], tmp_path)), second_from=1)
    watch.advance()
    path.unlink()
    while watch.advance() or not watch.source.deleted:
        assert watch.latest is not None  # what was on screen
    assert (watch.unread, watch.state()[0]) == (False, "deleted")
    watch.close()


def test_a_log_that_is_deleted_before_its_first_byte_is_read_stays_as_sampled(
    tmp_path: Path, logs: Logs
) -> None:
    watch = watch_of(path := Path(copy(logs["log"], tmp_path)))
    watch.open_overview()
    path.unlink()
    watch.read_all()
    assert (watch.state()[0], watch.sampled) == ("deleted", True)
    shown = snapshot_text(watch)
    assert "now; no verdict: deleted when 0% was judged" in shown
    assert "reading" not in shown
