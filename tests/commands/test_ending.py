"""When a run that is followed is over: whether something may still come, and for how long."""

import gzip
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.commands.check.command import Ending
from microscope_tui.runlog import RunFile
from microscope_tui.watch import RunWatch
from tests.conftest import header, step


class Followed:
    """A log, its watch, its ending, and a clock that the test sets."""

    def __init__(self, log: Path, wait_s: float = 600) -> None:
        self.log, self.now = log, 1000.0
        self.watch = RunWatch(RunFile(log.parent.name, log, 0.0))
        self.ending = Ending(self.watch, wait_s, lambda: self.now)

    def append(self, *records: dict[str, Any]) -> None:
        with self.log.open("a") as file:
            file.write("".join(json.dumps(record) + "\n" for record in records))

    def is_over(self, after_s: float = 0) -> bool:
        self.now += after_s
        self.watch.read_all()
        return self.ending.is_over()

    def fall_silent(self) -> None:
        long_ago = time.time() - 3600
        os.utime(self.log, (long_ago, long_ago))
        self.watch.read_all()
        self.watch.source.changed_at = None


@pytest.fixture
def a_step(balanced: Any) -> Callable[[int], dict[str, Any]]:
    return lambda number: step(number, [balanced()] * 3, 2048)  # type: ignore[no-any-return]


@pytest.fixture
def log(write_log: Any, a_step: Any) -> Path:
    return write_log([header(), *map(a_step, range(1, 21))])  # type: ignore[no-any-return]


def end(reason: str, step: int = 20) -> dict[str, Any]:
    return {"kind": "event", "event": "end", "step": step, "reason": reason}


@pytest.mark.parametrize(
    ("reason", "wait_s"), [("finished", 600), ("failed", 600), ("collapse", 600), ("signal", 0)]
)
def test_a_run_that_wanted_to_end_is_not_waited_for_nor_any_with_wait_0(
    log: Path, capsys: pytest.CaptureFixture[str], reason: str, wait_s: float
) -> None:
    run = Followed(log, wait_s)
    run.append(end(reason))
    assert run.is_over()
    assert (run.ending.remark, capsys.readouterr().err) == ("", "")


@pytest.mark.parametrize(
    ("reason", "how"),
    [
        *(("signal", "has stopped"), ("preempted", "has stopped"), ("", "has stopped")),
        (None, "has been silent for long"),
    ],
)
def test_a_run_that_had_stopped_is_waited_for_with_one_message(
    log: Path, capsys: pytest.CaptureFixture[str], reason: str | None, how: str
) -> None:
    run = Followed(log)
    if reason is None:
        run.fall_silent()
    else:
        run.append(end(reason))
    assert not run.is_over()
    assert capsys.readouterr().err == (
        f"moe-microscope: {log}: {how}, waiting up to 600 s for it to resume (--wait 0 does not)\n"
    )
    assert not run.is_over(after_s=599)
    assert not run.ending.remark
    assert run.is_over(after_s=1)
    assert run.ending.remark == "waited 600 s; the run did not resume"
    assert capsys.readouterr().err == ""


def test_a_run_that_resumes_is_over_at_its_next_end_whatever_it_is(log: Path, a_step: Any) -> None:
    run = Followed(log)
    run.append(end("signal"))
    assert not run.is_over()
    run.append(header(resumed_at_step=21), a_step(21))
    assert not run.is_over(after_s=10_000)
    run.append(end("signal", 21))
    assert run.is_over()
    assert not run.ending.remark


def test_half_a_line_after_the_end_does_not_mean_that_the_run_resumed(log: Path) -> None:
    run = Followed(log)
    run.append(end("signal"))
    assert not run.is_over()
    with log.open("a") as file:
        file.write('{"kind": "run", "forma')
    assert not run.is_over()
    assert run.is_over(after_s=600)


def test_a_run_that_resumed_and_fell_silent_again_is_over(log: Path, a_step: Any) -> None:
    run = Followed(log)
    run.fall_silent()
    assert not run.is_over()
    run.append(a_step(21))
    assert not run.is_over()
    run.fall_silent()
    assert run.is_over()


def test_a_run_that_falls_silent_right_after_the_first_poll_gets_its_whole_wait(log: Path) -> None:
    run = Followed(log)
    assert not run.is_over()  # it lives
    run.fall_silent()
    assert not run.is_over(after_s=500)
    assert run.is_over(after_s=100)


def test_a_log_that_was_replaced_is_another_one(log: Path, write_log: Any, a_step: Any) -> None:
    run = Followed(log)
    run.append(end("signal"))
    assert not run.is_over()
    log.unlink()
    write_log([header(run="another"), *(a_step(n) for n in range(1, 5)), end("signal", 4)])
    assert run.is_over()


def test_a_log_that_is_deleted_gets_a_moment_to_come_back(log: Path, a_step: Any) -> None:
    followed = Followed(log)
    assert not followed.is_over()
    followed.append(a_step(21))
    content = log.read_bytes()
    log.unlink()
    assert not followed.is_over()
    assert not followed.is_over(after_s=4)
    log.write_bytes(content)
    assert not followed.is_over(after_s=10)
    log.unlink()
    assert not followed.is_over()
    assert followed.is_over(after_s=6)


def test_an_archive_is_over_at_once(log: Path) -> None:
    archive = log.with_name("metrics.jsonl.gz")
    archive.write_bytes(gzip.compress(log.read_bytes() + json.dumps(end("signal")).encode()))
    assert Followed(archive).is_over()
