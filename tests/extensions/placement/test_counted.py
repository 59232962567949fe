"""The counts of a run as they are read for a placement."""

from pathlib import Path
from typing import Any

import pytest

from microscope_tui.runlog import find_runs
from microscope_tui.watch import counted
from microscope_tui.watch.counted import NoCounts, read_counts
from tests.conftest import header, step

MODEL = {"layers": [0, 3], "layer_names": ["a", "b"], "num_experts": 2, "top_k": 1}


def read(write_log: Any, *records: dict[str, Any]) -> counted.Counts:
    path: Path = write_log(list(records))
    (run,) = find_runs(path)
    return read_counts(run)


def test_steps_that_a_restart_supersedes_are_left_out(write_log: Any) -> None:
    counts = [[[n, 10 - n], [5, 5]] for n in range(6)]
    steps = [step(n, counts[n], 10) for n in (1, 2, 3)]
    again = [header(model=MODEL, resumed_at_step=2), step(2, counts[5], 10)]
    found = read(write_log, header(model=MODEL), *steps, *again)
    assert found.steps.tolist() == [1, 2]
    assert found.layers[0].counts.tolist() == [1, 9, 5, 5]
    assert [column.tolist() for column in found.layers[0].columns(range(1, 2))] == [[5], [5]]


def test_steps_and_layers_without_counts_are_skipped_and_a_missing_row_is_0(write_log: Any) -> None:
    records = [{"kind": "step", "step": 1}, step(2, [[1, 9], []], 10), step(4, [[], []], 10)]
    found = read(write_log, header(model=MODEL), *records)
    assert [layer.router.name for layer in found.layers] == ["a"]
    assert found.steps.tolist()[0] == 2
    assert found.layers[0].counts.tolist()[:2] == [1, 9]


def test_a_long_run_keeps_every_second_step_and_says_so(
    write_log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counted, "MOST_COUNTS", 1_800)  # 10 steps
    records = [step(n, [[n, 0], [0, n]], n) for n in range(1, 36)]
    about = {"source": {"counts": "shares"}}
    found = read(write_log, header(model=MODEL | {"capacity_factor": 2}, **about), *records)
    assert found.steps.tolist() == list(range(4, 36, 4))
    assert found.layers[1].counts.tolist()[1::2] == found.steps.tolist()
    assert [note.partition(":")[0] for note in found.notes] == [
        "the counts are shares",
        "with a capacity ranks wait for less",
        "a long run",
    ]


def test_a_run_without_counts_says_what_is_missing(write_log: Any) -> None:
    with pytest.raises(NoCounts, match="tokens_per_expert"):
        read(write_log, header(model=MODEL), {"kind": "step", "step": 1})
    (run,) = find_runs(write_log([header(model=MODEL)]))
    run.path.unlink()
    with pytest.raises(NoCounts, match="no run now"):
        read_counts(run)
