"""What other tools wrote is found where a user would point, and nothing else is opened."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from microscope_tui import sources
from microscope_tui.runlog import NoRuns
from microscope_tui.sources import catalogue, reader
from microscope_tui.watch import RunState, RunWatch
from tests.conftest import header, step
from tests.sources import event_bytes, gguf_bytes, sound

WANDB, IMATRIX = sound.GOLDEN / "wandb", sound.GOLDEN / "imatrix.gguf"


def kinds(root: Path, **asked: Any) -> list[str]:
    runs = sources.Search(root, sources.SourceRequest(**asked)).runs()
    return sorted(
        run.form.name if isinstance(run, sources.ForeignRun) else "run log" for run in runs
    )


@pytest.fixture
def mixed(tmp_path: Path, write_log: Any) -> Path:
    write_log([header(), step(1, [[512] * 8] * 3, 2048)], "logs/mine")
    for name in ("wandb/run-1/run-a.wandb", "calibration/imatrix.gguf", "other/notes.gguf"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        shutil.copy(WANDB if name.endswith(".wandb") else IMATRIX, path)
    return tmp_path


def test_a_folder_with_a_run_log_is_that_run(mixed: Path) -> None:
    shutil.copy(WANDB, mixed / "logs/mine/run-b.wandb")
    assert kinds(mixed / "logs") == ["run log"]
    assert kinds(mixed / "logs", source="wandb") == ["wandb"]


def test_a_named_run_is_not_exchanged_for_what_lies_below_it(mixed: Path, write_log: Any) -> None:
    newer = write_log([header(), step(1, [[512] * 8] * 3, 2048)], "logs/mine/eval")
    shutil.copy(WANDB, newer.with_name("run-b.wandb"))
    mine = mixed / "logs/mine"
    assert [run.path.parent for run in sources.Search(mine).runs()] == [mine]
    assert kinds(mine, source="wandb") == ["wandb"]
    rows = "".join(f'{{"step": {at}, "max_vio/max": 0.5}}\n' for at in range(3))
    (mine / "metrics.jsonl").write_text(rows)  # the log of another tool is that run as well
    assert kinds(mine) == ["jsonl"]
    (mine / "metrics.jsonl").write_text(rows.replace("max_vio", "reward"))
    assert kinds(mine) == ["run log"]
    (mine / "metrics.jsonl").write_text("")
    assert kinds(mine) == []


def test_a_folder_lists_the_runs_of_every_writer_and_follows_only_named_links(mixed: Path) -> None:
    link = mixed / "latest-run"
    link.symlink_to(mixed / "wandb" / "run-1")
    assert kinds(mixed) == ["imatrix", "run log", "wandb"]
    assert kinds(link) == ["wandb"]


def test_a_table_that_cannot_be_read_is_a_run_whose_error_is_the_reason(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,a\n1,2\n")
    for path in (tmp_path, tmp_path / "metrics.csv"):
        watch = RunWatch(*sources.Search(path).runs())
        watch.read_all()
        assert "no column for the step: one of step, _step" in str(watch.error)
        assert watch.state()[0] is RunState.ERROR


def test_a_file_of_no_known_kind_lists_what_was_tried(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello\n")
    with pytest.raises(NoRuns, match=r"is not a run log .*wandb, tensorboard.*--source.*--map"):
        sources.Search(tmp_path / "notes.txt").runs()


def test_a_search_opens_only_what_has_changed(mixed: Path, monkeypatch: Any) -> None:
    search, opened = sources.Search(mixed), []
    assert len(search.runs()) == 3
    files_of = reader.files_of
    monkeypatch.setattr(
        reader, "files_of", lambda path, *rest: opened.append(path) or files_of(path, *rest)
    )
    assert len(search.runs()) == 3
    assert opened == []
    with (mixed / "wandb/run-1/run-a.wandb").open("ab") as file:
        file.write(b"\0")
    search.runs()
    assert [path.name for path in opened] == ["run-a.wandb"]


def test_a_run_in_a_file_is_named_after_a_hash(tmp_path: Path) -> None:
    (tmp_path / "x.db").touch()
    (tmp_path / "a#b.jsonl").touch()
    assert sources.split_run(tmp_path / "x.db#first run") == (tmp_path / "x.db", "first run")
    assert sources.split_run(tmp_path / "a#b.jsonl") == (tmp_path / "a#b.jsonl", "")
    assert sources.split_run(tmp_path / "missing#run") == (tmp_path / "missing#run", "")


def test_the_refusal_of_an_mlflow_folder_names_the_way_out(tmp_path: Path) -> None:
    run = tmp_path / "mlruns" / "0" / "abc"
    (run / "metrics").mkdir(parents=True)
    (run / "meta.yaml").touch()
    for place in (tmp_path, tmp_path / "mlruns", run):
        with pytest.raises(NoRuns, match=r"MLflow's folders .*mlflow migrate-filestore"):
            sources.Search(place).runs()
    shutil.copy(WANDB, tmp_path / "run-a.wandb")
    assert kinds(tmp_path) == ["wandb"]


@pytest.mark.parametrize(
    ("name", "formats"),
    [
        ("run-asvs0d1j.wandb.synced", []),
        ("events.out.tfevents.1795711952.host.42.0.v2", ["tensorboard"]),
        ("moe.db", ["trackio"]),
        ("mlflow.db", ["trackio", "mlflow"]),
        ("mlruns.sqlite", ["mlflow"]),
        ("router_trace_rank12.jsonl", ["megatron"]),
        ("wandb-history.jsonl", ["jsonl"]),
        ("notes.jsonl", []),
        ("log.tsv", ["csv"]),
        ("expert_distribution_recorder_1751349033.8436363_12.pt", ["sglang"]),
        ("model.pt", []),
        ("meta_info.json", ["tensorrt-llm"]),
        ("rank12_raw.safetensors", ["tensorrt-llm"]),
        ("m-IMatrix_unsloth.gguf", ["imatrix"]),
        ("model.gguf", []),
    ],
)
def test_files_in_a_folder_are_opened_by_names_of_writers(name: str, formats: list[str]) -> None:
    path = Path("runs", name)
    assert [form.name for form in sources.FORMATS.values() if form.place_of(path)] == formats
    assert bool(catalogue._file_names().fullmatch(name)) == bool(formats)


FOREIGN = {
    "empty": b"",
    "picture": b"\x89PNG\r\n\x1a\n",
    "not UTF-8": b"\xff\xfe{}\n",
    "array": b"[1, 2]",
    "array without loads": b'[{"step": 1}]',
    "rows without routers": b'{"step": 1, "loss": 2.0}\n' * 3,
    "routers without a step": b'{"moe_entropy/L-0": 2.0}\n',
    "table without routers": b"step,loss\n1,2\n",
    "torn table": b"step",
    "torn header of W&B": b":W&B",
    "TFRecords of something else": event_bytes.record(b"\x0a\x03abc"),
    "model of llama.cpp": gguf_bytes.file_of(
        gguf_bytes.value("quantize.imatrix.dataset", 8, gguf_bytes.text("a"))
    )
    + b"quantize.imatrix.chunks_count",
    "torn GGUF": b"GGUF",
    "model of torch": sound.saved({"model": torch.zeros(3)}),
    "weights": safetensors.torch.save({"w": torch.ones(2)}),
    "database": sound.database("trackio.sql", ("DROP TABLE metrics", ())),
    "database with other metrics": sound.database(
        "trackio.sql", ("DROP TABLE metrics", ()), ("CREATE TABLE metrics (id, value)", ())
    ),
}


@pytest.mark.parametrize("foreign", FOREIGN)
def test_what_holds_no_router_is_recognised_by_no_format(foreign: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(FOREIGN[foreign])
    assert [name for name, form in sources.FORMATS.items() if form.reader.recognises(path)] == []
