"""Any step of a pipe that the spool still holds can be looked at again, and no other one."""

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.runlog import PipedLog, RunFile, Spool
from microscope_tui.watch import RunWatch, kept_steps, pin_at, samples
from tests.conftest import open_log

LIMIT = 120_000


@pytest.fixture(params=["collapse", "resume-bias-reset"])
def log(scenario: Any, request: pytest.FixtureRequest) -> Path:
    return scenario(request.param, routers=3, steps=400) / "metrics.jsonl"  # type: ignore[no-any-return]


def piped(log: Path, spool: Spool | None) -> RunWatch:
    pipe = PipedLog(os.open(log, os.O_RDONLY), "standard input", spool=spool)
    watch = RunWatch(RunFile("standard input", pipe.path, 0.0), source=pipe)
    until = time.monotonic() + 30
    while not pipe.ended:
        assert time.monotonic() < until
        watch.advance()
    watch.read_all()
    return watch


def counts_at(watch: RunWatch, step: int) -> tuple[int, Any]:
    pin = pin_at(watch, step)
    return pin.step, pin.with_counts.matrices().tokens_per_expert


def test_every_step_of_a_pipe_is_the_one_of_the_file(log: Path) -> None:
    watch, file = piped(log, Spool()), open_log(log)
    assert kept_steps(watch) == kept_steps(file) == (1, 400)
    for step in range(1, 401, 7):
        assert counts_at(watch, step) == counts_at(file, step)
    assert samples(watch, 1, 20) == samples(file, 1, 20)


def test_steps_that_gave_way_show_the_first_that_is_kept(log: Path) -> None:
    watch, file = piped(log, Spool(LIMIT)), open_log(log)
    kept = kept_steps(watch)
    first, last = kept
    assert 1 < first < 380
    assert last == 400
    for step in (1, first - 1, first, first + 1, 390):
        assert counts_at(watch, step) == counts_at(file, max(step, first))
    found = samples(watch, 1, 20)
    assert found
    assert all(sample.step >= first for sample in found)


def test_steps_after_a_full_disk_show_the_last_that_is_kept(log: Path, monkeypatch: Any) -> None:
    write = os.pwrite

    def full(file: int, data: bytes, offset: int) -> int:
        if offset + len(data) > LIMIT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    monkeypatch.setattr("microscope_tui.runlog.piped._PIECE_BYTES", 4096)
    watch, file = piped(log, Spool()), open_log(log)
    assert watch.source.spool.problem == "No space left on device"
    assert watch.latest.record.step == 400  # what came later was read as well
    kept = kept_steps(watch)
    assert kept[0] == 1
    assert 20 < kept[1] < 390
    for step in (1, kept[1] - 1, kept[1], kept[1] + 1, 399):
        assert counts_at(watch, step) == counts_at(file, min(step, kept[1]))
    assert counts_at(watch, 400) == counts_at(file, 400)


def test_without_a_spool_only_the_newest_step_can_be_shown(log: Path) -> None:
    watch = piped(log, None)
    assert kept_steps(watch) is None
    assert pin_at(watch, 10) is None
    assert counts_at(watch, 400)[0] == 400
