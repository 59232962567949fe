"""W&B and Trackio themselves write lists and histograms of the chosen experts."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microscope_tui.sources import Keys, SourceRequest
from microscope_tui.sources.databases import TrackioReader
from microscope_tui.sources.row_records import RowRecords
from microscope_tui.sources.wandb import WandbReader
from tests.peers.test_databases import _alone, trackio_storage
from tests.peers.test_wandb import file_of, read_to_the_end, start
from tests.sources.reading import counts_of, drained, settle
from tests.sources.truth import chosen

alone = pytest.fixture(autouse=True)(_alone.__wrapped__)
E = 64
Ids = Sequence[np.ndarray]
"""The experts that the tokens of a step chose, layer by layer."""
Form = Callable[[Any, Ids], Mapping[str, Any]]


def wandb(folder: Path, form: Form, steps: Sequence[Ids]) -> RowRecords:
    module = pytest.importorskip("wandb")
    run = start(folder, {"num_experts": E})
    for step, ids in enumerate(steps, 1):
        run.log(dict(form(module, ids)), step=step)
    run.finish()
    read_to_the_end(WandbReader(file_of(folder), Keys()))
    return RowRecords(WandbReader(settle(file_of(folder)), Keys()), "r", "wandb", SourceRequest())


def trackio(folder: Path, form: Form, steps: Sequence[Ids]) -> RowRecords:
    module = pytest.importorskip("trackio")
    rows = [{k: as_stored(value) for k, value in form(module, ids).items()} for ids in steps]
    numbers = [*range(1, len(rows) + 1)]
    config = {"num_experts": E}
    storage = trackio_storage(folder)
    storage.bulk_log("moe", "run", rows, steps=numbers, run_id="r", config=config)
    (path,) = folder.rglob("moe.db")
    return RowRecords(TrackioReader(settle(path), Keys(), "run"), "r", "trackio", SourceRequest())


def as_stored(value: Any) -> Any:
    """What ``trackio.log`` stores of an object."""
    return value._to_dict() if hasattr(value, "_to_dict") else value


def lists(_: Any, ids: Ids) -> dict[str, Any]:
    counts = (np.bincount(row, minlength=E).tolist() for row in ids)
    return {f"moe/load/layer_{n}": row for n, row in enumerate(counts)}


def histograms(module: Any, ids: Ids) -> dict[str, Any]:
    made = (np.histogram(row, np.arange(E + 1) - 0.5) for row in ids)
    return {f"moe/load/layer_{n}": module.Histogram(np_histogram=one) for n, one in enumerate(made)}


@pytest.mark.parametrize("write", [wandb, trackio])
@pytest.mark.parametrize("form", [lists, histograms])
def test_what_the_logger_writes_are_the_counts(write: Any, form: Form, tmp_path: Path) -> None:
    steps, counts = chosen(E, 2)
    assert counts_of(drained(write(tmp_path, form, steps))) == counts


def test_values_that_the_logger_puts_in_bins_are_refused(tmp_path: Path) -> None:
    """wandb replaces a longer array by a histogram, unasked."""
    reader = wandb(tmp_path, lambda _, ids: {"moe/frac": ids[0][:E] / E}, chosen(E, 2)[0])
    assert {record["kind"] for record in drained(reader)} <= {"event"}
    assert "moe/frac: a histogram is not read, log the counts as a list" in reader.missing
