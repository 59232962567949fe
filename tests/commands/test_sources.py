"""Files of other tools work wherever a path is asked for."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

Run = Callable[..., CompletedProcess[str]]
GOLDEN = Path(__file__).parents[1] / "sources" / "golden"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A run of W&B that is at rest."""
    path = tmp_path / "wandb" / "run-1" / "run-a.wandb"
    path.parent.mkdir(parents=True)
    shutil.copy(GOLDEN / "wandb", path)
    os.utime(path, (1e9, 1e9))
    return path


def test_a_source_and_the_run_log_imported_from_it_have_the_same_verdict(
    microscope: Run, source: Path, tmp_path: Path
) -> None:
    done = microscope("import", source, tmp_path / "logs")
    assert done.returncode == 0, done.stderr
    (log,) = (tmp_path / "logs").glob("*/metrics.jsonl")
    assert f"{log}: " in done.stdout
    reports = [json.loads(microscope("check", path, "--json").stdout) for path in (source, log)]
    for report in reports:
        for run in report["runs"]:
            del run["path"], run["run"], run["state"]
    assert reports[0] == reports[1]


def test_an_imported_log_is_sound(microscope: Run, source: Path, tmp_path: Path) -> None:
    microscope("import", source, tmp_path / "logs")
    done = microscope("check", tmp_path / "logs", "--format-only")
    assert done.returncode == 0, done.stdout


def test_an_imported_log_that_begins_at_step_0_is_sound(microscope: Run, tmp_path: Path) -> None:
    rows = [{"step": step, "max_vio/max": 0.5} for step in range(3)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert microscope("import", tmp_path / "train.jsonl", tmp_path / "logs").returncode == 0
    done = microscope("check", tmp_path / "logs", "--format-only")
    assert done.returncode == 0, done.stdout
    assert "3 steps" in done.stdout


def test_a_table_without_known_keys_says_how_to_add_them(microscope: Run, tmp_path: Path) -> None:
    table = tmp_path / "run.csv"
    table.write_text("step,load_0_0,load_0_1\n1,3,5\n2,4,4\n")
    guessed, named = microscope("check", table), microscope("check", table, "--source", "csv")
    assert guessed.returncode == named.returncode == 3
    assert "--map adds keys" in guessed.stderr
    assert "no reading of a router in it yet: --map adds keys" in named.stdout


def test_an_existing_run_is_never_overwritten(
    microscope: Run, source: Path, tmp_path: Path
) -> None:
    assert microscope("import", source, tmp_path / "logs").returncode == 0
    done = microscope("import", source, tmp_path / "logs")
    assert done.returncode == 64
    assert "exists already" in done.stderr


def test_a_run_log_is_not_imported(microscope: Run, tmp_path: Path, source: Path) -> None:
    microscope("import", source, tmp_path / "logs")
    done = microscope("import", tmp_path / "logs", tmp_path / "more")
    assert done.returncode == 64
    assert "holds run logs already" in done.stderr


def test_a_snapshot_shows_the_routers_of_a_source(microscope: Run, source: Path) -> None:
    done = microscope("snapshot", source.parent)
    assert done.returncode == 0
    assert "L1" in done.stdout


def test_the_sources_are_listed_as_text_and_as_data(microscope: Run) -> None:
    names = [row["source"] for row in json.loads(microscope("sources", "--json").stdout)]
    text = microscope("sources").stdout
    assert {"wandb", "tensorboard", "sglang", "megatron", "imatrix"} <= set(names)
    assert all(f"\n{name} " in f"\n{text}" for name in names)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--source", "excel"), "no such format"),
        (("--map", "share"), "write QUANTITY=REGEX"),
        (("--top-k", "0"), "from 1 up"),
    ],
)
def test_an_option_that_makes_no_sense_is_a_usage_error(
    microscope: Run, source: Path, arguments: tuple[str, ...], why: str
) -> None:
    done = microscope("check", source, *arguments)
    assert done.returncode == 64
    assert why in done.stderr


def test_a_file_of_no_known_kind_exits_with_3(microscope: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello\n")
    done = microscope("check", tmp_path / "notes.txt")
    assert done.returncode == 3
    assert "--source" in done.stderr


def test_coverage_reads_the_counts_of_an_importance_matrix(microscope: Run, tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    shutil.copy(GOLDEN / "imatrix.gguf", path)
    os.utime(path, (1e9, 1e9))
    done = microscope("coverage", path, "--json")
    assert done.returncode == 1  # a calibration of 192 tokens covers nothing
    for layer in json.loads(done.stdout)["layers"]:
        assert sum(expert["tokens"] for expert in layer["experts"]) == 192 * layer["top_k"]
        assert all(expert["tokens"] < 1000 for expert in layer["experts"])
