"""W&B and Trackio themselves write lists, histograms and tables of the chosen experts."""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microscope_tui.sources import Keys, RowRecords, SourceRequest, TrackioReader, WandbReader
from tests.peers.test_databases import _alone, trackio_storage
from tests.peers.test_wandb import file_of, read_to_the_end, start
from tests.sources.reading import Steps, counts_of, drained, settle

alone = pytest.fixture(autouse=True)(_alone.__wrapped__)
Write = Callable[[Path, Callable[[Any], list[Mapping[str, Any]]]], RowRecords]


def choices(experts: int, dead: int) -> list[list[np.ndarray]]:
    """Four steps of two layers; as many experts as ``dead`` are never chosen at both ends."""
    draw = np.random.default_rng(experts)
    ends = [dead, experts - 1 - dead]
    middle = draw.integers(dead, experts - dead, (4, 2, 40 * experts))
    return [[np.concatenate([ends, of_layer]) for of_layer in step] for step in middle]


def wandb(folder: Path, rows_for: Callable[[Any], list[Mapping[str, Any]]]) -> RowRecords:
    module = pytest.importorskip("wandb")
    run = start(folder, {})
    for step, row in enumerate(rows_for(module), 1):
        run.log(dict(row), step=step)
    run.finish()
    read_to_the_end(WandbReader(file_of(folder), Keys()))
    return RowRecords(WandbReader(settle(file_of(folder)), Keys()), "r", "wandb", SourceRequest())


def trackio(folder: Path, rows_for: Callable[[Any], list[Mapping[str, Any]]]) -> RowRecords:
    module = pytest.importorskip("trackio")
    storage = trackio_storage(folder)
    steps = list(range(1, 5))
    rows = [{k: as_stored(value) for k, value in row.items()} for row in rows_for(module)]
    storage.bulk_log("moe", "run", rows, steps=steps, run_id="r")
    (path,) = folder.rglob("moe.db")
    return RowRecords(TrackioReader(settle(path), Keys(), "run"), "r", "trackio", SourceRequest())


def as_stored(value: Any) -> Any:
    """What ``trackio.log`` stores of an object."""
    if type(value).__name__ == "Table":
        return value._to_dict(project="moe", run="run", step=0)
    return value._to_dict() if hasattr(value, "_to_dict") else value


def table(module: Any, rows: list[list[int]]) -> Any:
    cells = [[layer, e, n] for layer, row in enumerate(rows) for e, n in enumerate(row)]
    frame: Any = importlib.import_module("pandas").DataFrame(cells)
    frame.columns = ["layer", "expert", "tokens"]
    return module.Table(dataframe=frame)


FORMS: dict[str, Callable[[Any, np.ndarray, int], Any]] = {
    "list": lambda _, ids, experts: np.bincount(ids, minlength=experts).tolist(),
    "whole edges": lambda module, ids, experts: module.Histogram(
        np_histogram=np.histogram(ids, np.arange(experts + 1))
    ),
    "half edges": lambda module, ids, experts: module.Histogram(
        np_histogram=np.histogram(ids, np.arange(experts + 1) - 0.5)
    ),
    "ids": lambda module, ids, experts: module.Histogram(ids, num_bins=experts),
}


@pytest.mark.parametrize("write", [wandb, trackio])
@pytest.mark.parametrize("experts", [16, 64, 256])
@pytest.mark.parametrize(
    ("form", "dead"), [*[(form, 0) for form in FORMS], *[(form, 2) for form in [*FORMS][:3]]]
)
def test_what_the_logger_writes_are_the_counts(
    write: Write, experts: int, form: str, dead: int, tmp_path: Path
) -> None:
    chosen = choices(experts, dead)
    made = FORMS[form]
    rows = write(
        tmp_path,
        lambda module: [
            {f"moe/load/layer_{n}": made(module, ids, experts) for n, ids in enumerate(step)}
            for step in chosen
        ],
    )
    assert counts_of(drained(rows)) == truth(chosen, experts)


def truth(chosen: list[list[np.ndarray]], experts: int) -> Steps:
    return {
        step: {f"L{n}": np.bincount(ids, minlength=experts).tolist() for n, ids in enumerate(rows)}
        for step, rows in enumerate(chosen, 1)
    }


@pytest.mark.parametrize("write", [wandb, trackio])
def test_a_table_of_layer_expert_and_tokens_are_the_counts(write: Write, tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    expected = truth(choices(64, 2), 64)
    rows = write(
        tmp_path,
        lambda module: [
            {"moe/routing": table(module, [row for row in step.values() if row])}
            for step in expected.values()
        ],
    )
    assert counts_of(drained(rows)) == expected


@pytest.mark.parametrize("write", [wandb, trackio])
def test_shifted_ids_and_histograms_of_loads_are_refused(write: Write, tmp_path: Path) -> None:
    def rows_for(module: Any) -> list[Mapping[str, Any]]:
        counts = [np.bincount(step[0], minlength=64) for step in choices(64, 0)]
        shifted = [module.Histogram(step[0]) for step in choices(64, 1)]
        loads = [module.Histogram(of_step) for of_step in counts]
        return [{"moe/ids": a, "moe/loads": b} for a, b in zip(shifted, loads, strict=True)]

    reader = write(tmp_path, rows_for)
    assert {record["kind"] for record in drained(reader)} <= {"event"}
    assert "moe/ids: histogram of 64 bins from 1 to 62, not one for each expert" in reader.missing
    assert "moe/loads: histogram of 64 bins of values, not counts: log a list" in reader.missing


def test_an_array_that_wandb_replaces_by_a_histogram_is_refused(tmp_path: Path) -> None:
    reader = wandb(tmp_path, lambda _: [{"router/3/frac": np.random.rand(64)}] * 4)
    assert {record["kind"] for record in drained(reader)} <= {"event"}
    why = "router/3/frac: histogram of 32 bins of values, not counts: log a list"
    assert why in reader.missing
