"""One run followed: restarts, states, logs that change under the reader, foreign writers."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from microscope_tui.commands.check.report import judge
from microscope_tui.draw.spans import plain
from microscope_tui.draw.table import fit
from microscope_tui.runlog import RunFile
from microscope_tui.screens.alerts.text import title_line
from microscope_tui.watch import RunState, pin, run_watch, view_of
from tests.conftest import header, open_log, step


def append(path: Path, *records: dict[str, Any]) -> None:
    with path.open("ab") as file:
        for record in records:
            file.write(json.dumps(record).encode() + b"\n")


def test_summaries_that_a_foreign_writer_left_out_are_derived_from_the_counts(
    write_log: Callable[..., Path], balanced: Any
) -> None:
    rows = [balanced(), [2048, 2048, 0, 0, 0, 0, 0, 0], balanced()]
    record = {"kind": "step", "step": 1, "tokens": 2048, "tokens_per_expert": rows}
    view = view_of(open_log(write_log([header(), record])))
    assert view.layers[0].balance == pytest.approx(1.0, abs=0.02)
    assert view.layers[1].balance == pytest.approx(0.0, abs=1e-9)
    assert view.layers[1].load == [4.0, 4.0, 0, 0, 0, 0, 0, 0]


def test_the_last_logged_counts_are_shown_where_counts_are_logged_rarely(
    write_log: Callable[..., Path], balanced: Any
) -> None:
    bare = step(2, [balanced()] * 3, 2048)
    del bare["tokens_per_expert"]
    view = view_of(open_log(write_log([header(), step(1, [balanced()] * 3, 2048), bare])))
    assert (view.step, view.counts_step) == (2, 1)
    assert view.layers[0].load is not None


def test_a_pinned_moment_stays_in_a_live_run(write_log: Callable[..., Path], balanced: Any) -> None:
    path = write_log([header(), step(1, [balanced()] * 3, 2048, loss=5.0)])
    watch = open_log(path)
    moment = pin(watch)
    append(path, *(step(n, [balanced()] * 3, 2048, loss=1.0) for n in (2, 3)))
    watch.read_all()
    held = view_of(watch, at=moment)
    assert (held.step, held.record.loss if held.record else None) == (1, 5.0)
    assert len(held.timeline.loss_history) == 3  # the curve goes on behind the shown step
    assert held.timeline.cursor == pytest.approx(1 / 3)
    assert view_of(watch).step == 3


def test_what_is_judged_of_a_part_of_a_log_is_marked(scenario: Any, monkeypatch: Any) -> None:
    path = scenario("healthy", routers=3, steps=20) / "metrics.jsonl"
    whole = view_of(open_log(path))
    half = replace(whole, judging=replace(whole.judging, share=0.5))
    assert [fit(view, 80, 24).noted for view in (whole, half)] == [False, True]
    monkeypatch.setattr(run_watch, "HOLD_S", -1.0)  # one record at a time
    watch = run_watch.RunWatch(RunFile("run", path, 0.0))
    assert watch.advance()
    view = view_of(watch)
    assert max(view.judging.share, view.log.progress) < 0.5
    assert "reading" in plain(title_line([], view, 80, ""))


def test_the_state_of_a_run_follows_its_age_and_last_event(write_log: Any, balanced: Any) -> None:
    steps = [step(n, [balanced()] * 3, 2048, step_time_s=1.0) for n in range(1, 5)]
    path = write_log([header(), *steps])
    os.utime(path, (1000.0, 1000.0))
    watch = open_log(path)
    ages = {1: "live", 10: "slow", 61: "stale", 601: "crashed?", -50: "live"}
    assert {age: watch.state(1000.0 + age)[0] for age in ages} == ages
    for reason, state in [("finished", "finished"), ("signal", "stopped"), ("failed", "failed")]:
        append(path, {"kind": "event", "event": "end", "reason": reason, "step": 4})
        watch.read_all()
        assert watch.state()[0] == state
    path.unlink()
    watch.advance()
    assert watch.state()[0] == "deleted"
    assert view_of(watch).step == 4  # what was on screen stays


def test_an_unreadable_log_is_said_and_does_not_raise(tmp_path: Path) -> None:
    folder = tmp_path / "metrics.jsonl"
    folder.mkdir()
    watch = open_log(folder)
    assert "cannot be read" in watch.error


def test_a_silent_run_is_over_after_the_next_reading_or_check_whoever_looks(
    write_log: Callable[..., Path], balanced: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = open_log(write_log([header(), step(1, [balanced()] * 3, 2048)]))
    monkeypatch.setattr(run_watch, "age_of", lambda *_: 601.0)
    assert (watch.state()[0], watch.diagnosis.over) == ("crashed?", False)
    assert not watch.advance()
    assert watch.diagnosis.over
    watch.diagnosis.conclude(over=False)
    judge(watch.file, watch=watch)
    assert watch.diagnosis.over


def test_only_a_run_that_is_over_and_was_judged_to_its_end_is_concluded(
    write_log: Callable[..., Path], balanced: Any
) -> None:
    watch = open_log(write_log([header(), step(1, [balanced()] * 3, 2048)]))

    def is_over(name: str, value: Any) -> bool:
        watch.diagnosis.conclude(over=False)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(watch, "state", lambda: (RunState.STALE, 601.0))
            patch.setattr(watch, name, value)
            watch.conclude_if_over()
        return watch.diagnosis.over

    assert is_over("complete", True)
    assert not is_over("complete", False)
    assert not is_over("_second", ...)
    assert not is_over("state", lambda: (RunState.STALE, 599.0))
    assert not is_over("state", lambda: (RunState.LIVE, 601.0))
    assert is_over("state", lambda: (RunState.FINISHED, 1.0))
