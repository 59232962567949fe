"""The writer: whole lines, torn tails repaired, and files that others move or replace."""

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from microscope_tui.runlog import RunLogWriter, encode_record
from tests.runlog.written import RUN, lost, records, run_python, step


def test_a_torn_last_line_is_cut_off_on_reopening(path: Path) -> None:
    path.write_bytes(b'{"kind":"run"}\n{"kind":"st')
    RunLogWriter(path).write({"kind": "step", "step": 1})
    assert records(path) == [{"kind": "run"}, {"kind": "step", "step": 1}]


def test_a_file_that_is_one_torn_line_becomes_empty(path: Path) -> None:
    path.write_bytes(b"x" * 200_000)
    RunLogWriter(path).close()
    assert path.read_bytes() == b""


def test_non_finite_numbers_are_written_as_names_never_as_bare_tokens() -> None:
    line = encode_record({"a": math.nan, "b": [0.5, math.inf], "c": {"d": -math.inf, "e": None}})
    assert line == b'{"a":"NaN","b":[0.5,"Infinity"],"c":{"d":"-Infinity","e":null}}\n'


def test_the_kernels_own_half_line_is_undone(path: Path) -> None:
    """A file size limit is the one disk that a test can fill for real."""
    done = run_python(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        log = RunLogWriter(path, clock=lambda: now)
        for now in range(100):
            log.write({"kind": "step", "step": now})
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        log.write({"kind": "event", "event": "end"})
        """,
        path,
    )
    assert "bytes fitted on the disk" in done.stderr
    written = [r for r in records(path) if r["kind"] == "step"]
    assert 0 < len(written) < 100
    assert len(written) + lost(path) == 100


@pytest.mark.parametrize(
    "change",
    [
        lambda path: shutil.rmtree(path.parent),
        lambda path: path.rename(path.with_suffix(".1")),
        lambda path: os.truncate(path, 0),
    ],
    ids=["folder removed", "rotated away", "emptied in place"],
)
def test_a_log_that_is_gone_is_made_again_and_starts_with_the_run_record(
    path: Path, change: Callable[[Path], object]
) -> None:
    log = RunLogWriter(path)
    log.write(RUN)
    log.write(step(1))
    change(path)
    assert log.write(step(2))
    assert records(path) == [RUN, step(2)]


def test_a_file_that_somebody_else_put_there_is_continued_and_never_cut(path: Path) -> None:
    log = RunLogWriter(path)
    log.write(RUN)
    path.unlink()
    path.write_bytes(b'{"kind":"foreign"}\n{"kind":"half')
    assert log.write(step(2))
    assert path.read_bytes() == b'{"kind":"foreign"}\n{"kind":"half\n' + encode_record(step(2))
