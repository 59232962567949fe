"""``snapshot --step N``: any moment of the past as text."""

import gzip
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.fixture
def collapsed(scenario: Any) -> Path:
    return scenario("collapse", routers=3, steps=450)  # type: ignore[no-any-return]


def shown(text: str) -> int:
    """The step in the header of a snapshot."""
    found = re.search(r"step ([\d,]+)", text.splitlines()[0])
    assert found
    return int(found[1].replace(",", ""))


@pytest.mark.parametrize("step", [1, 77, 449, 450])
def test_the_asked_step_is_shown_and_nothing_is_said(
    microscope: Run, collapsed: Path, step: int
) -> None:
    done = microscope("snapshot", collapsed, "--step", step)
    assert (done.returncode, done.stderr) == (0, "")
    assert shown(done.stdout) == step
    assert f"{step} then" in done.stdout


def test_before_the_onset_there_is_no_alert_and_after_it_there_is(
    microscope: Run, collapsed: Path
) -> None:
    before = microscope("snapshot", collapsed, "--step", 140).stdout
    after = microscope("snapshot", collapsed, "--step", 300).stdout
    assert "CRITICAL" not in before
    assert "Router collapse in L3" in after


def test_a_step_behind_the_newest_shows_the_newest_and_says_so(
    microscope: Run, collapsed: Path
) -> None:
    done = microscope("snapshot", collapsed, "--step", 9999)
    assert done.returncode == 0
    assert shown(done.stdout) == 450
    assert "--step 9999: not in the log, the newest is 450" in done.stderr


def test_a_step_that_was_not_logged_shows_the_one_before_and_says_so(
    microscope: Run, write_log: Any, make_header: Any, make_step: Any, balanced: Any
) -> None:
    steps = [make_step(n, [balanced()] * 3, 2048) for n in range(10, 210, 10)]
    log = write_log([make_header(), *steps])
    done = microscope("snapshot", log, "--step", 77)
    assert shown(done.stdout) == 70
    assert "--step 77: not in the log, showing 70" in done.stderr
    assert shown(microscope("snapshot", log, "--step", 3).stdout) == 10


@pytest.mark.parametrize("step", ["0", "-3", "many", ""])
def test_what_is_no_step_is_a_usage_error(microscope: Run, collapsed: Path, step: str) -> None:
    done = microscope("snapshot", collapsed, "--step", step)
    assert done.returncode == 64
    assert done.stdout == ""
    assert "--step" in done.stderr


def test_a_run_without_a_step_exits_with_three(
    microscope: Run, write_log: Any, make_header: Any
) -> None:
    done = microscope("snapshot", write_log([make_header()]), "--step", 1)
    assert done.returncode == 3
    assert "no step in" in done.stderr


def test_what_cannot_be_read_twice_says_why_and_still_shows_its_last_step(
    microscope: Run, collapsed: Path
) -> None:
    log = (collapsed / "metrics.jsonl").read_bytes()
    packed = collapsed / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(log))
    archive = microscope("snapshot", packed, "--step", 100)
    pipe = microscope("snapshot", "-", "--step", 100, given=log)
    assert (archive.returncode, pipe.returncode) == (3, 3)
    assert "decompress it" in archive.stderr
    assert "a pipe cannot be read twice" in pipe.stderr
    assert shown(microscope("snapshot", packed, "--step", 450).stdout) == 450


def test_the_picture_goes_to_a_file_and_a_narrow_one_keeps_its_width(
    microscope: Run, collapsed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "picture.txt"
    arguments = ("--step", 300, "--size", "60x20", "-o", out, "--glyphs", "ascii")
    done = microscope("snapshot", collapsed, *arguments)
    assert (done.returncode, done.stdout) == (0, "")
    lines = out.read_text().splitlines()
    assert max(map(len, lines)) <= 60
    assert shown("\n".join(lines)) == 300
