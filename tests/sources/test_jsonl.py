"""JSON lines: rows as prime-rl, AutoModel and others write them, and what is no row."""

import math
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.runlog import encode_record
from microscope_tui.sources import (
    JsonlReader,
    Keys,
    Unreadable,
    rules_of,
    run_record,
    step_record,
)
from tests.sources.reading import all_rows, counts_of, header_of, translated, values
from tests.sources.sound import RUN, jsonl, lines, named

recognises = JsonlReader.recognises


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "metrics.jsonl"
    path.write_bytes(lines(rows))
    return path


def test_several_rows_of_prime_rl_are_one_step(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"step": 0, "time": 1.5, "loss/mean": 1.0, "max_vio/mean": 0.2, "max_vio/max": 0.5},
        {"step": 0, "time": 1.6, "expert_load/max_mean/max": 1.75, "optim/lr": 0.001},
        {"step": 1, "time": 2.5, "max_vio/mean": 0.3, "max_vio/max": 1.25},
    )
    assert recognises(path)
    run, first, second = translated(JsonlReader(path, Keys()))
    assert run["model"]["layer_names"] == ["all layers"]
    assert run["source"]["counts"] == "none"
    assert (first["step"], first["time"], first["learning_rate"]) == (0, 1.5, 0.001)
    assert first["router"] == {"max_load": [1.75]}  # the later of two readings of the quantity
    assert second["router"] == {"max_load": [2.25]}  # MaxVio + 1


@pytest.mark.parametrize("text", ["NaN", '"NaN"', "Infinity", '"Infinity"', "1e999"])
def test_values_that_are_not_finite_are_passed_on(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(f'{{"step": 1, "loss": {text}, "lr": 0.5}}\n{{"step": 2}}\n')
    loss, rate = values(all_rows(JsonlReader(path, Keys())))  # what was dropped is not invented
    assert not math.isfinite(loss[4])
    assert rate[4] == 0.5


def test_nested_objects_and_lists_are_joined_with_slashes(tmp_path: Path) -> None:
    row = {"step": 1, "moe": {"max_vio": {"layer_3": 0.5}, "load": [[1, 2], [3, 4]]}}
    own = rules_of([r"tokens_per_expert=moe/load/(?P<layer>\d+)/(?P<expert>\d+)"])
    assert values(all_rows(JsonlReader(written(tmp_path, row), Keys(own)))) == [
        (1, "max_load", 3, None, 0.5),
        *((1, "tokens_per_expert", at // 2, at % 2, at + 1.0) for at in range(4)),
    ]


def test_layers_of_automodel_are_gates_of_unknown_order(tmp_path: Path) -> None:
    """AutoModel numbers layers by the sorted names of their gates: layer 10 comes before layer 2.

    Nothing in the rows says which layers have gates, so no depth can be computed. The rows keep
    the order of the file and are called ``gate 0``, ``gate 1`` …; the header says that the order is
    unknown. Sorting them would only move the fault.
    """
    loads = {0: [2.0, 0.0], 1: [1.5, 0.5], 2: [1.0, 1.0]}
    row = {
        f"moe_expert_utilization/layer_{i}_expert_{e}": load
        for i, pair in loads.items()
        for e, load in enumerate(pair)
    }
    path = written(tmp_path, *({"step": step, **row} for step in (1, 2)))
    found = translated(JsonlReader(path, Keys()))
    assert header_of(found)["source"] == {
        "writer": "test", "counts": "shares", "layer_order": "unknown"
    }  # fmt: skip
    assert counts_of(found)[1] == {
        "gate 0": [1_000_000, 0], "gate 1": [750_000, 250_000], "gate 2": [500_000, 500_000]
    }  # fmt: skip


def test_the_extreme_experts_of_automodel_are_not_taken_for_all(tmp_path: Path) -> None:
    # By default only the five most and the five least loaded of all layers are logged.
    name = "moe_expert_utilization/layer_0_expert_"
    path = written(tmp_path, *({"step": s, f"{name}0": 3.0, f"{name}1": 0.1} for s in (1, 2)))
    assert not any("tokens_per_expert" in r for r in translated(JsonlReader(path, Keys())))


@pytest.mark.parametrize(
    ("row", "step", "at"),
    [
        ({"step": 3, "time": 5.5}, 3, 5.5),
        ({"_step": 3, "_timestamp": 5.5}, 3, 5.5),
        ({"global_step": 3.0}, 3, None),
        ({"step": 3, "timestamp": "2026-01-01T00:00:00+00:00"}, 3, 1767225600.0),
        ({"step": 3, "timestamp": "2026-01-01T00:00:00"}, 3, 1767225600.0),
        ({"step": 3, "timestamp": 1767225600000}, 3, 1767225600.0),
        ({"step": 3, "time": "yesterday"}, 3, None),
        ({"step": 3, "time": -1}, 3, None),
    ],
)
def test_steps_and_times_are_found_under_their_usual_names(
    tmp_path: Path, row: dict[str, Any], step: int, at: float | None
) -> None:
    (found,) = all_rows(JsonlReader(written(tmp_path, {**row, "loss": 1}), Keys()))
    assert (found.step, found.time) == (step, at)


@pytest.mark.parametrize("step", [-1, 2**62, 1.5, True, None, "x", [1], float("nan")])
def test_a_row_without_a_possible_step_is_counted_and_skipped(tmp_path: Path, step: Any) -> None:
    path = written(tmp_path, {"step": step, "loss": 1}, {"step": 7, "loss": 2})
    reader = JsonlReader(path, Keys())
    assert [row.step for row in all_rows(reader)] == [7]
    assert reader.defects.first == ["line 1: without a step from 0"]


def test_a_line_torn_by_a_killed_writer_costs_only_itself(tmp_path: Path) -> None:
    first, second, third = jsonl(RUN).splitlines(keepends=True)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(first + second[:40] + second + third)  # it left no line break
    reader = JsonlReader(path, Keys())
    assert [row.step for row in all_rows(reader)] == [1, 3]
    assert reader.defects.first == ["line 2: not a JSON object"]


def test_a_run_log_is_not_recognised(tmp_path: Path) -> None:
    header = run_record("log", [0], [4], 2, writer="x", counts="exact")
    path = tmp_path / "metrics.jsonl"
    for record in (header, step_record(1, [[1, 1, 1, 1]]), {"kind": "event", "event": "end"}):
        path.write_bytes(encode_record({**record, **named(1, RUN[0]), "step": 1}))
        assert not recognises(path)


def test_without_a_router_reading_only_a_mapping_makes_it_a_source(tmp_path: Path) -> None:
    path = written(tmp_path, {"step": 1, "loss": 1.0, "my/3/load": 2.0})
    assert not recognises(path)
    assert recognises(path, rules_of([r"max_load=my/(?P<layer>\d+)/load"]))
    assert not recognises(path, rules_of([r"loss=loss"]))


def test_a_first_row_longer_than_the_head_is_recognised_by_its_keys(tmp_path: Path) -> None:
    row = {"step": 1} | {f"moe_bias/L-{i // 64}_EP-{i % 64}": 0.1 for i in range(4096)}
    assert recognises(written(tmp_path, row))
    assert not recognises(written(tmp_path, {"step": 1, "x": "y" * 100_000}))


def test_a_file_of_another_kind_is_refused_with_what_was_wrong(tmp_path: Path) -> None:
    path = tmp_path / "novel.txt"
    path.write_bytes(b"It was a dark and stormy night.\n" * 40_000)
    reader = JsonlReader(path, Keys())
    with pytest.raises(Unreadable, match=r"novel.txt: 1,\d+,\d+ bytes hold no JSON object.*line 1"):
        all_rows(reader)
