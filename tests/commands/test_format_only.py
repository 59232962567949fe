"""``check --format-only``: exit codes, folders, archives, pipes."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Call, header, step


@pytest.fixture
def sound(scenario: Any) -> Path:
    return scenario("healthy", routers=3, steps=60)  # type: ignore[no-any-return]


@pytest.fixture
def broken(write_log: Any, balanced: Any) -> Path:
    """A log whose third step counts every pair of its first router twice, and a torn line."""
    steps = [step(n, [balanced()] * 3, 2048) for n in range(1, 6)]
    steps[2]["tokens_per_expert"][0] = [2 * n for n in steps[2]["tokens_per_expert"][0]]
    return write_log([header(), *steps, b'{"kind": "step", "step": 6,'], name="broken")  # type: ignore[no-any-return]


def test_a_sound_log_exits_with_zero_in_one_line(call: Call, sound: Path) -> None:
    for path in (sound, sound / "metrics.jsonl"):
        code, out, err = call("check", "--format-only", path)
        assert (code, err) == (0, "")
        assert "1 run record, 60 steps" in out
        assert out.endswith("no problems\n")
        assert out.count("\n") == 1


def test_a_folder_means_its_newest_log_and_all_means_every_log_and_the_worst_code(
    call: Call, sound: Path, broken: Path, tmp_path: Path
) -> None:
    os.utime(sound / "metrics.jsonl", (2000, 2000))
    os.utime(broken, (1000, 1000))
    code, out, _ = call("check", "--format-only", tmp_path)
    assert code == 0
    assert "broken" not in out
    code, out, _ = call("check", "--format-only", tmp_path, "--all")
    assert code == 3
    assert "broken/metrics.jsonl: 7 lines" in out
    assert "healthy-0/metrics.jsonl: " in out
    one = json.loads(call("check", "--format-only", broken, "--json")[1])
    every = json.loads(call("check", "--format-only", tmp_path, "--json", "--all")[1])
    assert (one["schema_version"], one["exit_code"]) == (2, 3)
    assert {"line": 4, "code": "sum"}.items() <= one["problems"][0].items()
    assert [report["exit_code"] for report in every] == [0, 3]


def test_a_pipe_is_checked_as_the_standard_input(microscope: Any, broken: Path) -> None:
    done = microscope("check", "--format-only", "-", given=broken.read_bytes())
    assert done.returncode == 3
    assert "standard input:4: error: tokens_per_expert[0] sums to 8192" in done.stdout
    assert "= 4096: 2 times as many, count every selected pair once" in done.stdout
    assert microscope("check", "--format-only", "-").returncode == 3  # nothing is not a log
