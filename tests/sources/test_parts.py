"""Logs of actors without a common group: what is summed, what is waited for, what is left out."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.runlog import RunFile
from microscope_tui.sources import MergedRun, Search, merge
from microscope_tui.watch import RunWatch
from tests.conftest import Call, header, step
from tests.hostile.logs import hostile_log
from tests.hostile.outcome import hurts

OLD = 1e9


def row(number: int, scale: int, **changes: Any) -> dict[str, Any]:
    changes = {"loss": float(scale)} | changes
    return step(number, [[2 * scale] * 8] * 3, 8 * scale, **changes)


def steps(*numbers: int, scale: int = 1) -> list[Any]:
    return [row(number, scale) for number in numbers]


def end(number: int, reason: str = "finished") -> list[Any]:
    return [{"kind": "event", "event": "end", "step": number, "reason": reason}]


def write(folder: Path, logs: dict[str, list[Any]], modified: float | None = OLD) -> None:
    """Append to the log of every part."""
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
    """The tokens of every step that holds, by its number."""
    source, found = watch.source, {}
    for line in os.pread(os.open(source.path, os.O_RDONLY), 1 << 20, 0).splitlines():
        record = json.loads(line)
        if (again := record.get("resumed_at_step")) is not None:
            found = {number: tokens for number, tokens in found.items() if number < again}
        if record["kind"] == "step":
            found[record["step"]] = record["tokens"]
    return found


A = [1, 2, 3, 4]
OTHER = header(run="rl", part="b", model={"top_k": 1})
CASES: dict[str, tuple[list[Any], list[int], str]] = {
    "all": (steps(*A), [16] * 4, ""),
    "early": ([*steps(1, 2), *end(2)], [16, 16, 8, 8], "b is at step 2"),
    "silent": (steps(1, 2), [16, 16, 8, 8], "b is behind at step 2"),
    "resumed": ([*steps(1, 2), *end(2), *steps(3, 4)], [16] * 4, ""),
    "twice": ([*steps(1, 2), row(2, 5), *steps(3, 4)], [16] * 4, ""),
    "restarted": ([*steps(1, 2, 3), *steps(2, 3, 4, scale=2)], [16, 24, 24, 24], ""),
    "skipped": (steps(1, 2, 4), [16, 16, 16], "b lacks 1 steps of the others"),
    "later": (steps(3, 4), [8, 8, 16, 16], ""),
    "misfit": ([OTHER, *steps(*A)], [8] * 4, "b is not summed: another model begins"),
    "version": ([header(format_version=2), *steps(*A)], [8] * 4, "b is not summed: format_ver"),
    "surrogate": ([header(config={"a": "\ud800"}), *steps(*A)], [8] * 4, "b is not summed"),
    "shares": ([header(run="rl", part="b", source={"counts": "shares"})], [8] * 4, "b is not"),
    "torn": ([*steps(1, 2), "{"], [16, 16, 8, 8], "b is behind at step 2"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_part_is_summed_as_far_as_it_holds(case: str, tmp_path: Path) -> None:
    other, tokens, remark = CASES[case]
    write(tmp_path, {"a": [*steps(*A), *end(4)], "b": other})
    watch = watched(tmp_path)
    assert [*summed(watch).values()] == tokens
    assert remark in watch.source.missing
    assert watch.source.parts == ("1 of 2 parts at step 4" if remark and case != "skipped" else "")


def test_losses_are_weighted_by_tokens_and_norms_are_the_largest(tmp_path: Path) -> None:
    write(tmp_path, {"a": [row(1, 1, grad_norm=2.0)], "b": [row(1, 3, grad_norm=4.0)]})
    latest = watched(tmp_path).latest
    assert latest is not None
    assert latest.record.loss == pytest.approx((1 * 8 + 3 * 24) / 32)
    assert latest.record.grad_norm == 4.0
    assert latest.counts(0) == [8] * 8


def test_a_live_sum_waits_for_the_slowest_part_and_then_names_it(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"a": steps(1, 2, 3), "b": steps(1, 2)}, modified=None)
    watch = watched(tmp_path)
    assert [*summed(watch)] == [1, 2]
    assert watch.source.parts == "1 of 2 parts at step 3"
    assert "note: 1 of 2 parts at step 3; b is at step 2" in call("check", tmp_path)[1]
    assert "1 of 2 parts at step 3" in call("snapshot", tmp_path)[1]
    monkeypatch.setattr("microscope_tui.sources.parts.LAG_S", 0.0)
    watch.read_all()
    assert summed(watch) == {1: 16, 2: 16, 3: 8}
    assert "b is behind at step 2" in watch.source.missing
    write(tmp_path, {"a": steps(4), "b": steps(3, 4)}, modified=None)
    watch.read_all()
    assert summed(watch) == {1: 16, 2: 16, 3: 8, 4: 16}
    assert watch.source.missing == ""


@pytest.mark.parametrize("first", "ab")
def test_a_restart_of_all_parts_is_one_of_the_sum(first: str, tmp_path: Path) -> None:
    second = "b" if first == "a" else "a"
    write(tmp_path, {"a": steps(1, 2, 3, 4), "b": steps(1, 2, 3)}, modified=None)
    watch = watched(tmp_path)
    for name in (first, second):
        write(tmp_path, {name: steps(2, 3, scale=2)})  # the file server's clock is behind
        watch.read_all()
    assert summed(watch) == {1: 16, 2: 32, 3: 32}


def test_a_part_that_alone_repeats_steps_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"a": steps(1, 2, 3), "b": steps(1, 2, 3)}, modified=None)
    watch = watched(tmp_path)
    write(tmp_path, {"a": steps(4), "b": steps(2, 3, 4, scale=2)}, modified=None)
    watch.read_all()
    assert [*summed(watch)] == [1, 2, 3]
    monkeypatch.setattr("microscope_tui.sources.parts.LAG_S", 0.0)
    watch.read_all()
    assert summed(watch) == {1: 16, 2: 16, 3: 16, 4: 24}


def test_a_new_part_is_summed_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microscope_tui.sources.parts._LOOK_S", 0.0)
    write(tmp_path, {"a": steps(1, 2)})
    watch = watched(tmp_path)
    write(tmp_path, {"b": steps(1, 2)})
    watch.read_all()
    assert summed(watch) == {1: 16, 2: 16}


def test_a_part_may_be_opened_alone_and_counts_once(call: Call, tmp_path: Path) -> None:
    write(tmp_path, {"a": steps(1), "b": steps(1)})
    (run,) = Search(tmp_path / "rl" / "a").runs()
    assert not isinstance(run, MergedRun)
    shutil.copytree(tmp_path / "rl/a", tmp_path / "rl/c")
    log = tmp_path / "rl/c/metrics.jsonl"
    log.write_text(log.read_text().replace('"run": "rl"', '"run": "other"'))
    assert len(Search(tmp_path).runs()) == 2
    shutil.rmtree(log.parent)
    shutil.copytree(tmp_path / "rl/a", tmp_path / "copy")
    logs = [tmp_path / name for name in ("rl/a", "copy", "rl/a", "rl/b")]
    code, _, err = call("import", *logs, tmp_path / "sum", "--merge")
    assert code == 0
    assert "a is not summed" in err
    assert [*summed(watched(tmp_path / "sum")).values()] == [16]


@pytest.mark.parametrize("reason", ["finished", "failed"])
def test_the_sum_ends_with_its_last_part(reason: str, tmp_path: Path) -> None:
    write(tmp_path, {"a": [*steps(1), *end(1, reason)], "b": steps(1)})
    watch = watched(tmp_path)
    assert watch.scan.end is None
    write(tmp_path, {"b": [*steps(2), *end(2)]})
    watch.read_all()
    assert watch.scan.end is not None
    assert watch.scan.end.reason == reason


def test_a_part_far_ahead_is_not_read_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microscope_tui.sources.parts.MOST_WAITING", 1000)
    write(tmp_path, {"a": steps(*range(1, 4000)), "b": steps(1)}, modified=None)
    watch = watched(tmp_path)
    assert watch.source.offset < 1 << 20 < watch.source.size


def test_hostile_parts_are_read_like_any_log(tmp_path: Path) -> None:
    for seed in range(60):
        logs = [tmp_path / f"{seed}-{number}.jsonl" for number in range(3)]
        for number, log in enumerate(logs):
            log.write_bytes(hostile_log(seed + number // 2))  # two are alike
            os.utime(log, (OLD, OLD))
        run = merge(tmp_path, [RunFile(log.stem, log, OLD) for log in logs])
        watch = RunWatch(run, patient=True)
        watch.read_all()
        assert watch.error is None or hurts(watch.error) is None
