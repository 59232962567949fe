"""The recorder writes the format that the reader reads, and derives what follows from counts."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from microscope_tui import measures
from microscope_tui.probe import RunRecorder
from microscope_tui.runlog import RunReader, StepEntry
from tests.probe.replay import written

MODEL = {"name": "m", "layers": [1, 3], "layer_names": ["L1", "L3"], "num_experts": 4, "top_k": 1}
COUNTS = [[1, 2, 3, 2], [8, 0, 0, 0]]


def make(folder: Path, **changes: Any) -> RunRecorder:
    return RunRecorder(str(folder / "run"), **({"model": MODEL} | changes))


def record(recorder: RunRecorder, **changes: Any) -> list[float | None]:
    fields = {"step": 1, "loss": 2.0, "tokens": 8, "tokens_per_expert": COUNTS}
    return recorder.record_step(**(fields | changes))


def logged(folder: Path, **step: Any) -> dict[str, Any]:
    recorder = make(folder)
    record(recorder, **step)
    recorder.close(step=1, reason="finished")
    return written(folder)[1]


def test_what_is_recorded_is_what_is_read(tmp_path: Path) -> None:
    recorder = make(tmp_path)
    record(recorder, expert_bias=[[0.0, 0.1, -0.1, 0.0], []], router={"entropy": [1.2, None]})
    big = 2**24 + 1  # beyond the exact range of fp32
    counts = [[big] * 4, [4 * big, 0, 0, 0]]
    record(recorder, step=2, tokens=4 * big, tokens_per_expert=counts, loss=math.nan)
    even = [[2, 2, 2, 2], [8, 0, 0, 0]]
    indices = record(recorder, step=3, grad_norm=math.inf, tokens_per_expert=even)
    assert indices == pytest.approx([1.0, 0.0])
    recorder.record_event(step=3, event="eval", values={"loss": 2.4})
    recorder.close(step=3, reason="finished")
    entries = list(RunReader("run").feed((tmp_path / "run" / "metrics.jsonl").read_bytes()))
    run, evaluation, end = entries[0], *entries[-2:]
    routers = [(r.name, r.depth, r.num_experts, r.top_k) for r in run.routers]
    assert routers == [("L1", 1, 4, 1), ("L3", 3, 4, 1)]
    step, diverged, infinite = (one for one in entries if isinstance(one, StepEntry))
    assert step.record.router.effective_experts == pytest.approx([3.7467, 1.0], abs=1e-4)
    assert step.record.router.dead_experts == [0, 3]
    assert step.record.router.entropy == [1.2, None]
    assert step.matrices().tokens_per_expert == COUNTS
    assert step.matrices().expert_bias == [[0.0, 0.1, -0.1, 0.0], None]
    assert math.isnan(diverged.record.loss)
    assert diverged.matrices().tokens_per_expert == counts
    assert infinite.record.grad_norm == math.inf
    assert evaluation.values == {"loss": 2.4}
    assert (end.event, end.reason) == ("end", "finished")


def test_counts_are_last_in_a_line_and_summaries_those_of_the_measures(tmp_path: Path) -> None:
    line = logged(tmp_path, learning_rate=0.1, router={"margin": [0.1, 0.2]})
    assert list(line)[-2:] == ["expert_bias", "tokens_per_expert"]
    router = line["router"]
    assert router.pop("margin") == [0.1, 0.2]
    assert router == {k: pytest.approx(v, rel=1e-4) for k, v in measures.summarise(COUNTS).items()}


def test_a_router_that_was_not_counted_has_no_summaries(tmp_path: Path) -> None:
    line = logged(tmp_path, tokens_per_expert=[None, COUNTS[1]])
    assert line["tokens_per_expert"] == [None, COUNTS[1]]
    known = measures.summarise(COUNTS[1:])
    assert line["router"] == {k: [None, *map(pytest.approx, v)] for k, v in known.items()}


def test_matrices_are_in_step_1_and_every_nth_line_and_summaries_in_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"counts_every is 0: choose 1 \(every step\) or more"):
        make(tmp_path, counts_every=0)
    recorder = make(tmp_path, counts_every=4)
    for step in range(1, 10):
        record(recorder, step=step, expert_bias=[[0.1] * 4, []])
    recorder.close(step=9, reason="finished")
    steps = written(tmp_path)[1:-1]
    for key in ("tokens_per_expert", "expert_bias"):
        assert [r["step"] for r in steps if key in r] == [1, 4, 8]
    assert {r["router"]["dead_experts"][1] for r in steps} == {3}


def test_biases_keep_four_significant_digits_and_what_is_not_finite(tmp_path: Path) -> None:
    bias = [[-0.123456, 1e-7 / 3, 12345.6, 0.0], [math.nan, 1.0, 2.0, 3.0]]
    expected = [[-0.1235, 3.333e-08, 12350, 0], ["NaN", 1.0, 2.0, 3.0]]
    assert logged(tmp_path, expert_bias=bias)["expert_bias"] == expected


def test_arguments_may_be_reused_by_the_caller(tmp_path: Path) -> None:
    recorder = make(tmp_path)
    counts, bias, entropy, values = [[2] * 4, [2] * 4], [[0.5] * 4] * 2, [1.0, 1.0], {"loss": 1.0}
    router = {"entropy": entropy}
    for step in range(1, 200):
        record(recorder, step=step, tokens_per_expert=counts, expert_bias=bias, router=router)
        recorder.record_event(step=step, event="eval", values=values)
        counts[0][0] = bias[0][0] = entropy[0] = values["loss"] = step + 1
    recorder.close(step=199, reason="finished")
    _, *lines, _ = [line for line in written(tmp_path) if line.get("event") != "alert"]
    for step, event in zip(lines[2::2], lines[3::2], strict=True):
        assert step["step"] == step["tokens_per_expert"][0][0] == step["expert_bias"][0][0]
        assert step["step"] == step["router"]["entropy"][0] == event["values"]["loss"]


ARRAYS: dict[str, Callable[[Any], Any]] = {
    "matrix": np.array,
    "scalars": lambda rows: [list(np.array(row, dtype=np.int32)) for row in rows],
    "tuples": lambda rows: tuple(tuple(row) for row in rows),
    "whole fp32": lambda rows: [torch.tensor(row, dtype=torch.float32) for row in rows],
    "scalars of torch": lambda rows: [list(torch.tensor(row)) for row in rows],
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_numbers_of_numpy_are_written_like_pythons(kind: str, tmp_path: Path) -> None:
    bias = [[0.0, 0.25, -0.5, 0.0]] * 2
    recorder = make(
        tmp_path,
        model=MODEL | {"num_experts": np.int64(4), "layers": np.array([1, 3])},
        config={"folder": tmp_path, "rate": np.float32(0.5)},
    )
    numbers: dict[str, Any] = {"step": np.int64(1), "loss": np.float32(2.0), "tokens": np.int64(8)}
    numbers |= {"memory_bytes": np.int64(17_179_869_185), "losses": {"aux": np.float32(1.5)}}
    numbers["router"] = {"entropy": np.array([0.5, 0.25], dtype=np.float32)}
    numbers["expert_bias"] = np.array(bias, dtype=np.float32)
    record(recorder, **numbers, tokens_per_expert=ARRAYS[kind](COUNTS))
    recorder.record_event(step=np.int64(1), event="eval", values={"loss": np.float64(2.5)})
    recorder.close(step=1, reason="finished")
    head, step, event, _ = written(tmp_path)
    assert (head["model"]["layers"], head["config"]["rate"]) == ([1, 3], 0.5)
    assert head["config"]["folder"] == str(tmp_path)
    assert (step["tokens_per_expert"], step["expert_bias"]) == (COUNTS, bias)
    assert (step["loss"], step["tokens"], step["losses"]) == (2.0, 8, {"aux": 1.5})
    assert (step["memory_bytes"], step["router"]["entropy"]) == (17_179_869_185, [0.5, 0.25])
    assert (event["step"], event["values"]) == (1, {"loss": 2.5})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tokens_per_expert": [[2] * 4]}, "tokens_per_expert has 1 entries and the model has 2"),
        ({"tokens_per_expert": [[2] * 4, [2] * 5]}, "has 5 entries for the router in layer 3"),
        ({"tokens_per_expert": [[2] * 4, []]}, "has 0 entries for the router in layer 3"),
        ({"expert_bias": [[0.1] * 4] * 3}, "expert_bias has 3 entries and the model has 2 routers"),
        ({"expert_bias": [[0.1] * 4, [0.1]]}, "which has 4 experts: pass one per expert"),
        ({"router": {"entropy": [1.0]}}, r"\(in layers \[1, 3\]\): pass one per router"),
        ({"router": {"entropy": 1.0}}, "entropy has 1 entries and the model has 2 routers"),
        ({"tokens_per_expert": [8, 8]}, "has 1 entries for the router in layer 1"),
        *(
            ({"tokens_per_expert": [None, [1, n, 2, 3]]}, rf"has {n} for expert 1 .* layer 3: pass")
            for n in (0.125, math.nan, math.inf, True, -1, None)
        ),
    ],
)
def test_wrong_lengths_and_values_are_refused_and_nothing_is_written(
    wrong: dict[str, Any], message: str, tmp_path: Path
) -> None:
    recorder = make(tmp_path)
    with pytest.raises(ValueError, match=message):
        record(recorder, **wrong)
    recorder.sync()
    assert [line["kind"] for line in written(tmp_path)] == ["run"]


def test_a_model_that_is_not_described_is_refused_before_a_file_is_made(tmp_path: Path) -> None:
    for wrong in (MODEL | {"layers": 2}, MODEL | {"top_k": None}, torch.nn.Linear(1, 1)):
        with pytest.raises(ValueError, match=rf"{re.escape(str(wrong))}: pass a dict with layers"):
            make(tmp_path, model=wrong)
    with pytest.raises(ValueError, match="num_experts has 1 entries and the model has 2 routers"):
        make(tmp_path, model=MODEL | {"num_experts": [4]})
    assert not any(tmp_path.iterdir())


def test_the_name_of_the_run_its_plan_and_its_balance_are_optional(tmp_path: Path) -> None:
    RunRecorder(tmp_path / "run", model=MODEL).close(step=0, reason="stopped")
    head = written(tmp_path)[0]
    assert (head["run"], head["planned_steps"], head["balance"]) == ("run", None, {})
