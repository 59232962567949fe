"""The array of the older microscope: top-1 shares, written whole."""

import json
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.sources import FORMATS
from microscope_tui.sources.reader import Record, RecordReader, SourceRequest, Unreadable
from tests.sources.reading import counts_of, drained, settle


def entry(step: int, *loads: list[float]) -> dict[str, Any]:
    fields: dict[str, Any] = {"step": step, "loss": 2.0 + 1 / step}
    for layer, load in enumerate(loads):
        fields[f"layer_{layer}_entropy"] = 1.0
        fields[f"layer_{layer}_load"] = load
        fields[f"layer_{layer}_droprate"] = 0.25
    return fields


ENTRIES = [
    entry(1000, [0.5, 0.25, 0.25, 0.0], [0.25, 0.25, 0.25, 0.25]),
    entry(2000, [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]),
]


def read(folder: Path, *entries: dict[str, Any]) -> list[Record]:
    path = folder / "training_metrics.json"
    path.write_text(json.dumps(entries, indent=2))
    return drained(opened(path))


def opened(path: Path) -> RecordReader:
    return FORMATS["streamlit"].open(path, "", "older", SourceRequest())


def test_top_1_shares_come_out_with_one_choice_per_token(tmp_path: Path) -> None:
    records = read(tmp_path, *ENTRIES)
    assert counts_of(records) == {
        1000: {"L0": [500_000, 250_000, 250_000, 0], "L1": [250_000] * 4},
        2000: {"L0": [1_000_000, 0, 0, 0], "L1": [500_000, 500_000, 0, 0]},
    }
    run, first, _ = records
    assert (run["run"], run["source"]["counts"], run["model"]["top_k"]) == ("older", "top1", 1)
    assert first["loss"] == 2.001
    assert "drop_rate" not in first["router"]  # they were simulated
    assert read(tmp_path, {"step": 1}, *ENTRIES) == [run, {"kind": "step", "step": 1}, *records[1:]]


def test_a_damaged_file_at_rest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "training_metrics.json"
    path.write_text(json.dumps(ENTRIES)[:-20])
    reader = opened(path)
    assert not reader.read().records  # it may be being written
    settle(path)
    with pytest.raises(Unreadable, match=r"training_metrics.json: .*not the file that the older"):
        reader.read()


@pytest.mark.parametrize(
    "load", [[], [-1.0, 2.0], ["a"], [None, 1.0], [0, 0], "x", [[1]], [float("nan"), 1.0]]
)
def test_loads_that_are_no_shares_are_left_out(tmp_path: Path, load: Any) -> None:
    first = entry(1, [0.5, 0.5], [0.5, 0.5])
    first["layer_1_load"] = load
    (row,) = counts_of(read(tmp_path, first)).values()
    assert row.pop("L0") == [500_000, 500_000]
    assert row in ({}, {"L1": None})
