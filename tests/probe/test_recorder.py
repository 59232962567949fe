"""The recorder writes the format that the reader reads, and derives what counts can tell."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microscope_tui import measures
from microscope_tui.probe import RunRecorder
from microscope_tui.runlog import RunReader, StepEntry

MODEL = {"name": "m", "layers": [1, 3], "layer_names": ["L1", "L3"], "num_experts": 4, "top_k": 1}


def make(folder: Path, **changes: Any) -> RunRecorder:
    fields = {"run": "run", "planned_steps": 10, "model": MODEL, "balance": {}}
    return RunRecorder(folder / "run", **(fields | changes))


@pytest.fixture
def recorder(tmp_path: Path) -> RunRecorder:
    return make(tmp_path)


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "run" / "metrics.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def entries(folder: Path) -> list[Any]:
    return list(RunReader("run").feed((folder / "run" / "metrics.jsonl").read_bytes()))


def record(recorder: RunRecorder, **changes: Any) -> list[float | None]:
    fields = {
        "step": 1,
        "loss": 2.0,
        "tokens": 8,
        "tokens_per_expert": [[2, 2, 2, 2], [8, 0, 0, 0]],
    }
    return recorder.record_step(**(fields | changes))


def test_what_is_recorded_is_what_is_read(recorder: RunRecorder, tmp_path: Path) -> None:
    record(recorder, expert_bias=[[0.0, 0.1, -0.1, 0.0], []], router={"entropy": [1.2, None]})
    recorder.record_event(step=1, event="eval", values={"loss": 2.4})
    recorder.close(step=1, reason="finished")
    run, step, evaluation, end = entries(tmp_path)
    assert [(r.name, r.depth, r.num_experts, r.top_k) for r in run.routers] == [
        ("L1", 1, 4, 1),
        ("L3", 3, 4, 1),
    ]
    assert isinstance(step, StepEntry)
    assert step.record.router.effective_experts == [4.0, 1.0]
    assert step.record.router.dead_experts == [0, 3]
    assert step.record.router.entropy == [1.2, None]
    assert step.matrices().tokens_per_expert == [[2, 2, 2, 2], [8, 0, 0, 0]]
    assert step.matrices().expert_bias == [[0.0, 0.1, -0.1, 0.0], None]
    assert evaluation.values == {"loss": 2.4}
    assert (end.event, end.reason) == ("end", "finished")


def test_the_folder_of_a_run_may_be_a_string(tmp_path: Path) -> None:
    recorder = RunRecorder(
        str(tmp_path / "run"), run="run", planned_steps=10, model=MODEL, balance={}
    )
    record(recorder)
    recorder.close(step=1, reason="finished")
    assert [line["kind"] for line in lines(tmp_path)] == ["run", "step", "event"]


def test_the_collapse_index_of_every_router_is_returned(recorder: RunRecorder) -> None:
    assert record(recorder) == [pytest.approx(1.0), pytest.approx(0.0)]


def test_counts_and_bias_are_the_last_keys_of_a_line(recorder: RunRecorder, tmp_path: Path) -> None:
    record(recorder, learning_rate=0.1, losses={"aux": 1.0})
    recorder.sync()
    line = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[1]
    assert list(json.loads(line))[-2:] == ["expert_bias", "tokens_per_expert"]


def test_a_diverged_step_is_recorded_like_any_other(recorder: RunRecorder, tmp_path: Path) -> None:
    record(recorder, loss=math.nan, grad_norm=math.inf)
    recorder.sync()
    step = entries(tmp_path)[1]
    assert math.isnan(step.record.loss)
    assert step.record.grad_norm == math.inf


def test_counts_beyond_the_exact_range_of_fp32_stay_exact(
    recorder: RunRecorder, tmp_path: Path
) -> None:
    big = 2**24 + 1
    record(recorder, tokens=4 * big, tokens_per_expert=[[big] * 4, [4 * big, 0, 0, 0]])
    recorder.sync()
    assert entries(tmp_path)[1].matrices().tokens_per_expert[0] == [big] * 4


def test_what_counts_tell_is_what_the_measures_say(recorder: RunRecorder, tmp_path: Path) -> None:
    counts = [[1, 2, 3, 2], [8, 0, 0, 0]]
    record(recorder, tokens_per_expert=counts, router={"margin": [0.1, 0.2]})
    recorder.sync()
    told = lines(tmp_path)[1]["router"]
    assert told.pop("margin") == [0.1, 0.2]
    assert told == {k: pytest.approx(v, rel=1e-4) for k, v in measures.summarise(counts).items()}


def test_matrices_are_in_step_1_and_every_nth_line_and_summaries_in_all(tmp_path: Path) -> None:
    recorder = make(tmp_path, counts_every=4)
    for step in range(1, 10):
        record(recorder, step=step, expert_bias=[[0.1] * 4, []])
    recorder.close(step=9, reason="finished")
    steps = lines(tmp_path)[1:-1]
    for key in ("tokens_per_expert", "expert_bias"):
        assert [r["step"] for r in steps if key in r] == [1, 4, 8]
    assert {r["router"]["dead_experts"][1] for r in steps} == {3}


def test_biases_keep_four_significant_digits_and_what_is_not_finite(
    recorder: RunRecorder, tmp_path: Path
) -> None:
    record(recorder, expert_bias=[[-0.123456, 1e-7 / 3, 12345.6, 0.0], [math.nan, 1.0, 2.0, 3.0]])
    recorder.sync()
    bias = lines(tmp_path)[1]["expert_bias"]
    assert bias == [[-0.1235, 3.333e-08, 12350, 0], ["NaN", 1.0, 2.0, 3.0]]


def test_what_is_handed_over_may_be_reused_by_the_caller(
    recorder: RunRecorder, tmp_path: Path
) -> None:
    counts, bias, entropy, values = [[2] * 4, [2] * 4], [[0.5] * 4] * 2, [1.0, 1.0], {"loss": 1.0}
    for step in range(1, 200):
        record(
            recorder,
            step=step,
            tokens_per_expert=counts,
            expert_bias=bias,
            router={"entropy": entropy},
        )
        recorder.record_event(step=step, event="eval", values=values)
        counts[0][0] = bias[0][0] = entropy[0] = values["loss"] = step + 1
    recorder.close(step=199, reason="finished")
    _, *told, _ = [r for r in lines(tmp_path) if r.get("event") != "alert"]
    for step, event in zip(told[2::2], told[3::2], strict=True):
        assert step["step"] == step["tokens_per_expert"][0][0] == step["expert_bias"][0][0]
        assert step["step"] == step["router"]["entropy"][0] == event["values"]["loss"]


ARRAYS = [
    lambda rows: np.array(rows),
    lambda rows: np.array(rows, dtype=np.float64),
    lambda rows: [list(np.array(row, dtype=np.int32)) for row in rows],
    lambda rows: tuple(tuple(row) for row in rows),
]


@pytest.mark.parametrize("convert", ARRAYS, ids=["matrix", "fp64", "scalars", "tuples"])
def test_numbers_of_numpy_are_written_like_pythons(
    convert: Callable[[Any], Any], tmp_path: Path
) -> None:
    counts, bias = [[2, 2, 2, 2], [8, 0, 0, 0]], [[0.0, 0.25, -0.5, 0.0]] * 2
    recorder = make(
        tmp_path,
        model=MODEL | {"num_experts": np.int64(4), "layers": np.array([1, 3])},
        config={"folder": tmp_path, "rate": np.float32(0.5)},
    )
    record(
        recorder,
        step=np.int64(1),
        loss=np.float32(2.0),
        tokens=np.int64(8),
        tokens_per_expert=convert(counts),
        expert_bias=np.array(bias, dtype=np.float32),
        router={"entropy": np.array([0.5, 0.25], dtype=np.float32)},
        memory_bytes=np.int64(17_179_869_185),
        grad_norm=np.float64(0.5),
        losses={"aux": np.float32(1.5)},
    )
    recorder.record_event(step=np.int64(1), event="eval", values={"loss": np.float64(2.5)})
    recorder.close(step=1, reason="finished")
    head, step, event, _ = lines(tmp_path)
    assert (head["model"]["layers"], head["config"]["rate"]) == ([1, 3], 0.5)
    assert head["config"]["folder"] == str(tmp_path)
    assert (step["tokens_per_expert"], step["expert_bias"]) == (counts, bias)
    assert (step["loss"], step["tokens"], step["losses"]) == (2.0, 8, {"aux": 1.5})
    assert (step["memory_bytes"], step["grad_norm"]) == (17_179_869_185, 0.5)
    assert step["router"]["entropy"] == [0.5, 0.25]
    assert (event["step"], event["values"]) == (1, {"loss": 2.5})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tokens_per_expert": [[2] * 4]}, "tokens_per_expert has 1 entries and the model has 2"),
        ({"tokens_per_expert": [[2] * 4, [2] * 5]}, "has 5 entries for the router in layer 3"),
        ({"tokens_per_expert": [[2] * 4, []]}, "has 0 entries for the router in layer 3"),
        ({"expert_bias": [[0.1] * 4] * 3}, "expert_bias has 3 entries and the model has 2 routers"),
        ({"expert_bias": [[0.1] * 4, [0.1]]}, "which has 4 experts: hand over one per expert"),
        ({"router": {"entropy": [1.0]}}, r"\(in layers \[1, 3\]\): hand over one per router"),
    ],
)
def test_a_wrong_number_of_rows_is_refused_and_nothing_is_written(
    wrong: dict[str, Any], message: str, recorder: RunRecorder, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        record(recorder, **wrong)
    recorder.sync()
    assert [r["kind"] for r in lines(tmp_path)] == ["run"]


def test_counts_every_less_than_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"counts_every is 0: choose 1 \(every step\) or more"):
        make(tmp_path, counts_every=0)
