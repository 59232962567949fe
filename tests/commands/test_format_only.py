"""``check --format-only`` as a program: exit codes, folders, archives, pipes."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.fixture
def sound(scenario: Any) -> Path:
    return scenario("healthy", routers=3, steps=60)  # type: ignore[no-any-return]


@pytest.fixture
def broken(write_log: Any, make_header: Any, make_step: Any, balanced: Any) -> Path:
    """A log whose third step counts every pair of its first router twice, and a torn line."""
    steps = [make_step(n, [balanced()] * 3, 2048) for n in range(1, 6)]
    steps[2]["tokens_per_expert"][0] = [2 * n for n in steps[2]["tokens_per_expert"][0]]
    return write_log([make_header(), *steps, b'{"kind": "step", "step": 6,'], name="broken")  # type: ignore[no-any-return]


def test_a_sound_log_exits_with_zero_in_one_line(microscope: Run, sound: Path) -> None:
    for path in (sound, sound / "metrics.jsonl"):
        done = microscope("check", "--format-only", path)
        assert (done.returncode, done.stderr) == (0, "")
        assert "1 run record, 60 steps" in done.stdout
        assert done.stdout.endswith("no problems\n")
        assert done.stdout.count("\n") == 1


def test_every_error_names_file_line_reason_and_what_to_do(microscope: Run, broken: Path) -> None:
    done = microscope("check", "--format-only", broken)
    assert done.returncode == 3
    assert f"{broken}:4: error: tokens_per_expert[0] sums to 8192, expected" in done.stdout
    assert f"{broken}:7: error: not JSON" in done.stdout
    assert "count every selected pair once" in done.stdout


def test_a_folder_means_its_newest_log_and_all_means_every_log_and_the_worst_code(
    microscope: Run, sound: Path, broken: Path, tmp_path: Path
) -> None:
    os.utime(sound / "metrics.jsonl", (2000, 2000))
    os.utime(broken, (1000, 1000))
    newest = microscope("check", "--format-only", tmp_path)
    every = microscope("check", "--format-only", tmp_path, "--all")
    assert newest.returncode == 0
    assert "broken" not in newest.stdout
    assert every.returncode == 3
    assert "broken/metrics.jsonl: 7 lines" in every.stdout
    assert "healthy-0/metrics.jsonl: " in every.stdout


def test_the_json_report_is_one_object_and_a_list_with_all(
    microscope: Run, sound: Path, broken: Path, tmp_path: Path
) -> None:
    os.utime(broken, (3e9, 3e9))
    one = json.loads(microscope("check", "--format-only", tmp_path, "--json").stdout)
    every = json.loads(microscope("check", "--format-only", tmp_path, "--json", "--all").stdout)
    assert (one["schema_version"], one["exit_code"]) == (1, 3)
    assert {"line": 4, "severity": "error"}.items() <= one["problems"][0].items()
    assert [report["exit_code"] for report in every] == [3, 0]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_an_archive_is_checked_like_its_log(microscope: Run, sound: Path, suffix: str) -> None:
    if suffix == ".zst":
        zstd = pytest.importorskip("backports.zstd")
        pack = zstd.compress
    else:
        pack = gzip.compress
    log = sound / "metrics.jsonl"
    packed = log.with_name(log.name + suffix)
    packed.write_bytes(pack(log.read_bytes()))
    plain = microscope("check", "--format-only", log)
    done = microscope("check", "--format-only", packed)
    assert done.returncode == 0
    assert done.stdout == plain.stdout.replace(str(log), str(packed))


def test_a_pipe_is_checked_under_the_name_of_the_standard_input(
    microscope: Run, broken: Path
) -> None:
    done = microscope("check", "--format-only", "-", given=broken.read_bytes())
    assert done.returncode == 3
    assert "standard input:4: error: tokens_per_expert[0] sums to 8192" in done.stdout
    assert microscope("check", "--format-only", "-").returncode == 3  # nothing is no log


def test_what_is_not_there_exits_with_three_and_one_line(microscope: Run, tmp_path: Path) -> None:
    for path, words in (("missing", "No such file"), (".", "contains no *.jsonl")):
        done = microscope("check", "--format-only", tmp_path / path)
        assert done.returncode == 3
        assert words in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "option",
    [
        *(["--ignore", "DEAD"], ["--since-step", "5"], ["--fail-on", "crit"], ["--follow"]),
        *(["--profile", "eval"], ["--baseline", "."], ["--config", "x.toml"]),
    ],
)
def test_options_that_judge_a_run_do_not_go_with_it(
    microscope: Run, sound: Path, option: list[str]
) -> None:
    done = microscope("check", sound, "--format-only", *option)
    assert done.returncode == 64
    assert f"--format-only does not judge runs: remove {option[0]} out" in done.stderr
