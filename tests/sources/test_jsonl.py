"""JSON lines: rows as prime-rl and others write them, live, damaged and foreign."""

import json
import math
import os
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.runlog import encode_record
from microscope_tui.sources import (
    FORMATS,
    JsonlReader,
    Keys,
    RowRecords,
    SourceRequest,
    Unreadable,
    rules_of,
    run_record,
    step_record,
)
from tests.sources.tables import (
    COUNTS,
    LOSSES,
    all_rows,
    as_run,
    counts_row,
    plain,
    records,
    run_of,
    same_as_the_run_log,
    values,
)

recognises = JsonlReader.recognises

PRIME_RL = [
    {"step": 0, "time": 1.5, "loss/mean": 1.0, "max_vio/mean": 0.2, "max_vio/max": 0.5},
    {"step": 0, "time": 1.6, "expert_load/max_mean/max": 1.75, "optim/lr": 0.001},
    {"step": 1, "time": 2.5, "max_vio/mean": 0.3, "max_vio/max": 1.25},
]
"""Several rows per step, as ``monitors/file/metrics.jsonl`` has them."""


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_bytes(lines(rows))
    return path


@pytest.fixture
def log(tmp_path: Path) -> Path:
    rows = [{"step": step, "time": 100.0 + step, **counts_row(step)} for step in (1, 2, 3)]
    return written(tmp_path / "metrics.jsonl", rows)


def test_counts_come_out_as_they_were_written(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, steps = run_of(JsonlReader(log, Keys()), monkeypatch, top_k=2)
    same_as_the_run_log(steps)
    assert [entry.record.time for entry in steps] == [101.0, 102.0, 103.0]
    assert run.counts == "exact"
    assert [router.num_experts for router in run.routers] == [4, 4]


def test_the_same_numbers_as_run_log_and_as_source_give_the_same_steps(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = run_record("log", [0, 1], [4, 4], 2, writer="x", counts="exact")
    own = [header] + [
        step_record(step, COUNTS[step - 1], time=100.0 + step, loss=LOSSES[step - 1])
        for step in (1, 2, 3)
    ]
    _, of_log = as_run(own)
    _, of_source = run_of(JsonlReader(log, Keys()), monkeypatch, top_k=2)
    assert [entry.record for entry in of_source] == [entry.record for entry in of_log]
    assert [entry.counts(1) for entry in of_source] == [entry.counts(1) for entry in of_log]


def test_several_rows_of_prime_rl_are_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "metrics.jsonl", PRIME_RL)
    assert recognises(path)
    assert FORMATS["jsonl"].place_of(path) == path
    run, steps = run_of(JsonlReader(path, Keys()), monkeypatch)
    assert [router.name for router in run.routers] == ["all layers"]
    assert run.counts == "none"
    first = steps[0].record
    assert (first.step, first.learning_rate) == (0, 0.001)
    assert first.router.max_load == [1.75]  # the later of two readings of the same quantity
    assert steps[1].record.router.max_load == [2.25]  # MaxVio + 1


def test_the_older_max_vio_of_prime_rl_is_not_read(tmp_path: Path) -> None:
    # It leaves out the k busiest experts: it is another quantity under the name of MaxVio.
    path = written(
        tmp_path / "metrics.jsonl", [{"step": 1, "max_vio": 0.5}, {"step": 2, "loss": 1}]
    )
    assert not recognises(path)
    assert values(all_rows(JsonlReader(path, Keys()))) == [(2, "loss", None, None, 1.0)]


def test_values_that_are_not_finite_and_were_dropped_are_not_invented(tmp_path: Path) -> None:
    path = written(
        tmp_path / "m.jsonl", [{"step": 1, "loss": 2.0}, {"step": 2}, {"step": 3, "loss": 1}]
    )
    assert [row.step for row in all_rows(JsonlReader(path, Keys()))] == [1, 3]


@pytest.mark.parametrize("text", ["NaN", '"NaN"', "Infinity", '"Infinity"', "1e999"])
def test_values_that_are_not_finite_are_passed_on(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(f'{{"step": 1, "loss": {text}, "lr": 0.5}}\n')
    numbers = values(all_rows(JsonlReader(path, Keys())))
    assert not math.isfinite(numbers[0][4])
    assert numbers[1][4] == 0.5


def test_nested_objects_and_lists_are_joined_with_slashes(tmp_path: Path) -> None:
    row = {"step": 1, "moe": {"max_vio": {"layer_3": 0.5}, "load": [[1, 2], [3, 4]]}}
    path = written(tmp_path / "m.jsonl", [row])
    own = rules_of([r"tokens_per_expert=moe/load/(?P<layer>\d+)/(?P<expert>\d+)"])
    assert values(all_rows(JsonlReader(path, Keys(own)))) == [
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
    path = written(tmp_path / "m.jsonl", [{"step": step, **row} for step in (1, 2)])
    found = records(RowRecords(JsonlReader(path, Keys()), "x", "jsonl", SourceRequest()))
    assert found[0]["source"] == {"writer": "jsonl", "counts": "shares", "layer_order": "unknown"}
    run, steps = as_run(found)
    assert [router.name for router in run.routers] == ["gate 0", "gate 1", "gate 2"]
    assert [steps[0].counts(i) for i in range(3)] == [
        [1_000_000, 0],
        [750_000, 250_000],
        [500_000, 500_000],
    ]


def test_the_extreme_experts_of_automodel_are_not_taken_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By default only the five most and the five least loaded of all layers are logged.
    name = "moe_expert_utilization/layer_0_expert_"
    path = written(
        tmp_path / "m.jsonl", [{"step": s, f"{name}0": 3.0, f"{name}1": 0.1} for s in (1, 2)]
    )
    _, steps = run_of(JsonlReader(path, Keys()), monkeypatch)
    assert [entry.counts(0) for entry in steps] == [None, None]


def test_keys_with_spaces_and_prefixes_match(tmp_path: Path) -> None:
    path = written(tmp_path / "m.jsonl", [{"step": 1, "train/block 03/load imbalance": 1.5}])
    assert recognises(path)
    assert values(all_rows(JsonlReader(path, Keys()))) == [(1, "max_load", 3, None, 1.5)]


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
    (found,) = all_rows(JsonlReader(written(tmp_path / "m.jsonl", [{**row, "loss": 1}]), Keys()))
    assert (found.step, found.time) == (step, at)


@pytest.mark.parametrize("step", [-1, 2**62, 1.5, True, None, "x", [1], float("nan")])
def test_a_row_without_a_possible_step_is_counted_and_skipped(tmp_path: Path, step: Any) -> None:
    path = written(tmp_path / "m.jsonl", [{"step": step, "loss": 1}, {"step": 7, "loss": 2}])
    reader = JsonlReader(path, Keys())
    assert [row.step for row in all_rows(reader)] == [7]
    assert reader.defects.first == ["line 1: without a step from 0"]


def test_a_line_torn_by_a_killed_writer_costs_only_itself(log: Path) -> None:
    whole = plain(all_rows(JsonlReader(log, Keys())))
    first, second, third = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(first + second[:40] + second + third)
    reader = JsonlReader(log, Keys())
    assert plain(all_rows(reader)) == [whole[0], whole[2]]  # a killed writer left no line break
    assert reader.defects.first == ["line 2: not a JSON object"]


def test_a_run_log_is_not_recognised(tmp_path: Path) -> None:
    header = run_record("log", [0], [4], 2, writer="x", counts="exact")
    path = tmp_path / "metrics.jsonl"
    for record in (header, step_record(1, [[1, 1, 1, 1]]), {"kind": "event", "event": "end"}):
        path.write_bytes(encode_record({**record, **counts_row(1), "step": 1}))
        assert not recognises(path)


def test_without_a_router_reading_only_a_mapping_makes_it_a_source(tmp_path: Path) -> None:
    path = written(tmp_path / "m.jsonl", [{"step": 1, "loss": 1.0, "my/3/load": 2.0}])
    assert not recognises(path)
    assert recognises(path, rules_of([r"max_load=my/(?P<layer>\d+)/load"]))
    assert not recognises(path, rules_of([r"loss=loss"]))


def test_a_first_row_longer_than_the_head_is_recognised_by_its_keys(tmp_path: Path) -> None:
    row = {"step": 1} | {f"moe_bias/L-{i // 64}_EP-{i % 64}": 0.1 for i in range(4096)}
    assert recognises(written(tmp_path / "m.jsonl", [row]))
    assert not recognises(written(tmp_path / "n.jsonl", [{"step": 1, "x": "y" * 100_000}]))


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"\0" * 100, b"[]", b"{}", b'{"step":1}\n', b"step,loss\n1,2\n", b"\xff\xfe{}\n"],
)
def test_other_files_are_not_recognised(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    assert not recognises(path)


def test_a_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "missing"):
        with pytest.raises(OSError, match=r"regular|No such"):
            recognises(path)


def test_a_file_of_another_kind_is_refused_with_what_was_wrong(tmp_path: Path) -> None:
    path = tmp_path / "novel.txt"
    path.write_bytes(b"It was a dark and stormy night.\n" * 40_000)
    reader = JsonlReader(path, Keys())
    with pytest.raises(Unreadable, match=r"novel.txt: 1,\d+,\d+ bytes hold no JSON object.*line 1"):
        all_rows(reader)


def test_any_cut_of_a_growing_file_gives_the_same_rows(log: Path, tmp_path: Path) -> None:
    data = lines(PRIME_RL)
    log.write_bytes(data)
    whole = plain(all_rows(JsonlReader(log, Keys())))
    live = tmp_path / "live.jsonl"
    for cut in range(len(data) + 1):
        live.write_bytes(data[:cut])
        reader = JsonlReader(live, Keys())
        rows = list(reader.read().rows)
        assert len(rows) == data[:cut].count(b"\n")
        with live.open("ab") as file:
            file.write(data[cut:])
        assert plain(rows + list(reader.read().rows)) == whole, cut


def test_small_reads_give_the_same_rows_with_progress(log: Path) -> None:
    whole = plain(all_rows(JsonlReader(log, Keys())))
    reader = JsonlReader(log, Keys())
    rows = list(reader.read(10).rows)
    assert 0 < reader.offset < reader.size == log.stat().st_size
    assert not reader.exhausted
    assert plain(rows + all_rows(reader, 10)) == whole
    assert reader.offset == reader.size
    assert reader.modified == log.stat().st_mtime


def test_a_last_row_at_rest_needs_no_line_break(log: Path) -> None:
    log.write_bytes(log.read_bytes().rstrip())
    long_ago = time.time() - 60
    os.utime(log, (long_ago, long_ago))
    assert [row.step for row in all_rows(JsonlReader(log, Keys()))] == [1, 2, 3]


def test_a_replaced_file_restarts_and_a_removed_one_is_reported(log: Path) -> None:
    reader = JsonlReader(log, Keys())
    all_rows(reader)
    written(log, [{"step": 9, "loss": 0.5}])
    found = reader.read()
    assert found.restarted
    assert [row.step for row in found.rows] == [9]
    log.unlink()
    assert not reader.read().rows
    assert reader.deleted


def test_an_endless_line_costs_no_memory(tmp_path: Path) -> None:
    path = written(tmp_path / "m.jsonl", [{"step": 1, "loss": 1}])
    with path.open("ab") as file:
        file.write(b'{"step": 2, "x": "')
        for _ in range(40):
            file.write(b"y" * (1 << 20))
        file.write(b'"}\n{"step": 3, "loss": 3}\n')
    tracemalloc.start()
    reader = JsonlReader(path, Keys())
    assert [row.step for row in all_rows(reader)] == [1, 3]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 24 << 20
    assert reader.defects.first == ["line 2: longer than 8 MB, skipped"]


def test_a_long_name_of_an_object_is_not_copied_into_every_key(tmp_path: Path) -> None:
    row = {"step": 1, "loss": 1.0, "x" * 1_000_000: {str(i): i for i in range(10_000)}}
    path = written(tmp_path / "m.jsonl", [row])
    tracemalloc.start()
    assert len(all_rows(JsonlReader(path, Keys()))) == 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20


@pytest.mark.parametrize(
    "bomb", ["[" * 100_000, '{"a":' * 100_000, '{"step":1,"loss":' + "9" * 5000]
)
def test_deep_nesting_and_endless_digits_are_defects(tmp_path: Path, bomb: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(bomb + '\n{"step": 2, "loss": 1}\n')
    assert [row.step for row in all_rows(JsonlReader(path, Keys()))] == [2]
    assert not recognises(path)
