"""Histograms are counts only by their edges: numpy makes them as W&B and TensorBoard do."""

import json
import math
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microscope_tui.commands.check.report import judge
from microscope_tui.sources import Keys, Search, SourceRequest, rules_of
from microscope_tui.sources.databases import TrackioReader
from microscope_tui.sources.histograms import NotChoices, choices
from microscope_tui.sources.row_records import RowRecords
from microscope_tui.sources.text_rows import JsonlReader
from microscope_tui.sources.wandb import WandbReader
from tests.sources import event_bytes as eb, sound, wandb_bytes as wb
from tests.sources.reading import Steps, all_rows, counts_of, drained, settle
from tests.sources.truth import ids_of

EXPERTS = (16, 64, 256)
INF, NAN = math.inf, math.nan
OF_VALUES, NOT_EACH = "of values, not counts: log a list", "not one for each expert: log a list"


def bins_of(ids: np.ndarray, bins: int | np.ndarray) -> tuple[list[float], list[int]]:
    counts, edges = np.histogram(ids, bins)
    return edges.tolist(), counts.tolist()


@pytest.mark.parametrize("experts", EXPERTS)
@pytest.mark.parametrize("dead", [0, 1, 3])
@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_given_edges_hold_every_expert_also_dead(experts: int, dead: int, offset: float) -> None:
    """TensorBoard cuts empty ends; the largest value shows that the last edge is not a value."""
    ids, edges = ids_of(experts, dead), np.arange(experts + 1) - offset
    largest = INF if offset else experts - 1
    assert choices(*bins_of(ids, edges), largest) == np.bincount(ids, minlength=experts).tolist()
    assert choices(*eb.cut(ids, edges), float(ids.max())) == np.bincount(ids).tolist()
    assert dead or choices(*bins_of(ids, experts)) == np.bincount(ids).tolist()
    if offset:
        assert choices(*eb.cut(ids, edges)) == np.bincount(ids).tolist()


def test_no_shifted_histogram_is_ever_counts() -> None:
    """Those that are taken of 3,000 random ones, also as TensorBoard has them, are the counts."""
    draw, taken = random.Random(7), [0, 0, 0]
    for seed in range(3000):
        experts, form = draw.choice(EXPERTS), seed % 3
        low, off = (draw.choice([0, 0, 1, 2, draw.randrange(experts // 2)]) for _ in range(2))
        ids = np.random.default_rng(seed).integers(low, experts - off, 40 * experts)
        top = int(ids.max())
        bins = draw.choice([experts, 64, 32, top - low, top - low + 1, draw.randint(8, 300)])
        edges = np.arange(top + draw.choice([1, 2])) + draw.choice([-0.5, 0.0, 1.0])
        used = ids[ids >= edges[0]] if form == 2 else ids
        shown = (bins_of(ids, bins), (*eb.cut(ids, bins), top), (*eb.cut(used, edges), top))[form]
        with suppress(NotChoices):
            assert choices(*shown) == np.bincount(used).tolist(), shown
            taken[form] += 1
    assert min(taken) > 20


def test_no_histogram_of_values_is_ever_counts() -> None:
    """``Histogram(counts)`` and arrays that W&B replaces, of loads, shares and biases."""
    draw = np.random.default_rng(3)
    for _ in range(300):
        experts = int(draw.choice(EXPERTS))
        loads = draw.poisson(draw.uniform(0.5, 60), experts)
        for values in (loads, loads / max(1, loads.sum()), draw.normal(size=experts)):
            for bins in (32, 64, experts):
                with pytest.raises(NotChoices):
                    choices(*bins_of(values, bins))


@pytest.mark.parametrize(
    ("edges", "counts", "why"),
    [
        (np.linspace(0.0, 0.3, 33).tolist(), [2] * 32, f"histogram of 32 bins {OF_VALUES}"),
        ([*range(17)], [1] * 16, f"histogram of 16 bins {OF_VALUES}"),
        (*bins_of(ids_of(64, 1), 64), f"histogram of 64 bins from 1 to 62, {NOT_EACH}"),
        (*bins_of(ids_of(64), 63), "histogram of 63 bins "),  # the last one holds two experts
        ([1.0, 2.0, 3.0], [90, 90], f"histogram of 2 bins from 1 to 3, {NOT_EACH}"),
        ([], [], ""),
        ([0.0, 1.0], [5, 5], ""),
        ([0.0, NAN], [50], ""),
        ([-1e308, 1e308], [50], ""),
        ([-INF, INF], [50], ""),
        *(([0.0, 1.0, 2.0], [50, bad], "") for bad in (-1, 0.5, INF, NAN)),
        ([-1.5, -0.5, 0.5], [50, 50], ""),
        ([2.0, 1.0, 0.0], [50, 50], ""),
        ([0.0] * 70_000, [1] * 69_999, ""),
    ],
)
def test_what_is_no_histogram_of_experts_is_refused_with_what_to_log(
    edges: list[float], counts: list[float], why: str
) -> None:
    for largest in (INF, edges[-1] if edges else 0.0):
        with pytest.raises(NotChoices) as found:
            choices(edges, counts, largest)
        assert str(found.value).startswith(why)
        assert str(found.value).endswith("log a list")


USED = [[*range(40 + step, 54), *range(40, 40 + step)] for step in range(4)]
COUNTS = [[[0, *row, 0], [0, 0, *reversed(row)]] for row in USED]
"""Four steps of two layers of 16 experts, with dead ones at the ends."""
TRUTH: Steps = {s: {f"L{n}": row for n, row in enumerate(rows)} for s, rows in enumerate(COUNTS, 1)}
KEY = "router/tokens_per_expert/{}"


def histogram(counts: Sequence[int], first: int = 0) -> dict[str, Any]:
    edges = [first + place - 0.5 for place in range(len(counts) + 1)]
    return {"_type": "histogram", "bins": edges, "values": list(counts)}


def cut(counts: Sequence[int]) -> dict[str, Any]:
    return histogram(np.trim_zeros(counts), int(np.flatnonzero(counts)[0]))


def row_of(form: Any, rows: Sequence[Sequence[int]], key: str = KEY) -> dict[str, Any]:
    return {key.format(n): form(row) for n, row in enumerate(rows)}


def table(rows: Sequence[Sequence[int]]) -> dict[str, Any]:
    cells = [[layer, e, n] for layer, row in enumerate(rows) for e, n in enumerate(row)]
    return {"_type": "table", "columns": ["Layer", "expert_id", "tokens"], "data": cells}


def jsonl(folder: Path, rows: Sequence[Mapping[str, Any]]) -> JsonlReader:
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s, **row}) + "\n" for s, row in enumerate(rows, 1)))
    return JsonlReader(settle(path), Keys())


def wandb(folder: Path, rows: Sequence[Mapping[str, Any]], **config: int) -> WandbReader:
    """As wandb writes: the parts of a histogram are nested keys, a table is a file."""
    records = [wb.run(**config)]
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


def trackio(folder: Path, rows: Sequence[Mapping[str, Any]]) -> TrackioReader:
    path = folder / "moe.db"
    path.write_bytes(sound.trackio(steps=[(s, 1e9 + s, row) for s, row in enumerate(rows, 1)]))
    return TrackioReader(settle(path), Keys(), "first")


def opened(reader: Any, **request: Any) -> RowRecords:
    return RowRecords(reader, "run", "wandb", SourceRequest(**request))


@pytest.mark.parametrize("write", [jsonl, wandb, trackio])
@pytest.mark.parametrize(
    "of_step",
    [
        *(lambda rows, form=form: row_of(form, rows) for form in (list, histogram, cut)),
        lambda rows: row_of(cut, rows, "moe/L{}/load"),
        lambda rows: {"moe/routing": table(rows)},
    ],
)
def test_lists_histograms_and_tables_are_counts(write: Any, of_step: Any, tmp_path: Path) -> None:
    """Under unknown keys they are proposed and used; a layer whose end is not cut has them all."""
    others = {"x": [1, 2], "y": histogram([3]), "z": 0.5}
    reader = opened(write(tmp_path, [of_step(rows) | others for rows in COUNTS]))
    assert counts_of(drained(reader)) == TRUTH
    assert "not used: 1 list, 1 histogram" in reader.missing


def test_steps_whose_edges_fail_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [row_of(histogram, step) for step in COUNTS]
    rows[1][KEY.format(1)] = histogram([8.5] * 16)
    reader = opened(jsonl(tmp_path, rows))
    truth = TRUTH | {2: TRUTH[2] | {"L1": None}}
    assert counts_of([*reader.sample(9), *drained(reader)][-5:]) == truth
    why = "histogram without whole counts: log a list (1 step left out)"
    assert reader.missing == f"{KEY.format(1)}: {why}"


@pytest.mark.parametrize("key", [KEY, "moe/L{}/load"])
@pytest.mark.parametrize("experts", [15, 16])
def test_an_expert_above_all_needs_their_number(key: str, experts: int, tmp_path: Path) -> None:
    rows = [row_of(cut, [rows[0]] * 2, key) for rows in COUNTS]
    reader = opened(jsonl(tmp_path, rows), num_experts=experts if experts > 15 else None)
    truth = COUNTS[0][0][:experts]
    assert counts_of(drained(reader))[1] == {"L0": truth, "L1": truth}
    asks = "histograms end at expert 14: give --num-experts if more follow"
    assert (asks in reader.missing) == (experts == 15)


def whole(counts: Sequence[int]) -> dict[str, Any]:
    return histogram(counts, 0) | {"bins": [*range(len(counts) + 1)]}


@pytest.mark.parametrize(
    ("write", "asked"),
    [
        *((write, asked) for write in (jsonl, trackio) for asked in ({}, {"num_experts": 16})),
        (lambda *rows: wandb(*rows, num_experts=16), {}),
    ],
)
def test_a_last_bin_that_could_hold_two_experts_needs_the_number_of_experts(
    write: Any, asked: dict[str, int], tmp_path: Path
) -> None:
    source = write(tmp_path, [row_of(whole, rows) for rows in COUNTS])
    assert source.recognises(source.path)
    reader = opened(source, **asked)
    found = counts_of(drained(reader))
    why = "16 bins from 0 to 16, not one for each expert unless --num-experts is given: log a list"
    assert (found, why in reader.missing) in (({}, True), (TRUTH, False))


@pytest.mark.parametrize("lost", [9, 10])
def test_no_verdict_covers_a_layer_without_its_newest_histograms(lost: int, tmp_path: Path) -> None:
    """``Histogram(ids)`` has other edges from the step on in which the last expert dies."""
    ids = [ids_of(64, 0, step) for step in range(150)]
    ids[-lost:] = (np.minimum(row, 62) for row in ids[-lost:])
    layers = [dict(zip(("bins", "values"), bins_of(row, 64), strict=True)) for row in ids]
    rows = [row_of(lambda x: {"_type": "histogram"} | x, [layer]) for layer in layers]
    jsonl(tmp_path, rows)
    (run,) = Search(tmp_path, request=SourceRequest(top_k=2)).runs()
    why = f"{KEY.format(0)} is left out in the newest steps: log a list"
    assert judge(run).problem == (why if lost > 9 else None)


@pytest.mark.parametrize("known", [True, False])
def test_what_is_refused_is_named_and_all_kinds_are_counted(known: bool, tmp_path: Path) -> None:
    """W&B replaces an array of more than 32 numbers by a histogram of its values."""
    edges, values = bins_of(np.random.default_rng(1).random(64), 32)
    frac = {"_type": "histogram", "bins": edges, "values": values}
    row = {f"router/{n}/frac": frac for n in range(4)} | {f"n{n}": n for n in range(36)}
    row |= {"t": table([[1]]) | {"columns": []}}
    reader = opened(wandb(tmp_path, [{KEY.format(0): frac} if known else row] * 3))
    assert drained(reader) == []
    why = f"histogram of 32 bins {OF_VALUES}"
    if known:
        assert reader.missing == f"{KEY.format(0)}: {why}"
    else:
        assert "3 steps, 36 numbers, 4 histograms, 1 table, none known" in reader.missing
        assert f"router/0/frac and 3 more: {why}; t: table without" in reader.missing


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
    path = wandb(tmp_path, rows).path
    whole = path.read_bytes()
    rule = r"share=moe/routing/tokens/layer_(?P<layer>\d+)/expert_(?P<expert>\d+)"
    reader, found = WandbReader(path, Keys(rules_of([rule]))), []
    for size in [*range(len(whole) // 2, len(whole), 50), len(whole)]:
        path.write_bytes(whole[:size])
        found += all_rows(reader)
    assert [(row.step, len(row.targets)) for row in found] == [(step, 46) for step in (1, 2, 3, 4)]
