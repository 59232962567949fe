"""Lines of named numbers: JSON lines of prime-rl, AutoModel and others, and CSV of both kinds."""

import math
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.runlog import encode_record
from microscope_tui.sources import Keys, rules_of
from microscope_tui.sources.reader import Unreadable
from microscope_tui.sources.records import run_record, step_record
from microscope_tui.sources.text_rows import CsvReader, JsonlReader
from tests.sources.reading import all_rows, counts_of, header_of, translated, values
from tests.sources.sound import RUN, SOUND, csv, jsonl, lines, named, rows


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
    assert JsonlReader.recognises(path)
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
        (1, "max_vio", 3, None, 0.5),
        *((1, "tokens_per_expert", at // 2, at % 2, at + 1.0) for at in range(4)),
    ]


def test_layers_of_automodel_are_gates_of_unknown_order(tmp_path: Path) -> None:
    """AutoModel numbers layers by the sorted names of their gates: layer 10 is before layer 2."""
    loads = {0: [2.0, 0.0], 1: [1.5, 0.5], 2: [1.0, 1.0]}
    row = {
        f"moe_expert_utilization/layer_{i}_expert_{e}": load
        for i, pair in loads.items()
        for e, load in enumerate(pair)
    }
    path = written(tmp_path, *({"step": step, **row} for step in (1, 2)))
    found = translated(JsonlReader(path, Keys()))
    assert header_of(found)["source"]["layer_order"] == "unknown"
    rows = [[1_000_000, 0], [750_000, 250_000], [500_000, 500_000]]
    assert counts_of(found)[1] == {f"gate {i}": row for i, row in enumerate(rows)}


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


@pytest.mark.parametrize("prefix", ["eval", "val", "val-core", "validation", "test", "aux"])
def test_keys_of_an_evaluation_are_not_those_of_the_training(prefix: str) -> None:
    keys = Keys()
    for key in ("loss", "router/tokens_per_expert/1/2"):
        assert keys[f"{prefix}/{key}"] is None
        assert keys[f"train/{key}"] == keys[key] is not None


@pytest.mark.parametrize("step", [-1, 2**62, 1.5, True, None, "x", [1], float("nan")])
def test_a_row_without_a_possible_step_is_counted_and_skipped(tmp_path: Path, step: Any) -> None:
    path = written(tmp_path, {"step": step, "loss": 1}, {"step": 7, "loss": 2})
    reader = JsonlReader(path, Keys())
    assert [row.step for row in all_rows(reader)] == [7]
    assert reader.defects.first == ["line 1: without a step from 0"]


def test_a_loss_that_is_logged_late_does_not_resume_the_run(tmp_path: Path) -> None:
    loads = [{"step": n, "tokens_per_expert": [[3, 1]]} for n in (1, 2, 3)]
    path = written(tmp_path, *loads[:2], {"step": 1, "loss": 2.0}, loads[2])
    records = translated(JsonlReader(path, Keys()))
    assert counts_of(records) == {n: {"L0": [3, 1]} for n in (1, 2, 3)}


def test_a_list_of_counts_may_end_before_the_last_experts(tmp_path: Path) -> None:
    lists = [[3, 1], [1, 0, 0, 3], [4]]
    rows = ({"step": n, "tokens_per_expert": [row]} for n, row in enumerate(lists, 1))
    records = translated(JsonlReader(written(tmp_path, *rows), Keys()), num_experts=4)
    assert [*counts_of(records).values()] == [{"L0": row + [0] * (4 - len(row))} for row in lists]


def test_a_line_torn_by_a_killed_writer_costs_only_itself(tmp_path: Path) -> None:
    first, second, third = jsonl(RUN).splitlines(keepends=True)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(first + second[:40] + second + third)  # it left no line break
    reader = JsonlReader(path, Keys())
    assert [row.step for row in all_rows(reader)] == [1, 3]
    assert reader.defects.first == ["line 2: not a JSON object"]


def test_a_run_log_is_not_recognised(tmp_path: Path) -> None:
    header = run_record("log", [0], [4], 2, names=["L0"], writer="x", counts="exact")
    path = tmp_path / "metrics.jsonl"
    for record in (header, step_record(1, [[1, 1, 1, 1]]), {"kind": "event", "event": "end"}):
        path.write_bytes(encode_record({**record, **named(1, RUN[0]), "step": 1}))
        assert not JsonlReader.recognises(path)


def test_a_first_row_longer_than_the_head_is_recognised_by_its_keys(tmp_path: Path) -> None:
    row = {"step": 1} | {f"moe_bias/L-{i // 64}_EP-{i % 64}": 0.1 for i in range(4096)}
    assert JsonlReader.recognises(written(tmp_path, row))
    assert not JsonlReader.recognises(written(tmp_path, {"step": 1, "x": "y" * 100_000}))


def test_a_file_of_another_kind_is_refused_with_what_was_wrong(tmp_path: Path) -> None:
    path = tmp_path / "novel.txt"
    path.write_bytes(b"It was a dark and stormy night.\n" * 40_000)
    reader = JsonlReader(path, Keys())
    with pytest.raises(Unreadable, match=r"novel.txt: 1,\d+,\d+ bytes hold no JSON object.*line 1"):
        all_rows(reader)


(CSV,) = (sound for sound in SOUND if sound.form == "csv")
WIDE = csv(RUN).decode()
WINDOWS = '"' + WIDE[:-1].replace(",", '","').replace("\n", '"\r\n"') + '"\r\n'
LONG = "step,key,value\n" + "".join(
    f"{step},{key},{value}\n" for step, _, row in rows(RUN) for key, value in row.items()
)


def table(folder: Path, text: str) -> Path:
    path = folder / "metrics.csv"
    path.write_bytes(text.encode())
    return path


def read(folder: Path, text: str) -> list[tuple[int, str, int | None, int | None, float]]:
    return values(all_rows(CsvReader(table(folder, text), Keys())))


@pytest.mark.parametrize(
    "text",
    [WIDE, WIDE.replace(",", ";"), WIDE.replace(",", "\t"), LONG, "\ufeff" + WIDE, WINDOWS],
    ids=["wide", "semicolons", "tabs", "long", "byte order mark", "written by Windows"],
)
def test_wide_and_long_tables_give_the_counts_that_were_written(tmp_path: Path, text: str) -> None:
    path = table(tmp_path, text)
    assert CsvReader.recognises(path)
    assert counts_of(translated(CsvReader(path, Keys()))) == CSV.steps(RUN)


@pytest.mark.parametrize(
    "names", ["time,step", "Wall time,Step", "Timestamp,ITER", "TIME,Global_Step"]
)
def test_step_and_time_are_found_in_any_case_and_are_no_numbers(tmp_path: Path, names: str) -> None:
    own = Keys(rules_of(["max_load=.*"]))
    (row,) = all_rows(CsvReader(table(tmp_path, f"{names},x\n12.5,1,2\n"), own))
    assert (row.time, values([row])) == (12.5, [(1, "max_load", None, None, 2.0)])


def test_empty_fields_are_no_values_and_nan_is_one(tmp_path: Path) -> None:
    found = read(tmp_path, "step,loss,lr\n1,,0.5\n2,nan,\n3,-inf,x\n4,,\n")
    assert [cell[:2] for cell in found] == [(1, "learning_rate"), (2, "loss"), (3, "loss")]
    assert math.isnan(found[1][4])
    assert found[2][4] == -math.inf


def test_rows_of_another_length_are_counted_and_skipped(tmp_path: Path) -> None:
    reader = CsvReader(table(tmp_path, "step,loss\n1,2\n2\n3,4,5\nx,6\n-1,7\n4,8\n"), Keys())
    assert [row.step for row in all_rows(reader)] == [1, 4]
    assert reader.defects.count == 4
    assert reader.defects.first[0] == "line 3: 1 fields for 2 columns"


def test_a_table_sorted_by_key_is_refused_not_read_as_restarts(tmp_path: Path) -> None:
    cells = [f"{step},{key},1\n" for key in ("loss", "moe_entropy/L-0") for step in (1, 2, 3)]
    with pytest.raises(Unreadable, match="sorted by key; sort them by step"):
        read(tmp_path, "step,key,value\n" + "".join(cells))


def test_a_long_table_whose_steps_restart_is_read(tmp_path: Path) -> None:
    text = "step,key,value\n5,loss,1\n6,loss,1\n5,loss,2\n6,loss,2\n"
    assert [step for step, *_ in read(tmp_path, text)] == [5, 6, 5, 6]


def test_a_replaced_table_restarts_with_its_own_columns(tmp_path: Path) -> None:
    reader = CsvReader(table(tmp_path, "step,loss\n1,2\n2,3\n"), Keys())
    all_rows(reader)
    table(tmp_path, "lr,step\n0.5,7\n")
    found = reader.read()
    assert found.restarted
    assert values(found.rows) == [(7, "learning_rate", None, None, 0.5)]


@pytest.mark.parametrize(
    ("reader", "text"),
    [
        (JsonlReader, '{"step": 1, "my3": 2.0, "loss": 1.0}\n'),
        (CsvReader, "step,my3\n1,2\n"),
        (CsvReader, "step,key,value\n1,my3,2\n"),
    ],
)
def test_without_a_router_reading_only_a_mapping_makes_it_a_source(
    tmp_path: Path, reader: type[JsonlReader | CsvReader], text: str
) -> None:
    path = table(tmp_path, text)
    assert not reader.recognises(path)
    assert reader.recognises(path, rules_of([r"max_load=my(?P<layer>\d+)"]))
    assert not reader.recognises(path, rules_of(["loss=my3"]))


def exported(*runs: str) -> str:
    head, *rows = [line.split(",") for line in WIDE.splitlines()]
    ends = ("", "__MIN", "__MAX")
    names = [f"{run} - {key}{end}" for run in runs for key in head[1:] for end in ends]
    lines = [["Step", *names], *([step, *[x for x in row for _ in ends]] for step, *row in rows)]
    return "".join(",".join(f'"{cell}"' for cell in line) + "\n" for line in lines)


def test_an_export_of_a_chart_of_wandb_is_read_if_it_holds_one_run(tmp_path: Path) -> None:
    path = table(tmp_path, exported("sunny - sea-1"))
    assert counts_of(translated(CsvReader(path, Keys()))) == CSV.steps(RUN)
    with pytest.raises(Unreadable, match="columns of several runs: a, b; keep one"):
        read(tmp_path, exported("a", "b"))


@pytest.mark.parametrize("experts", [2, 16_000])
def test_rows_of_counts_as_the_run_log_has_them_are_known(tmp_path: Path, experts: int) -> None:
    counts = [[1, 2] * (experts // 2), [3, 4] * (experts // 2)]
    path = written(tmp_path, *({"step": s, "tokens_per_expert": counts} for s in (1, 2)))
    assert JsonlReader.recognises(path)
    found = counts_of(translated(JsonlReader(path, Keys())))
    assert found[1] == {"L0": counts[0], "L1": counts[1]}
