"""Lists, and histograms with edges around every expert, are counts; other objects are named."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.sources import Keys, SourceRequest
from microscope_tui.sources.databases import TrackioReader
from microscope_tui.sources.row_records import RowRecords
from microscope_tui.sources.text_rows import JsonlReader
from microscope_tui.sources.wandb import WandbReader
from tests.sources import sound, wandb_bytes as wb
from tests.sources.reading import Steps, counts_of, drained, settle

USED = [[*range(40 + step, 54), *range(40, 40 + step)] for step in range(4)]
COUNTS = [[[0, *row, 0], [0, 0, *reversed(row)]] for row in USED]
"""Four steps of two layers of 16 experts, with dead ones at the ends."""
TRUTH: Steps = {s: {f"L{n}": row for n, row in enumerate(rows)} for s, rows in enumerate(COUNTS, 1)}
KEY = "router/tokens_per_expert/{}"


def histogram(counts: Sequence[int], first: float = -0.5) -> dict[str, Any]:
    edges = [first + place for place in range(len(counts) + 1)]
    return {"_type": "histogram", "bins": edges, "values": list(counts)}


def row_of(form: Any, rows: Sequence[Sequence[int]], key: str = KEY) -> dict[str, Any]:
    return {key.format(n): form(row) for n, row in enumerate(rows)}


def jsonl(folder: Path, rows: Sequence[Mapping[str, Any]]) -> JsonlReader:
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s, **row}) + "\n" for s, row in enumerate(rows, 1)))
    return JsonlReader(settle(path), Keys())


def wandb(folder: Path, rows: Sequence[Mapping[str, Any]]) -> WandbReader:
    """As wandb writes: the parts of a histogram are nested keys."""
    records = [wb.run()]
    for step, row in enumerate(rows, 1):
        items: list[tuple[Sequence[str], Any]] = []
        for key, value in row.items():
            parts = value.items() if isinstance(value, dict) else [("", value)]
            items += [([key, part] if part else [key], inner) for part, inner in parts]
        records.append(wb.history(random.Random(step).sample(items, len(items)), step))
    path = folder / "run.wandb"
    path.write_bytes(wb.log(records))
    return WandbReader(settle(path), Keys())


def trackio(folder: Path, rows: Sequence[Mapping[str, Any]]) -> TrackioReader:
    path = folder / "moe.db"
    path.write_bytes(sound.trackio(steps=[(s, 1e9 + s, row) for s, row in enumerate(rows, 1)]))
    return TrackioReader(settle(path), Keys(), "first")


def opened(reader: Any) -> RowRecords:
    return RowRecords(reader, "run", "wandb", SourceRequest())


@pytest.mark.parametrize("write", [jsonl, wandb, trackio])
@pytest.mark.parametrize("form", [list, histogram])
@pytest.mark.parametrize("key", [KEY, "moe/L{}/load"])
def test_lists_and_histograms_of_experts_are_counts(
    write: Any, form: Any, key: str, tmp_path: Path
) -> None:
    """Under unknown keys they are proposed and used."""
    others = {"x": [1, 2], "y": histogram([3], 0.0), "z": 0.5}
    reader = opened(write(tmp_path, [row_of(form, rows, key) | others for rows in COUNTS]))
    assert counts_of(drained(reader)) == TRUTH
    assert reader.missing == "not used: 1 list, 1 histogram"


@pytest.mark.parametrize("write", [jsonl, wandb, trackio])
@pytest.mark.parametrize(
    ("other", "kind"),
    [
        *((histogram([9] * 16, first), "histogram") for first in (0.0, -1.5, 0.5)),
        (histogram([9] * 16) | {"values": [9] * 15}, "histogram"),
        (histogram([9] * 16) | {"bins": None}, "histogram"),
        (histogram([9] * 16) | {"values": "x"}, "histogram"),
        ({"_type": "table-file", "path": "../x.json", "nrows": 3}, "table-file"),
    ],
)
def test_what_is_no_histogram_of_experts_is_named_with_what_to_log(
    write: Any, other: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    reader = opened(write(tmp_path, [{KEY.format(0): other, "z": 1.0}] * 3))
    assert drained(reader) == []
    assert f"{KEY.format(0)}: a {kind} is not read, log the counts as a list" in reader.missing


def test_a_histogram_that_is_left_out_in_some_steps_is_named(tmp_path: Path) -> None:
    rows = [row_of(histogram, rows) for rows in COUNTS]
    reader = opened(jsonl(tmp_path, [*rows, row_of(lambda row: histogram(row, 0.0), COUNTS[0])]))
    assert counts_of(drained(reader)) == TRUTH
    assert f"{KEY.format(0)}: a histogram is not read" in reader.missing


def test_all_kinds_of_keys_are_counted(tmp_path: Path) -> None:
    row = {f"router/{n}/frac": histogram([9] * 3, 0.0) for n in range(4)}
    row |= {f"n{n}": n for n in range(36)} | {"t": {"_type": "table", "data": []}}
    reader = opened(jsonl(tmp_path, [row] * 3))
    assert drained(reader) == []
    assert "3 steps, 36 numbers, 4 histograms, 1 table, none known" in reader.missing
