"""Logs of actors without a common group: what is summed, what is waited for, what is left out."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.runlog import RunFile
from microscope_tui.sources import Search
from microscope_tui.sources.parts import MergedRun, merge
from microscope_tui.watch import RunWatch
from tests.conftest import Call, header, open_log, step
from tests.hostile.logs import hostile_log
from tests.hostile.outcome import hurts

OLD = 1e9
A = [1, 2, 3, 4]


def row(number: int, scale: int, **changes: Any) -> dict[str, Any]:
    return step(number, [[2 * scale] * 8] * 3, 8 * scale, **{"loss": float(scale)} | changes)


def steps(*numbers: int, scale: int = 1) -> list[Any]:
    return [row(number, scale) for number in numbers]


def write(folder: Path, logs: dict[str, list[Any]], modified: float | None = OLD) -> None:
    for name, records in logs.items():
        path = folder / "rl" / name / "metrics.jsonl"
        begins = [] if path.exists() else [header(run="rl", part=name)]
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.writelines(json.dumps(record) + "\n" for record in [*begins, *records])
        if modified is not None:
            os.utime(path, (modified, modified))


def watched(folder: Path) -> RunWatch:
    (run,) = Search(folder).runs()
    watch = RunWatch(run, patient=True)
    watch.read_all()
    return watch


def summed(watch: RunWatch) -> dict[int, int | None]:
    lines = map(json.loads, watch.source.path.read_bytes().splitlines())
    return {line["step"]: line["tokens"] for line in lines if line["kind"] == "step"}


CASES: dict[str, tuple[list[Any], list[int], str]] = {
    "all": (steps(*A), [16] * 4, ""),
    "silent": (steps(1, 2), [16, 16, 8, 8], "b is not summed: no step after 2 for 300 s"),
    "restarted": ([*steps(1, 2, 3), *steps(2, 3, 4, scale=2)], [16, 24, 24, 24], ""),
    "skipped": (steps(1, 2, 4), [16, 16, 16], "left out if it had begun: 1"),
    "later": (steps(3, 4), [8, 8, 16, 16], "left out if it had begun: 2"),
    "shares": ([header(run="rl", part="b", source={"counts": "shares"})], [8] * 4, "it has shares"),
    "header": ([], [8] * 4, "b is not summed: no step after 0 for 300 s"),
    "misfit": ([header(run="rl", part="b", model={"top_k": 1})], [8] * 4, "b is not summed: anoth"),
    "restarts": (steps(1, 2) * 1002, [8] * 4, "b is not summed: it restarts more than"),
    "version": ([header(format_version=2), *steps(*A)], [8] * 4, "b is not summed: format_ver"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_part_is_summed_as_far_as_it_holds(case: str, tmp_path: Path) -> None:
    other, tokens, remark = CASES[case]
    write(tmp_path, {"a": steps(*A), "b": other})
    watch = watched(tmp_path)
    assert [*summed(watch).values()] == tokens
    assert remark in watch.source.missing
    assert bool(remark) is bool(watch.source.missing)


def test_every_number_has_its_rule(tmp_path: Path) -> None:
    a, b = row(1, 1, grad_norm=2.0, expert_bias=[[0.5] * 8] * 3), row(1, 3, grad_norm="NaN")
    a["router"] |= {"entropy": [1, 1, 1], "max_logit": [1, 5, 2], "still_tensors": [1, 2, 0]}
    b["router"] |= {"entropy": [2, 2, None], "max_logit": [3, 4, 2], "still_tensors": [0, 3, 0]}
    a |= {"router.step": 5, ".step": 6, "tokens_per_s": 9.0}
    b |= {"losses": 7}
    b["tokens_per_expert"][1] = None
    unknown = [row(2, scale) | {"tokens": None} for scale in (1, 3)]
    write(tmp_path, {"a": [a, unknown[0]], "b": [b, unknown[1]]})
    first, second = watched(tmp_path).scan.recent
    record, router = first.record, first.record.router
    assert record.loss == pytest.approx((1 * 8 + 3 * 24) / 32)
    assert (record.tokens, record.tokens_per_s, str(record.grad_norm)) == (32, None, "nan")
    assert router.entropy == pytest.approx([1.75, 1.75, 1])
    assert (router.max_logit, router.still_tensors) == ([3, 5, 2], [0, 2, 0])
    assert (first.counts(0), first.counts(1), first.biases(2)) == ([8] * 8, None, [0.5] * 8)
    assert (second.record.loss, second.record.tokens) == (2, None)


def test_a_live_sum_names_the_late_part_and_follows_new_and_restarted_ones(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microscope_tui.sources.parts.LOOK_S", 0.0)
    write(tmp_path, {"a": steps(1, 2, 3), "b": steps(1, 2)}, modified=None)
    watch = watched(tmp_path)
    assert [*summed(watch)] == [1, 2]
    assert watch.source.parts == "1 of 2 parts at step 3, without b"
    assert "note: 1 of 2 parts at step 3; rl/b is at step 2" in call("check", tmp_path)[1]
    assert "1 of 2 parts at step 3, without b" in call("snapshot", tmp_path)[1]
    write(tmp_path, {"b": steps(1, 2, scale=3), "c": steps(1, 2)}, modified=None)
    watch.read_all()
    assert summed(watch) == {1: 40, 2: 40}
    shutil.rmtree(tmp_path / "rl/c")
    write(tmp_path, {"b": steps(3), "c": steps(1, 2, 3, scale=5)}, modified=None)
    watch.read_all()
    assert summed(watch) == {1: 72, 2: 72, 3: 56}


def test_a_part_alone_is_a_run_and_a_merge_is_imported_without_what_no_longer_holds(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microscope_tui.sources.parts.MOST_WAITING", 0)
    many = range(1, 2000)  # more than is read ahead
    write(tmp_path, {"a": steps(*many), "b": [*steps(*many), *steps(*many, scale=3)]})
    (run,) = Search(tmp_path / "rl" / "a").runs()
    assert not isinstance(run, MergedRun)
    logs = [tmp_path / name for name in ("rl/a", "rl/b", "rl/a")]
    assert call("import", *logs, tmp_path / "sum", "--merge")[0] == 0
    assert call("check", "--format-only", tmp_path / "sum")[0] == 0
    assert summed(watched(tmp_path / "sum")) == dict.fromkeys(many, 32)
    head, *rest = (tmp_path / "sum/rl/metrics.jsonl").read_bytes().splitlines()
    assert "part" not in json.loads(head)
    assert len(rest) == len(many)


@pytest.mark.parametrize(("odd", "code"), [("a", 3), ("b", 0)])
def test_fewer_parts_than_half_give_no_verdict(
    call: Call, tmp_path: Path, odd: str, code: int
) -> None:
    uneven = [step(number, [[300, 212] * 4] * 3, 1024) for number in range(1, 150)]
    write(tmp_path, dict.fromkeys("abc", uneven))
    log = tmp_path / "rl" / odd / "metrics.jsonl"
    log.write_text(log.read_text().replace('"L3"', '"odd"'))
    found, text, _ = call("check", tmp_path)
    assert found == code
    assert ("only 1 of 3 parts are summed: those that fit rl/a" in text) is (code == 3)


def test_an_empty_log_of_a_part_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"a": steps(1)})
    (tmp_path / "rl/b").mkdir()
    (tmp_path / "rl/b/metrics.jsonl").touch()
    assert watched(tmp_path).source.missing == f"{tmp_path}/rl/b/metrics.jsonl holds no record"


def test_hostile_parts_are_read_like_any_log(tmp_path: Path) -> None:
    for seed in range(60):
        logs = [tmp_path / f"{seed}-{number}.jsonl" for number in range(3)]
        for number, log in enumerate(logs):
            log.write_bytes(hostile_log(seed + number // 2))  # two are alike
            os.utime(log, (OLD, OLD))
        watch = RunWatch(merge(tmp_path, [RunFile(log.stem, log, OLD) for log in logs]))
        watch.read_all()
        assert watch.error is None or hurts(watch.error) is None


def test_the_sum_ends_once_every_part_has_ended(tmp_path: Path) -> None:
    end = {"kind": "event", "event": "end", "step": 2, "reason": "finished"}
    write(tmp_path, {"a": [*steps(1, 2), end], "b": steps(1, 2)})
    watch = watched(tmp_path)
    assert b"finished" not in watch.source.path.read_bytes()
    write(tmp_path, {"b": [end]}, None)
    watch.read_all()
    assert b"finished" in watch.source.path.read_bytes()


def test_a_late_part_is_summed_again_once_it_writes(tmp_path: Path) -> None:
    write(tmp_path, {"a": steps(1, 2, 3), "b": steps(1)})
    watch = watched(tmp_path)
    assert summed(watch) == {1: 16, 2: 8, 3: 8}
    write(tmp_path, {"b": steps(2, 3)})
    watch.read_all()
    assert summed(watch) == {1: 16, 2: 16, 3: 16}


def test_named_runs_are_summed_whatever_their_names_and_one_that_differs_is_an_error(
    call: Call, tmp_path: Path
) -> None:
    logs = [tmp_path / f"{name}/metrics.jsonl" for name in "bac"]
    for log, top_k in zip(logs, (2, 2, 1), strict=True):
        log.parent.mkdir()
        records = [header(run=log.parent.name, model={"top_k": top_k}), *steps(1, 2)]
        log.write_text("".join(json.dumps(record) + "\n" for record in records))
        os.utime(log, (OLD, OLD))
    assert call("import", *logs[:2], tmp_path / "sum", "--merge")[0] == 0
    assert summed(open_log(tmp_path / "sum/b/metrics.jsonl")) == {1: 16, 2: 16}
    code, _, err = call("import", *logs, tmp_path / "other", "--merge")
    assert code == 3
    assert "c is not summed" in err
