"""The array of the older microscope: top-1 shares, written whole."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.sources import FORMATS, SourceRequest, StreamlitReader, Unreadable
from tests.sources.tables import as_run, records

recognises = StreamlitReader.recognises


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


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "training_metrics.json"
    path.write_text(json.dumps(ENTRIES, indent=2))
    return path


def reader(path: Path) -> StreamlitReader:
    return StreamlitReader(path, "older", SourceRequest())


def test_top_1_shares_come_out_with_one_choice_per_token(path: Path) -> None:
    assert recognises(path)
    assert FORMATS["streamlit"].place_of(path) == path
    run, steps = as_run(records(reader(path)))
    assert (run.run, run.counts) == ("older", "top1")
    assert [(r.depth, r.num_experts, r.top_k) for r in run.routers] == [(0, 4, 1), (1, 4, 1)]
    assert [entry.record.step for entry in steps] == [1000, 2000]
    assert steps[0].counts(0) == [500_000, 250_000, 250_000, 0]
    assert steps[1].counts(1) == [500_000, 500_000, 0, 0]
    assert steps[0].record.loss == 2.001


def test_simulated_drop_rates_are_not_shown(path: Path) -> None:
    _, steps = as_run(records(reader(path)))
    assert all(entry.record.router.drop_rate is None for entry in steps)


def test_a_rewrite_with_more_entries_continues_and_one_with_others_restarts(path: Path) -> None:
    source = reader(path)
    assert len(source.read().records) == 3
    path.write_text(json.dumps([*ENTRIES, entry(3000, [1.0, 0, 0, 0], [0, 0, 0, 1.0])]))
    found = source.read()
    assert not found.restarted
    assert [record["step"] for record in found.records] == [3000]
    path.write_text(json.dumps([entry(1000, [0.0, 1.0])]))
    found = source.read()
    assert found.restarted
    assert [record["kind"] for record in found.records] == ["run", "step"]
    path.unlink()
    assert not source.read().records
    assert source.deleted


def test_a_file_that_is_being_written_waits_at_every_cut(path: Path) -> None:
    data = path.read_bytes()
    source = reader(path)
    for cut in range(1, len(data), 13):
        path.write_bytes(data[:cut])
        assert not source.read().records
    path.write_bytes(data)
    assert len(source.read().records) == 3


def test_a_damaged_file_at_rest_is_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])
    os.utime(path, (time.time() - 60,) * 2)
    with pytest.raises(Unreadable, match=r"training_metrics.json: .*not the file that the older"):
        reader(path).read()


def test_an_entry_of_another_shape_gets_its_own_header(path: Path) -> None:
    path.write_text(json.dumps([ENTRIES[0], entry(2000, [0.5, 0.5])]))
    kinds = [record["kind"] for record in records(reader(path))]
    assert kinds == ["run", "step", "run", "step"]


@pytest.mark.parametrize(
    "load", [[], [-1.0, 2.0], ["a"], [None, 1.0], [0, 0], "x", [[1]], [float("nan"), 1.0]]
)
def test_loads_that_are_no_shares_are_left_out(path: Path, load: Any) -> None:
    first = entry(1, [0.5, 0.5], [0.5, 0.5])
    first["layer_1_load"] = load
    path.write_text(json.dumps([first]))
    _, steps = as_run(records(reader(path)))
    assert steps[0].counts(0) == [500_000, 500_000]
    assert len(steps[0].matrices().tokens_per_expert) < 2 or steps[0].counts(1) is None


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'[{"step": 1}]', b"[1, 2]"])
def test_other_files_are_not_recognised(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert not recognises(path)


def test_a_file_of_too_many_bytes_is_refused(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(9 << 20)
    with pytest.raises(Unreadable, match="at most 8,388,608"):
        reader(path).read()
