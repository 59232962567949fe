"""The recorder writes the format that the reader reads, and derives what counts can tell."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.probe.recorder import RunRecorder
from microscope_tui.runlog.reader import RunReader, StepEntry

MODEL = {"name": "m", "layers": [1, 3], "layer_names": ["L1", "L3"], "num_experts": 4, "top_k": 1}


@pytest.fixture
def recorder(tmp_path: Path) -> RunRecorder:
    return RunRecorder(tmp_path / "run", run="run", planned_steps=10, model=MODEL, balance={})


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


def test_the_collapse_index_of_every_router_is_returned(recorder: RunRecorder) -> None:
    assert record(recorder) == [pytest.approx(1.0), pytest.approx(0.0)]


def test_counts_and_bias_are_the_last_keys_of_a_line(recorder: RunRecorder, tmp_path: Path) -> None:
    record(recorder, learning_rate=0.1, losses={"aux": 1.0})
    line = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[1]
    assert list(json.loads(line))[-2:] == ["expert_bias", "tokens_per_expert"]


def test_a_diverged_step_is_recorded_like_any_other(recorder: RunRecorder, tmp_path: Path) -> None:
    record(recorder, loss=math.nan, grad_norm=math.inf)
    step = entries(tmp_path)[1]
    assert math.isnan(step.record.loss)
    assert step.record.grad_norm == math.inf


def test_counts_beyond_the_exact_range_of_fp32_stay_exact(
    recorder: RunRecorder, tmp_path: Path
) -> None:
    big = 2**24 + 1
    record(recorder, tokens=4 * big, tokens_per_expert=[[big] * 4, [4 * big, 0, 0, 0]])
    assert entries(tmp_path)[1].matrices().tokens_per_expert[0] == [big] * 4
