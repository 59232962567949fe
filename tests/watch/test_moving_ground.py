"""Logs that are deleted while they are read, clocks that disagree, runs that resume: no lie."""

import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bulk import write_bulk
from microscope_tui.draw.spans import plain
from microscope_tui.runlog import RunFile, glance, sample
from microscope_tui.screens.alerts import text as alerts
from microscope_tui.watch import RunWatch, Window, pin_at, view_of
from tests.conftest import header, open_log, step

SKEWED = [2048, 2048, 0, 0, 0, 0, 0, 0]


def follow(path: Path) -> RunWatch:
    return RunWatch(RunFile(path.parent.name, path, 0.0))


def test_a_past_step_in_the_sick_stretch_is_shown_sick_though_the_run_recovered(
    write_log: Callable[..., Path], balanced: Any
) -> None:
    rows = [
        [balanced(n), SKEWED if 200 <= n < 300 else balanced(n), balanced(n)] for n in range(800)
    ]
    watch = open_log(write_log([header(), *[step(n, r, 2048) for n, r in enumerate(rows) if n]]))
    now = view_of(watch)
    assert [finding.active for finding, _ in now.findings] == [False]
    then = view_of(watch, at=pin_at(watch, 280))
    assert [(finding.active, finding.last) for finding, _ in then.findings] == [(True, 280)]
    assert then.layers[1].severity is not None
    assert view_of(watch, at=pin_at(watch, 150)).findings == []


def test_a_past_verdict_quotes_the_numbers_of_its_own_time(scenario: Callable[..., Path]) -> None:
    watch = open_log(scenario("slow-collapse", routers=5, steps=1500) / "metrics.jsonl")
    now = view_of(watch)
    grades = next(f.worst.grades for f, _ in now.alerts if f.rule == "COLLAPSE")
    warned = view_of(watch, at=pin_at(watch, grades[0].step))
    then = next(f.worst for f, _ in warned.alerts if f.rule == "COLLAPSE")
    last = next(f.worst for f, _ in now.alerts if f.rule == "COLLAPSE")
    assert then.value == grades[0].value > last.value
    assert then.facts != last.facts
    (entry,) = alerts.entries_of(now, (), (), "collapse")
    unfolded = " ".join(map(plain, alerts.unfolded(entry, 80, 40))).split()
    for one in (grades[0], grades[-1]):
        shown = f"{one.severity.label} from {one.step:,} ({one.value:.3g})"
        assert shown in " ".join(unfolded), "the step at which it was measured"
    for at in (last.onset, last.alarm + 1):
        view = view_of(watch, at=pin_at(watch, at))
        verdict = next(a.verdict for f, a in view.alerts if f.rule == "COLLAPSE")
        assert verdict.endswith(f"(numbers from step {last.alarm:,})")


def test_the_ribbon_covers_the_whole_run_at_any_step(write_log: Any, balanced: Any) -> None:
    steps = [step(n, [balanced(n)] * 3, 2048) for n in range(1, 101)]
    again = [step(n, [balanced(n)] * 3, 2048) for n in range(61, 90)]
    watch = open_log(write_log([header(), *steps, header(resumed_at_step=61), *again]))
    assert view_of(watch).timeline.restarts == (61,)
    past = view_of(watch, at=pin_at(watch, 30))
    assert past.timeline.restarts == (61,)
    assert [at for at, mark in enumerate(past.timeline.ribbon) if mark.restart] == [64]
    assert past.timeline.cursor == pytest.approx(30 / 89)
    early = view_of(watch, at=pin_at(watch, 30), window=Window(11, 50))
    assert early.timeline.restarts == ()
    assert not any(mark.restart for mark in early.timeline.ribbon)
    assert early.timeline.cursor == 0.5


def test_a_log_deleted_in_the_middle_of_the_scan_keeps_the_overview(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_bulk(path, steps=4000, routers=3, num_experts=8, top_k=2, tokens=512)
    watch = follow(path)
    watch.open_overview()
    watch.advance(1 << 14)
    path.unlink()
    for _ in range(50):
        watch.advance(1 << 14)
    assert not watch.complete
    assert watch.latest.record.step == 4000
    watch.read_all()  # ends


def test_superseded_counts_are_not_shown_after_the_restart(write_log: Any, balanced: Any) -> None:
    steps = [step(n, [SKEWED] * 3, 2048) for n in range(1, 21)]
    bare = [
        {k: v for k, v in step(n, [balanced(n)] * 3, 2048).items() if k != "tokens_per_expert"}
        for n in range(11, 14)
    ]
    view = view_of(open_log(write_log([header(), *steps, header(resumed_at_step=11), *bare])))
    assert view.step == 13
    assert view.counts_step is None


def test_other_experts_in_as_many_layers_are_another_model(write_log: Any, balanced: Any) -> None:
    first = [step(n, [balanced(n)] * 3, 2048) for n in range(1, 4)]
    one = header()
    other = header(model={**one["model"], "num_experts": 4})
    view = view_of(open_log(write_log([one, *first, other])))
    assert (view.step, view.counts_step, view.layers) == (0, None, [])


def test_a_file_server_whose_clock_is_behind_does_not_make_a_live_run_stale(
    write_log: Callable[..., Path], balanced: Any
) -> None:
    path = write_log([header(), step(1, [balanced()] * 3, 2048)])
    watch = open_log(path)
    with path.open("ab") as file:
        file.write(json.dumps(step(2, [balanced()] * 3, 2048)).encode() + b"\n")
    an_hour_behind = time.time() - 3600
    os.utime(path, (an_hour_behind, an_hour_behind))
    watch.advance()
    assert watch.state()[0] == "live"


def test_a_run_that_logs_every_tenth_step_is_not_slow_between_two_records(
    write_log: Callable[..., Path], balanced: Any
) -> None:
    steps = [
        step(n, [balanced()] * 3, 2048, step_time_s=2.0, time=1_000_000.0 + 2 * n)
        for n in range(10, 400, 10)
    ]
    path = write_log([header(), *steps])
    now = time.time()
    os.utime(path, (now - 25, now - 25))
    watch = open_log(path)
    assert watch.state()[0] == "live"
    assert glance(path).step_time_s == 20.0


def test_a_long_header_does_not_make_the_first_look_read_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_bulk(path, steps=20000, routers=1, num_experts=4, top_k=1, tokens=512)
    first, rest = path.read_text().split("\n", 1)
    path.write_text(json.dumps({**json.loads(first), "note": "x" * 40_000}) + "\n" + rest)
    found = sample(path, "r", 40)
    assert found.line_bytes < 2000
    assert len(found.samples) < 40 + 64 + 8
    assert found.samples[-1].record.step == 20000


def test_events_between_the_steps_leave_the_samples_of_a_long_log(
    write_log: Callable[..., Path], balanced: Any
) -> None:
    event = {"kind": "event", "event": "numbers", "values": {"reward": 0.5}}
    records = [header()]
    for number in range(1, 1001):
        records += [step(number, [balanced()] * 3, 2048), *[event | {"step": number}] * 4]
    found = sample(write_log(records), "r", 40)
    steps = [entry.record.step for entry in found.samples]
    assert len(steps) >= 38
    assert max(b - a for a, b in itertools.pairwise(steps)) <= 30


def test_a_run_that_was_resumed_and_has_no_new_step_yet_shows_where_it_stands(
    write_log: Callable[..., Path], balanced: Any
) -> None:
    steps = [step(n, [balanced()] * 3, 2048) for n in range(1, 21)]
    found = glance(write_log([header(), *steps, header(resumed_at_step=16)]))
    assert found.last.step == 15
    assert found.run.resumed_at_step == 16
