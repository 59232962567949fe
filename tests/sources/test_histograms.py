"""Histograms are counts only by their edges: numpy makes them as W&B and TensorBoard do."""

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microscope_tui.sources import (
    JsonlReader,
    Keys,
    NotChoices,
    RowRecords,
    SourceRequest,
    WandbReader,
    choices,
    rules_of,
)
from tests.sources import wandb_bytes as wb
from tests.sources.reading import Steps, all_rows, counts_of, drained, settle

EXPERTS = (16, 64, 256)
every_size = pytest.mark.parametrize("experts", EXPERTS)


def ids(experts: int, lowest: int = 0, highest: int | None = None, seed: int = 0) -> np.ndarray:
    """A step's choices among the experts from ``lowest`` to ``highest``, both in use."""
    top = experts - 1 if highest is None else highest
    some = np.random.default_rng(seed).integers(lowest, top + 1, 40 * experts)
    return np.concatenate([some, [lowest, top]])


def read(chosen: np.ndarray, bins: int | np.ndarray) -> list[int]:
    counts, edges = np.histogram(chosen, bins)
    return choices(edges.tolist(), counts.tolist())


def refused(edges: Sequence[float], counts: Sequence[float], largest: float = math.inf) -> str:
    with pytest.raises(NotChoices) as found:
        choices(edges, counts, largest)
    return str(found.value)


@every_size
@pytest.mark.parametrize("dead", [0, 1, 3])
@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_given_edges_hold_every_expert_also_with_dead_ones_at_both_ends(
    experts: int, dead: int, offset: float
) -> None:
    chosen = ids(experts, dead, experts - 1 - dead)
    found = read(chosen, np.arange(experts + 1) - offset)
    assert found == np.bincount(chosen, minlength=experts).tolist()


@every_size
def test_bins_over_the_range_of_the_ids_are_counts_while_both_ends_are_in_use(experts: int) -> None:
    assert read(ids(experts), experts) == np.bincount(ids(experts)).tolist()


@pytest.mark.parametrize(("first", "last"), [(0, 15), (0, 13), (1, 13), (2, 14)])
def test_missing_lower_bins_are_experts_without_tokens(first: int, last: int) -> None:
    """TensorBoard cuts empty ends; the largest value shows that 14 is no edge of the values."""
    chosen = ids(16, first, last)
    expected = np.bincount(chosen).tolist()
    whole = [float(edge) for edge in range(first, last + 2)]
    assert choices(whole, expected[first:], float(last)) == expected
    assert choices([edge - 0.5 for edge in whole], expected[first:]) == expected
    assert "not one for each expert" in refused([1.0, 2.0, 3.0], [90, 90])
    assert "not one for each expert" in refused([1.0, 2.0, 3.0], [90, 90], 3.0)


def test_no_shifted_histogram_is_ever_counts() -> None:
    """Of 1,000 histograms over the range of the ids, those that are taken are the counts."""
    taken = 0
    generator = random.Random(7)
    for seed in range(1000):
        experts = generator.choice(EXPERTS)
        lowest = generator.choice([0, 1, 2, generator.randrange(experts // 2)])
        highest = experts - 1 - generator.choice([0, 1, 2, generator.randrange(experts // 2)])
        bins = generator.choice([experts, 64, 32, highest - lowest + 1, generator.randint(8, 300)])
        chosen = ids(experts, lowest, highest, seed)
        if (lowest, highest) == (0, bins):
            continue  # the edges of arange(bins + 1)
        try:
            found = read(chosen, bins)
        except NotChoices:
            continue
        assert found == np.bincount(chosen).tolist(), (experts, lowest, highest, bins)
        taken += 1
    assert taken > 20


def test_no_histogram_of_values_is_ever_counts() -> None:
    """``Histogram(counts)`` and arrays that W&B replaces, of loads, shares and biases."""
    draw = np.random.default_rng(3)
    for _ in range(1000):
        experts = int(draw.choice(EXPERTS))
        loads = draw.poisson(draw.uniform(0.5, 60), experts)
        for values in (loads, loads / max(1, loads.sum()), draw.normal(size=experts)):
            for bins in (32, 64, experts):
                counts, edges = np.histogram(values, bins)
                refused(edges.tolist(), counts.tolist())


def test_a_refusal_has_the_bins_and_what_to_log() -> None:
    edges = np.linspace(0.0, 0.3, 33).tolist()
    why = "histogram of 32 bins of values, not counts: log a list"
    assert refused(edges, [2] * 32) == why
    assert refused(list(range(17)), [1] * 16) == why.replace("32", "16")
    shifted = np.histogram(ids(64, 1, 62), 64)[1].tolist()
    why = "histogram of 64 bins from 1 to 62, not one for each expert: log a list"
    assert refused(shifted, [40] * 64) == why


@pytest.mark.parametrize(
    ("edges", "counts"),
    [
        ([], []),
        ([0.0, 1.0], [5, 5]),
        ([0.0, float("nan")], [50]),
        ([-1e308, 1e308], [50]),
        ([float("-inf"), float("inf")], [50]),
        ([0.0, 1.0, 2.0], [50, -1]),
        ([0.0, 1.0, 2.0], [50, 0.5]),
        ([0.0, 1.0, 2.0], [50, float("inf")]),
        ([0.0, 1.0, 2.0], [50, float("nan")]),
        ([-1.5, -0.5, 0.5], [50, 50]),
        ([2.0, 1.0, 0.0], [50, 50]),
        ([0.0] * 70_000, [1] * 69_999),
    ],
)
def test_what_is_no_histogram_of_experts_is_refused(
    edges: list[float], counts: list[float]
) -> None:
    assert refused(edges, counts).endswith("log a list")


USED = [[*range(40 + step, 54), *range(40, 40 + step)] for step in range(4)]
COUNTS = [[[0, *row, 0], [0, 0, *reversed(row)]] for row in USED]
"""Four steps of two layers of 16 experts, with dead ones at the ends."""
TRUTH: Steps = {s: {f"L{n}": row for n, row in enumerate(rows)} for s, rows in enumerate(COUNTS, 1)}
KEY = "router/tokens_per_expert/{}"


def histogram(counts: Sequence[int], first: int = 0) -> dict[str, Any]:
    edges = [first + place - 0.5 for place in range(len(counts) + 1)]
    return {"_type": "histogram", "bins": edges, "values": list(counts)}


def cut(counts: Sequence[int]) -> dict[str, Any]:
    first = next(place for place, count in enumerate(counts) if count)
    return histogram(np.trim_zeros(counts), first)


def table(rows: Sequence[Sequence[int]]) -> dict[str, Any]:
    cells = [[layer, e, n] for layer, row in enumerate(rows) for e, n in enumerate(row)]
    return {"columns": ["Layer", "expert_id", "tokens"], "data": cells}


def jsonl(folder: Path, rows: Sequence[Mapping[str, Any]]) -> JsonlReader:
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s, **row}) + "\n" for s, row in enumerate(rows, 1)))
    return JsonlReader(settle(path), Keys())


def wandb(folder: Path, rows: Sequence[Mapping[str, Any]]) -> WandbReader:
    """As wandb writes: the parts of a histogram are nested keys, a table is a file."""
    records = []
    for step, row in enumerate(rows, 1):
        items: list[tuple[Sequence[str], Any]] = []
        for key, value in row.items():
            if isinstance(value, dict) and "data" in value:
                file = folder / "files" / f"{step}.json"
                file.parent.mkdir(exist_ok=True)
                file.write_text(json.dumps(value))
                value = {"_type": "table-file", "path": file.name, "nrows": 32}
            parts = value.items() if isinstance(value, dict) else [("", value)]
            items += [([key, part] if part else [key], inner) for part, inner in parts]
        records.append(wb.history(random.Random(step).sample(items, len(items)), step))
    path = folder / "run.wandb"
    path.write_bytes(wb.log(records))
    return WandbReader(settle(path), Keys())


def opened(reader: Any, **request: Any) -> RowRecords:
    return RowRecords(reader, "run", "wandb", SourceRequest(**request))


@pytest.mark.parametrize("write", [jsonl, wandb])
@pytest.mark.parametrize("form", [list, histogram, cut])
def test_lists_and_histograms_are_the_counts_of_their_layers(
    write: Any, form: Any, tmp_path: Path
) -> None:
    """Where TensorBoard cuts the upper end, the other layer has all experts."""
    rows = [{KEY.format(n): form(row) for n, row in enumerate(rows)} for rows in COUNTS]
    others = {"x": [1, 2], "y": histogram([3]), "z": 0.5}
    reader = opened(write(tmp_path, [row | others for row in rows]))
    assert counts_of(drained(reader)) == TRUTH
    assert reader.missing == "not used: 1 list, 1 histogram"


@pytest.mark.parametrize("write", [jsonl, wandb])
def test_unknown_histograms_and_tables_are_proposed_and_used(write: Any, tmp_path: Path) -> None:
    for name, rows in {
        "histograms": [{f"moe/L{n}/load": cut(row) for n, row in enumerate(r)} for r in COUNTS],
        "table": [{"moe/routing": table(rows) | {"_type": "table"}} for rows in COUNTS],
    }.items():
        (folder := tmp_path / name).mkdir()
        assert counts_of(drained(opened(write(folder, rows)))) == TRUTH


def test_steps_whose_edges_fail_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{KEY.format(n): histogram(row) for n, row in enumerate(r)} for r in COUNTS]
    rows[1][KEY.format(1)] = histogram([8.5] * 16)
    reader = opened(jsonl(tmp_path, rows))
    truth = TRUTH | {2: TRUTH[2] | {"L1": None}}
    assert counts_of([*reader.sample(9), *drained(reader)][-5:]) == truth
    why = "histogram without whole counts: log a list (1 step left out)"
    assert reader.missing == f"{KEY.format(1)}: {why}"


def test_an_expert_above_those_of_all_histograms_is_known_from_the_configuration(
    tmp_path: Path,
) -> None:
    rows = [{KEY.format(0): cut(rows[0])} for rows in COUNTS]
    assert (
        counts_of(drained(opened(jsonl(tmp_path, rows), num_experts=16)))[1]["L0"] == COUNTS[0][0]
    )


def test_what_is_refused_is_named_and_all_kinds_are_counted(tmp_path: Path) -> None:
    """W&B replaces an array of more than 32 numbers by a histogram of its values."""
    values, edges = np.histogram(np.random.default_rng(1).random(64), 32)
    frac = {"_type": "histogram", "bins": edges.tolist(), "values": values.tolist()}
    row = {f"router/{n}/frac": frac for n in range(4)} | {f"n{n}": n for n in range(36)}
    reader = opened(wandb(tmp_path, [row | {"t": table([[1]]) | {"columns": []}}] * 3))
    assert drained(reader) == []
    assert "3 steps, 36 numbers, 4 histograms, 1 table, none known" in reader.missing
    why = "histogram of 32 bins of values, not counts: log a list"
    assert f"router/0/frac and 3 more: {why}; t: table without" in reader.missing
    (known := tmp_path / "known").mkdir()
    reader = opened(wandb(known, [{KEY.format(0): frac}] * 3))
    assert drained(reader) == []
    assert reader.missing == f"{KEY.format(0)}: {why}"


@pytest.mark.parametrize("path", ["gone.json", "../secret.json", "/etc/hostname", "link.json", ""])
def test_a_table_that_is_missing_or_elsewhere_is_named_once(path: str, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text(json.dumps(table(COUNTS[0])))
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "link.json").symlink_to(tmp_path / "secret.json")
    file = {"_type": "table-file", "path": path}
    reader = opened(wandb(tmp_path, [{"moe/a": file, "moe/b": file, "z": 1.0}] * 3))
    assert drained(reader) == []
    assert reader.missing.count(f"in {tmp_path}/files: copy that folder too") == 1


def test_a_bin_far_above_zero_does_not_fill_the_memory(tmp_path: Path) -> None:
    row = {KEY.format(n): histogram([80], first=60_000) for n in range(500)}
    (found,) = all_rows(jsonl(tmp_path, [row]))
    assert len(found.targets) == 500


def test_tables_and_histograms_are_followed_as_the_file_grows(tmp_path: Path) -> None:
    rows = [{"moe/routing": table(step), KEY.format(7): cut(step[0])} for step in COUNTS]
    whole = wandb(tmp_path, rows).path.read_bytes()
    for size in range(len(whole) // 2, len(whole) + 1, 50):
        (tmp_path / "run.wandb").write_bytes(whole[:size])
        if size == len(whole) // 2:
            rule = rules_of(
                [r"share=moe/routing/tokens/layer_(?P<layer>\d+)/expert_(?P<expert>\d+)"]
            )
            reader, found = WandbReader(tmp_path / "run.wandb", Keys(rule)), []
        found += all_rows(reader)
    (tmp_path / "run.wandb").write_bytes(whole)
    found += all_rows(reader)
    assert [(row.step, len(row.targets)) for row in found] == [(step, 46) for step in (1, 2, 3, 4)]
