"""Two processes without a common group: only one of them writes a log."""

import errno
import fcntl
import gc
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from microscope_tui.probe import RunRecorder, attach, log_lock
from microscope_tui.probe.log_lock import lock_log, unlock_log
from tests.conftest import Call
from tests.forked import ForkServer, Program
from tests.probe.layers import ROUTERS, Model, records, tokens, watched
from tests.probe.test_recorder import MODEL

HERE = socket.gethostname()
WARNING = "make sure that no other process writes this log"
HOLD = """
import os, signal, sys, time
from pathlib import Path
from microscope_tui.probe.log_lock import lock_log
lock_log(Path(sys.argv[1]))
if "fork" in sys.argv and os.fork():
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)
print(os.getpid(), flush=True)
time.sleep(60)
"""


def lock_file(folder: Path) -> Path:
    return folder / ".metrics.jsonl.lock"


def started(server: ForkServer, folder: Path, *words: str) -> tuple[Program, int]:
    """A program that holds the lock, and the number of the process that waits in it."""
    program = server.start("-c", HOLD, str(folder / "metrics.jsonl"), *words)
    while not program.printed()[0].endswith("\n"):
        assert program.poll() is None or "fork" in words, program.printed()
        time.sleep(0.01)
    return program, int(program.printed()[0])


@pytest.fixture(name="holder")
def _holder(fork_server: ForkServer, tmp_path: Path) -> Iterator[Program]:
    program, _ = started(fork_server, tmp_path)
    yield program
    program.kill()


@pytest.fixture(name="impatient")
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_lock, "WAIT_S", 0.0)


@pytest.fixture(name="while_waiting")
def _while_waiting(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Replaces every pause of the process that waits."""
    return lambda act: monkeypatch.setattr(log_lock.time, "sleep", lambda _: act())


@pytest.mark.usefixtures("impatient")
def test_a_second_process_is_refused_and_a_part_of_its_own_is_not(
    holder: Program, tmp_path: Path, call: Call
) -> None:
    message = rf"metrics\.jsonl is written by process {holder.pid} on {HERE}: .*attach\(…, part=\)"
    with pytest.raises(BlockingIOError, match=message):
        attach(Model(), tmp_path, routers=ROUTERS)
    with pytest.raises(BlockingIOError, match=message):
        RunRecorder(tmp_path, model=MODEL)
    assert not (tmp_path / "metrics.jsonl").exists()
    with watched(tmp_path, part="b") as (model, probe):
        model(tokens())
        probe.step()
    assert len(records(tmp_path / "b")) == 1
    assert call("check", tmp_path / "b")[0] == 3  # too short for a verdict, and readable


def test_a_process_that_ends_meanwhile_makes_room(
    holder: Program, tmp_path: Path, while_waiting: Any, caplog: pytest.LogCaptureFixture
) -> None:
    while_waiting(holder.kill)
    lock_log(tmp_path / "metrics.jsonl")
    assert caplog.messages == []
    assert lock_file(tmp_path).read_text() == f"{os.getpid()} {HERE}"
    unlock_log(tmp_path / "metrics.jsonl")


GONE = {
    "another host": f"{os.getpid()} elsewhere",
    "dead": f"99999999 {HERE}",
    "too long a number": f"{'9' * 40} {HERE}",
    "no number": f"x {HERE}",
    "no text": "",
}


@pytest.mark.usefixtures("holder", "impatient")
@pytest.mark.parametrize("text", GONE.values(), ids=GONE)
def test_the_lock_of_a_process_that_is_gone_costs_a_warning(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lock_file(tmp_path).write_text(text)
    with watched(tmp_path) as (model, probe):
        model(tokens())
        probe.step()
    assert len(records(tmp_path)) == 1
    assert sum(WARNING in message for message in caplog.messages) == 1


@pytest.mark.usefixtures("holder")
def test_a_log_that_grows_is_in_use_on_another_host(
    tmp_path: Path, while_waiting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_lock, "WAIT_S", 0.05)
    lock_file(tmp_path).write_text("1 elsewhere")
    while_waiting(lambda: (tmp_path / "metrics.jsonl").write_text("{}\n"))
    with pytest.raises(BlockingIOError, match="is written by process 1 on elsewhere"):
        lock_log(tmp_path / "metrics.jsonl")


@pytest.mark.usefixtures("holder", "impatient")
def test_a_process_of_another_user_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "kill", mock.Mock(side_effect=PermissionError))
    with pytest.raises(BlockingIOError, match="is written by"):
        lock_log(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EACCES])
def test_a_disk_without_locks_costs_a_warning_and_no_wait(
    code: int, tmp_path: Path, while_waiting: Any, monkeypatch: Any, caplog: Any
) -> None:
    while_waiting(mock.Mock(side_effect=AssertionError("it waits")))
    monkeypatch.setattr(fcntl, "flock", mock.Mock(side_effect=OSError(code, os.strerror(code))))
    RunRecorder(tmp_path, model=MODEL).close(step=0, reason="stopped")
    (message,) = caplog.messages
    assert os.strerror(code) in message
    assert WARNING in message
    assert len(records(tmp_path, "run")) == 1
    lock_log(tmp_path / "metrics.jsonl")
    log_lock._leave_to_parent()  # as in a fork: there is nothing to close


@pytest.mark.usefixtures("impatient")
def test_a_forked_worker_does_not_keep_the_lock_of_a_dead_parent(
    fork_server: ForkServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    program, worker = started(fork_server, tmp_path, "fork")
    try:
        with pytest.raises(BlockingIOError):  # nor does it end that of a living one
            lock_log(tmp_path / "metrics.jsonl")
        assert program.wait() == -signal.SIGKILL
        lock_log(tmp_path / "metrics.jsonl")
        assert caplog.messages == []
    finally:
        unlock_log(tmp_path / "metrics.jsonl")
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)


def test_a_lock_file_removed_by_its_holder_is_made_again(tmp_path: Path, monkeypatch: Any) -> None:
    tries: list[int] = []

    def flock(file: int, how: int) -> None:
        if not tries:
            lock_file(tmp_path).unlink()
        tries.append(how)

    monkeypatch.setattr(fcntl, "flock", flock)
    lock_log(tmp_path / "metrics.jsonl")
    assert len(tries) == 2
    assert lock_file(tmp_path).exists()
    unlock_log(tmp_path / "metrics.jsonl")


def test_the_lock_is_given_back_by_whoever_ends(tmp_path: Path) -> None:
    log = RunRecorder(tmp_path, model={**MODEL})
    assert lock_file(tmp_path).exists()
    log.close(step=0, reason="stopped")
    assert not lock_file(tmp_path).exists()
    with pytest.raises(ValueError, match="other routers"):
        attach(Model(), tmp_path, routers=ROUTERS)
    assert not lock_file(tmp_path).exists()
    attach(Model(), tmp_path / "new", routers=ROUTERS)  # forgotten at once
    gc.collect()
    assert not lock_file(tmp_path / "new").exists()
    first = attach(Model(), tmp_path / "new", routers=ROUTERS)
    first.detach()
    assert not lock_file(tmp_path / "new").exists()
    second = attach(Model(), tmp_path / "new", routers=ROUTERS)
    del first
    gc.collect()
    assert lock_file(tmp_path / "new").exists()
    second.detach()
