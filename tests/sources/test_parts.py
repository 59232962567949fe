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
    lines = map(json.loads, watch.source.path.read_bytes().splitlines())
    return {line["step"]: line["tokens"] for line in lines if line["kind"] == "step"}


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
    write(tmp_path, {"a": [*steps(*A), *end(4)], "b": other}, OLD if remark else None)
    watch = watched(tmp_path)
    assert [*summed(watch).values()] == tokens
    assert remark in watch.source.missing
    assert watch.source.parts == ("1 of 2 parts at step 4" if remark and case != "skipped" else "")


def test_every_number_has_its_rule(tmp_path: Path) -> None:
    a, b = row(1, 1, grad_norm=2.0, expert_bias=[[0.5] * 8] * 3), row(1, 3, grad_norm="NaN")
    a["router"] |= {"entropy": [1, 1, 1], "max_logit": [1, 5, 2], "still_tensors": [1, 2, 0]}
    a["router"] |= {"z_loss": ["NaN", 1, 1], "tokens": [8, 8, 16], "margin": [1]}
    b["router"] |= {"entropy": [2, 2, 2], "max_logit": [3, 4, 2], "still_tensors": [0, 3, 0]}
    b["router"] |= {"z_loss": [1, 1, 1], "unrouted": [1, 0, 0]}
    a |= {"router.step": 5, ".step": 6, "tokens_per_s": 9.0}
    b["losses"] = 7
    b["tokens_per_expert"][1] = None
    unknown = [row(2, scale) | {"tokens": None} for scale in (1, 3)]
    write(tmp_path, {"a": [a, unknown[0]], "b": [b, unknown[1]]})
    first, second = watched(tmp_path).scan.recent
    record, router = first.record, first.record.router
    assert record.loss == pytest.approx((1 * 8 + 3 * 24) / 32)
    assert (record.tokens, record.tokens_per_s, str(record.grad_norm)) == (32, None, "nan")
    assert router.entropy == pytest.approx([1.75, 1.75, 1.6])
    assert (router.max_logit, router.still_tensors) == ([3, 5, 2], [0, 2, 0])
    assert (router.tokens, router.unrouted, router.margin) == ([32, 32, 40], [1, 0, 0], [None] * 3)
    assert router.z_loss is not None
    assert str(router.z_loss[0]) == "nan"
    assert (first.counts(0), first.counts(1), first.biases(2)) == ([8] * 8, None, [0.5] * 8)
    assert (second.record.loss, second.record.tokens) == (2, None)


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
    assert b'"incomplete":"without b"' in watch.source.path.read_bytes()
    write(tmp_path, {"a": steps(4, 5), "b": steps(3, 5)}, modified=None)
    watch.read_all()
    assert summed(watch) == {1: 16, 2: 16, 3: 8, 4: 8, 5: 16}
    assert watch.source.missing == ""


@pytest.mark.parametrize("first", "ab")
def test_a_restart_of_all_parts_is_one_of_the_sum(
    first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = "b" if first == "a" else "a"
    write(tmp_path, {"a": steps(1, 2, 3, 4), "b": steps(1, 2, 3)}, modified=None)
    watch = watched(tmp_path)
    monkeypatch.setattr("time.time", lambda: 3e9)  # the clock of the file server is behind
    for name in (first, second):
        write(tmp_path, {name: steps(2, 3, scale=2)}, modified=None)
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


def test_a_part_with_longer_lines_is_read_to_its_end(tmp_path: Path) -> None:
    numbers = range(1, 2500)
    write(tmp_path, {"a": steps(*numbers), "b": [row(n, 1, pad="x" * 500) for n in numbers]})
    assert set(summed(watched(tmp_path)).values()) == {16}


def test_a_part_that_is_replaced_is_read_again(tmp_path: Path) -> None:
    write(tmp_path, {"a": steps(1), "b": steps(1)})
    watch = watched(tmp_path)
    shutil.rmtree(tmp_path / "rl/b")
    write(tmp_path, {"b": steps(1, scale=3)})
    watch.read_all()
    assert summed(watch) == {1: 32}


def test_most_parts_decide_which_do_not_fit(tmp_path: Path) -> None:
    write(tmp_path, dict.fromkeys("abc", steps(1)))
    log = tmp_path / "rl/a/metrics.jsonl"
    log.write_text(log.read_text().replace('"top_k": 2', '"top_k": 1'))
    os.utime(log, (OLD, OLD))
    watch = watched(tmp_path)
    assert summed(watch) == {1: 16}
    assert watch.source.missing.endswith(
        "a is not summed: its routers, top-k, counts or profile are others"
    )


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
