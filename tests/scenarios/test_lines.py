"""The lines of every scenario: reproducible, readable, and what the format says."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from benchmarks.scenarios import SCENARIOS
from benchmarks.scenarios.variants import APART
from microscope_tui.commands.check.format_check import check_format, format_text
from microscope_tui.runlog import RunReader, RunRecord, StepEntry
from microscope_tui.scenarios import Shape, lines, write_run

SHORT = Shape(routers=8, num_experts=8, top_k=2, tokens=1024, steps=60)

each_scenario = pytest.mark.parametrize("name", SCENARIOS)


@each_scenario
def test_the_same_seed_gives_the_same_bytes_and_another_one_others(name: str) -> None:
    bytes_of = [b"".join(islice(lines(SCENARIOS[name], SHORT, seed)[1], 20)) for seed in (5, 5, 6)]
    assert bytes_of[0] == bytes_of[1] != bytes_of[2]


@each_scenario
def test_every_line_is_read(name: str) -> None:
    reader = RunReader("x")
    shape = replace(SHORT, steps=300) if name == "ragged" else SHORT
    entries = [entry for line in lines(SCENARIOS[name], shape, 0)[1] for entry in reader.feed(line)]
    assert reader.defects.count == 0
    numbers = [entry.record.step for entry in entries if isinstance(entry, StepEntry)]
    headers = [entry for entry in entries if isinstance(entry, RunRecord)]
    last = entries[-1]
    if name == "ragged":
        assert numbers != sorted(numbers)
        assert len(numbers) < shape.steps - 20
    elif name == "resume-bias-reset":
        assert [header.resumed_at_step is None for header in headers] == [True, False]
        again = headers[1].resumed_at_step
        assert numbers[-1 - SHORT.steps + again :] == list(range(again, SHORT.steps + 1))
    else:
        apart = APART if name == "sparse-log" else 1
        assert numbers == list(range(apart, apart * SHORT.steps + 1, apart))
        assert last.reason == "finished"


@each_scenario
def test_the_lines_are_what_the_format_says(name: str, tmp_path: Path) -> None:
    write_run(tmp_path, SCENARIOS[name], shape=SHORT)
    problems = format_text(check_format(tmp_path)).splitlines()[1:]
    faulty = {"double-counting", "padding", "ragged", "cause-wrong-sums", "partial-sums"}
    faulty |= {"expert-choice", "expert-choice-uneven", "zero-block"}
    assert bool(problems) == (name in faulty), problems


def test_every_scenario_fits_the_shape_of_the_demo() -> None:
    assert [name for name, scenario in SCENARIOS.items() if not scenario.fits(Shape())] == []
