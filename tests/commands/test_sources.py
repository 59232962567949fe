"""Files of other tools work wherever a command takes a path."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

Call = Callable[..., tuple[int, str, str]]
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
    call: Call, source: Path, tmp_path: Path
) -> None:
    code, out, err = call("import", source, tmp_path / "logs")
    assert code == 0, err
    (log,) = (tmp_path / "logs").glob("*/metrics.jsonl")
    assert f"{log}: " in out
    reports = [json.loads(call("check", path, "--json")[1]) for path in (source, log)]
    for report in reports:
        for run in report["runs"]:
            del run["path"], run["run"], run["state"]
    assert reports[0] == reports[1]
    code, out, _ = call("check", tmp_path / "logs", "--format-only")
    assert code == 0, out
    code, _, err = call("import", source, tmp_path / "logs")
    assert code == 64
    assert "exists already" in err


def test_an_imported_log_that_begins_at_step_0_is_sound(call: Call, tmp_path: Path) -> None:
    rows = [{"step": step, "max_vio/max": 0.5} for step in range(3)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert call("import", tmp_path / "train.jsonl", tmp_path / "logs")[0] == 0
    code, out, _ = call("check", tmp_path / "logs", "--format-only")
    assert code == 0, out
    assert "3 steps" in out


def test_a_table_without_known_keys_says_how_to_add_them(call: Call, tmp_path: Path) -> None:
    table = tmp_path / "run.csv"
    table.write_text("step,load_0_0,load_0_1\n1,3,5\n2,4,4\n")
    code, _, err = call("check", table)
    assert code == 3
    assert "--map adds keys" in err
    code, out, _ = call("check", table, "--source", "csv")
    assert code == 3
    assert "no reading of a router in it yet: --map adds keys" in out
    code, _, err = call("import", table, tmp_path / "logs", "--source", "csv")
    assert code == 3
    assert "holds no reading of a router; --map names the keys to use" in err


def test_the_sources_are_listed_as_text_and_as_data(call: Call) -> None:
    names = [row["source"] for row in json.loads(call("sources", "--json")[1])]
    text = call("sources")[1]
    assert {"wandb", "tensorboard", "sglang", "megatron", "imatrix"} <= set(names)
    assert all(f"\n{name} " in f"\n{text}" for name in names)


def test_coverage_reads_the_counts_of_an_importance_matrix(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    shutil.copy(GOLDEN / "imatrix.gguf", path)
    os.utime(path, (1e9, 1e9))
    code, out, _ = call("coverage", path, "--json")
    assert code == 1  # a calibration of 192 tokens covers nothing
    for layer in json.loads(out)["layers"]:
        assert sum(expert["tokens"] for expert in layer["experts"]) == 192 * layer["top_k"]
        assert all(expert["tokens"] < 1000 for expert in layer["experts"])
