"""Bulk logs: large, fast to write, and still true to the format and to their truth."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bulk import bulk_lines, write_bulk
from microscope_tui import measures
from microscope_tui.commands.check.report import judge
from microscope_tui.runlog import RunFile

SMALL = {"routers": 11, "num_experts": 16, "top_k": 2, "tokens": 1024, "steps": 400, "seed": 3}


def records(**changes: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in bulk_lines(**SMALL | changes)]


def steps(**changes: Any) -> list[dict[str, Any]]:
    return [record for record in records(**changes) if record["kind"] == "step"]


def test_counts_are_possible_and_summaries_are_exactly_those_of_their_line() -> None:
    for record in steps(collapse=(4, 100)):
        rows = record["tokens_per_expert"]
        assert [len(row) for row in rows] == [SMALL["num_experts"]] * SMALL["routers"]
        assert {sum(row) for row in rows} == {record["tokens"] * SMALL["top_k"]}
        assert all(0 <= min(row) <= max(row) <= record["tokens"] for row in rows)
        summary = dict(measures.summarise(rows))
        summary["mean_entropy"] = [measures.load_entropy(row) for row in rows]
        assert {name: record["router"][name] for name in summary} == summary


def test_keys_are_in_the_order_that_a_fast_reader_expects() -> None:
    record = steps(steps=1)[0]
    assert list(record)[-3:] == ["router", "expert_bias", "tokens_per_expert"]
    assert record["expert_bias"] == [[]] * SMALL["routers"]
    assert all(len(values) == SMALL["routers"] for values in record["router"].values())


def test_steps_are_whole_and_end_as_finished() -> None:
    log = records()
    assert [r["step"] for r in log if r["kind"] == "step"] == list(range(1, SMALL["steps"] + 1))
    assert log[0]["kind"] == "run"
    assert log[-1]["event"] == "end"
    assert records(finished=False)[-1]["kind"] == "step"


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_bulk(path, **SMALL, collapse=(4, 100))
    assert path.read_bytes() == b"".join(bulk_lines(**SMALL, collapse=(4, 100)))
    assert path.read_bytes() != b"".join(bulk_lines(**SMALL | {"seed": 4}, collapse=(4, 100)))


def test_a_restart_is_in_the_log_with_other_losses() -> None:
    log = records(restarts=[(300, 201)], spikes={250: 12.0})
    assert [r["resumed_at_step"] for r in log if r["kind"] == "run"] == [None, 201]
    losses = [(r["step"], r["loss"]) for r in log if r["kind"] == "step"]
    assert losses.count((250, 12.0)) == 1  # a spike is not repeated
    assert [step for step, _ in losses] == [*range(1, 301), *range(201, 401)]
    assert len(set(losses)) == len(losses)


@pytest.mark.parametrize("router", [0, 4, 10])
def test_the_verdict_on_a_bulk_log_is_its_collapse(tmp_path: Path, router: int) -> None:
    path = tmp_path / "metrics.jsonl"
    write_bulk(path, **SMALL, collapse=(router, 200))
    verdict = judge(RunFile("run", path, 0.0))
    assert (verdict.problem, verdict.last_step) == (None, SMALL["steps"])
    ((finding, _),) = verdict.findings
    assert {episode.router_index for episode in finding.episodes} == {router}
    assert 200 <= finding.onset < 260
