"""A disk that fails costs records and a warning, never the training and never a neighbour."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.runlog import RunLogWriter, encode_record
from tests.runlog.written import RUN, lost, records, step


class Disk:
    """The calls that reach a disk, each of which can be made to fail, and the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._failing: dict[str, int] = {}
        self._half: bytes | None = None
        self._write = os.write
        self.writes = 0
        self.now = 0.0
        for name in ("open", "stat", "ftruncate", "fsync"):
            monkeypatch.setattr(os, name, self._checked(name, getattr(os, name)))
        monkeypatch.setattr(os, "write", self.write)

    def fails(self, call: str, code: int) -> None:
        self._failing[call] = code

    def takes_half(self, then: bytes = b"") -> None:
        """Half of every line, and what another process writes right after it."""
        self._half = then

    def recovers(self, after_s: float = 1.0) -> None:
        self._failing.clear()
        self._half = None
        self.now += after_s

    def write(self, file: int, data: bytes) -> int:
        self.writes += 1
        self._check("write")
        if self._half is None:
            return self._write(file, data)
        written = self._write(file, data[: len(data) // 2])
        self._write(file, self._half)
        return written

    def _checked(self, name: str, real: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self._check(name)
            return real(*arguments, **named)

        return call

    def _check(self, name: str) -> None:
        if name in self._failing:
            raise OSError(self._failing[name], os.strerror(self._failing[name]))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def log(path: Path, disk: Disk) -> RunLogWriter:
    return RunLogWriter(path, clock=lambda: disk.now)


def test_a_line_is_one_write(path: Path, disk: Disk, log: RunLogWriter) -> None:
    log.write(RUN)
    log.write(step(1))
    assert (disk.writes, len(records(path))) == (2, 2)


def test_a_full_disk_costs_one_warning_and_the_loss_is_said_later(
    path: Path, disk: Disk, log: RunLogWriter, caplog: pytest.LogCaptureFixture
) -> None:
    disk.fails("write", errno.ENOSPC)
    assert [log.write(step(n)) for n in (1, 2)] == [False, False]
    assert ["No space left" in message for message in caplog.messages] == [True]
    disk.recovers()
    assert log.write(step(3))
    lost, third = records(path)
    assert (lost["event"], lost["step"], lost["values"]) == ("lost_records", 3, {"count": 2})
    assert third["step"] == 3


@pytest.mark.parametrize("call", ["write", "open", "stat"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.ESTALE, errno.EDQUOT])
def test_whatever_fails_steps_are_lost_and_the_log_goes_on(
    path: Path, disk: Disk, log: RunLogWriter, code: int, call: str
) -> None:
    log.write(step(1))
    if call == "open":
        path.unlink()
    disk.fails(call, code)
    assert not log.write(step(2))
    disk.recovers()
    assert log.write(step(3))
    assert [r["step"] for r in records(path) if r["kind"] == "step"][-1] == 3
    assert lost(path) == 1


def test_a_failed_write_is_tried_again_at_most_once_a_second(disk: Disk, log: RunLogWriter) -> None:
    disk.fails("write", errno.EIO)
    for n in range(1000):
        disk.now = n / 100
        log.write(step(n))
    assert disk.writes == 10
    assert log.lost_records == 1000


def test_events_are_few_and_are_tried_at_once(path: Path, disk: Disk, log: RunLogWriter) -> None:
    disk.fails("write", errno.EIO)
    log.write(step(1))
    disk.recovers(after_s=0)
    assert not log.write(step(2)), "sooner than a second after the failure"
    assert log.write({"kind": "event", "event": "end", "step": 2})
    assert [r.get("event") for r in records(path)] == ["lost_records", "end"]
    assert lost(path) == 2


def test_a_disk_that_fails_and_works_in_turns_is_warned_of_once_a_minute(
    disk: Disk, log: RunLogWriter, caplog: pytest.LogCaptureFixture
) -> None:
    for n in range(30):
        disk.now = 4.0 * n
        disk.fails("write", errno.ENOSPC)
        log.write(step(2 * n))
        disk.recovers(after_s=2)
        assert log.write(step(2 * n + 1))
    assert len(caplog.messages) == 2


def test_half_a_line_is_never_glued_to_the_next(path: Path, disk: Disk, log: RunLogWriter) -> None:
    log.write(step(1))
    disk.takes_half()
    disk.fails("ftruncate", errno.EIO)
    assert not log.write(step(2))
    disk.recovers()
    assert log.write(step(3))
    first, torn, event, third = path.read_bytes().splitlines()
    assert torn == encode_record(step(2))[: len(torn)]
    assert [json.loads(line)["kind"] for line in (first, event, third)] == ["step", "event", "step"]


def test_what_somebody_else_appended_meanwhile_is_not_cut_off_with_half_a_line(
    path: Path, disk: Disk, log: RunLogWriter
) -> None:
    disk.takes_half(then=b'\n{"kind":"foreign"}\n')
    assert not log.write(step(1))
    assert b'\n{"kind":"foreign"}\n' in path.read_bytes()


def test_a_lost_folder_costs_records_until_it_is_back(path: Path, disk: Disk, log: Any) -> None:
    shutil.rmtree(path.parent)
    path.parent.write_text("a file where the folder was")
    assert not log.write(step(1))
    path.parent.unlink()
    disk.now += 1
    assert log.write(step(2))
    assert lost(path) == 1


def test_a_run_record_is_owed_and_not_lost(path: Path, disk: Disk, log: RunLogWriter) -> None:
    path.write_bytes(encode_record(step(1)))
    disk.fails("write", errno.ENOSPC)
    assert not log.write(RUN)
    assert not log.write(step(2))
    disk.recovers()
    log.write(step(3))
    assert [r["kind"] for r in records(path)] == ["step", "run", "event", "step"]
    assert lost(path) == 1


def test_closing_says_what_is_lost_in_the_log_or_in_a_warning(
    path: Path, disk: Disk, log: RunLogWriter, caplog: pytest.LogCaptureFixture
) -> None:
    disk.fails("write", errno.ENOSPC)
    log.write(step(1))
    log.close()
    assert "1 records are lost" in caplog.messages[-1]
    disk.recovers()
    log.close()
    assert lost(path) == 1


def test_a_sync_or_close_that_fails_is_a_warning(
    path: Path, disk: Disk, log: RunLogWriter, caplog: pytest.LogCaptureFixture
) -> None:
    log.write(step(1))
    disk.fails("fsync", errno.EIO)
    assert not log.sync()
    log.close()
    assert len(caplog.messages) == 1
    assert log.write(step(2))
    assert [r["step"] for r in records(path)] == [1, 2]
