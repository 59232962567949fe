"""W&B and Trackio themselves write lists, histograms and tables of the chosen experts."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microscope_tui.sources import Keys, RowRecords, SourceRequest, TrackioReader, WandbReader
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
    run = start(folder, {})
    for step, ids in enumerate(steps, 1):
        run.log(dict(form(module, ids)), step=step)
    run.finish()
    read_to_the_end(WandbReader(file_of(folder), Keys()))
    return RowRecords(WandbReader(settle(file_of(folder)), Keys()), "r", "wandb", SourceRequest())


def trackio(folder: Path, form: Form, steps: Sequence[Ids]) -> RowRecords:
    module = pytest.importorskip("trackio")
    rows = [{k: as_stored(value) for k, value in form(module, ids).items()} for ids in steps]
    numbers = [*range(1, len(rows) + 1)]
    trackio_storage(folder).bulk_log("moe", "run", rows, steps=numbers, run_id="r")
    (path,) = folder.rglob("moe.db")
    return RowRecords(TrackioReader(settle(path), Keys(), "run"), "r", "trackio", SourceRequest())


def as_stored(value: Any) -> Any:
    """What ``trackio.log`` stores of an object."""
    if type(value).__name__ == "Table":
        return value._to_dict(project="moe", run="run", step=0)
    return value._to_dict() if hasattr(value, "_to_dict") else value


def lists(_: Any, ids: Ids) -> dict[str, Any]:
    counts = (np.bincount(row, minlength=E).tolist() for row in ids)
    return {f"moe/load/layer_{n}": row for n, row in enumerate(counts)}


def histograms(module: Any, ids: Ids, edges: np.ndarray | None = None) -> dict[str, Any]:
    """Of given edges, else over the range of the ids."""
    options = [
        {"sequence": row, "num_bins": E}
        if edges is None
        else {"np_histogram": np.histogram(row, edges)}
        for row in ids
    ]
    return {f"moe/load/layer_{n}": module.Histogram(**one) for n, one in enumerate(options)}


def table(module: Any, ids: Ids) -> dict[str, Any]:
    rows = lists(module, ids).values()
    cells = [[layer, e, n] for layer, row in enumerate(rows) for e, n in enumerate(row)]
    frame = pytest.importorskip("pandas").DataFrame(cells, columns=["layer", "expert", "tokens"])
    return {"moe/routing": module.Table(dataframe=frame)}


def proving_nothing(module: Any, ids: Ids) -> dict[str, Any]:
    """wandb itself replaces the array by a histogram."""
    found = {
        "moe/ids": module.Histogram(ids[1]),
        "moe/loads": module.Histogram(np.bincount(ids[1])),
    }
    return found | ({"moe/frac": np.random.rand(E)} if module.__name__ == "wandb" else {})


@pytest.mark.parametrize("write", [wandb, trackio])
@pytest.mark.parametrize(
    ("form", "dead"),
    [
        (lists, 2),
        (table, 2),
        (histograms, 0),
        *((partial(histograms, edges=np.arange(E + 1) - offset), 2) for offset in (0, 0.5)),
    ],
)
def test_what_the_logger_writes_are_the_counts(
    write: Any, form: Form, dead: int, tmp_path: Path
) -> None:
    steps, counts = chosen(E, dead)
    assert counts_of(drained(write(tmp_path, form, steps))) == counts


@pytest.mark.parametrize("write", [wandb, trackio])
def test_shifted_ids_and_histograms_of_values_are_refused(write: Any, tmp_path: Path) -> None:
    reader = write(tmp_path, proving_nothing, chosen(E, 1)[0])
    assert {record["kind"] for record in drained(reader)} <= {"event"}
    assert "moe/ids: histogram of 64 bins from 1 to 62, not one for each expert" in reader.missing
    for key, bins in ({"moe/loads": 64} | ({"moe/frac": 32} if write is wandb else {})).items():
        assert (
            f"{key}: histogram of {bins} bins of values, not counts: log a list" in reader.missing
        )
