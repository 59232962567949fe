"""Logs with counts in every Nth line, with lines for every Nth step, or with few summaries."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.report import judge as check
from microscope_tui.runlog import RunFile
from tests.diagnosis.conftest import of, without_expert

Make = Callable[..., Any]


def thinned(records: list[Any], every: int) -> list[Any]:
    """Counts in the lines of step 1 and of every ``every``-th step, as the recorder writes them."""
    return [
        {k: v for k, v in record.items() if k != "tokens_per_expert"}
        if record["kind"] == "step" and record["step"] != 1 and record["step"] % every
        else record
        for record in records
    ]


@pytest.mark.parametrize("every", [1, 2, 10])
def test_dead_experts_are_found_in_the_steps_that_have_counts(
    judge: Make, steps: Make, make_header: Make, balanced: Make, every: int
) -> None:
    dying = lambda n: without_expert(balanced(), 3) if n >= 200 else balanced()  # noqa: E731
    records = thinned([make_header(), *steps(1, 700, dying)], every)
    found = of(judge(records), "DEAD")
    assert (found.router_index, found.facts["experts"], found.active) == (1, (3,), True)
    assert 190 <= found.onset <= 200 + 16 * every
    assert 300 <= found.alarm <= 310 + 40 * every


@pytest.mark.parametrize("every", [2, 10])
def test_an_expert_that_is_empty_in_the_counted_steps_alone_is_not_dead(
    judge: Make, steps: Make, make_header: Make, balanced: Make, every: int
) -> None:
    def flicker(n: int) -> list[int]:
        return without_expert(balanced(), 3) if n % every == 0 else balanced()

    records = thinned([make_header(), *steps(1, 700, flicker)], every)
    assert [e for e in judge(records).episodes if e.rule == "DEAD"] == []


@pytest.mark.parametrize("every", [1, 2, 5, 10])
def test_a_busy_rank_is_found_in_the_steps_that_have_counts(
    judge: Make, steps: Make, make_header: Make, every: int
) -> None:
    skewed = lambda n: [900, 880, 400, 400, 380, 376, 380, 380]  # noqa: E731
    records = thinned([make_header(expert_parallel_size=4), *steps(1, 300, skewed)], every)
    found = of(judge(records), "OVERLOAD")
    assert (found.router_index, found.onset, found.active) == (1, 1, True)
    assert found.alarm <= 160


@pytest.mark.parametrize(("every", "note"), [(1, False), (2, True), (3, True), (10, True)])
def test_the_report_notes_when_counts_are_too_sparse_to_see_a_swing(
    write_log: Make, steps: Make, make_header: Make, every: int, note: bool
) -> None:
    path: Path = write_log(thinned([make_header(), *steps(1, 60)], every))
    notes = check(RunFile("run", path, 0.0)).notes
    assert any("OSCILLATION is not observable" in text for text in notes) == note


@pytest.mark.parametrize("left_out", ["starved_experts", "dead_experts", "max_load"])
def test_summaries_that_the_writer_leaves_out_are_told_from_the_counts(
    judge: Make, steps: Make, make_header: Make, left_out: str
) -> None:
    starving = [560, 540, 555, 565, 622, 624, 620, 10]
    records = [make_header(), *steps(1, 300, lambda n: starving)]
    for record in records[1:]:
        del record["router"][left_out]
    assert of(judge(records), "STARVED").router_index == 1


@pytest.mark.parametrize("every", [1, 10])
def test_a_slide_reckons_in_steps_however_many_of_them_are_logged(
    judge: Make, make_header: Make, make_step: Make, balanced: Make, every: int
) -> None:
    def sliding(line: int) -> list[int]:
        taken = 5 * max(0, line - 200) // 2  # from each of six experts, for the first two
        row = [count - taken for count in balanced()]
        return [row[0] + 4 * taken, row[1] + 4 * taken, *row[2:]]

    records = [make_header(planned_steps=380 * every)] + [
        make_step(line * every, [balanced(), sliding(line), balanced()], 2048)
        for line in range(1, 380)
    ]
    alarm = of(judge(records), "ERODING").alarm
    at_once = of(judge(records[: alarm // every + 1]), "ERODING")
    reached = next(
        record["step"]
        for record in records[1:]
        if (record["router"]["effective_experts"][1] - 2) / 6 < at_once.limit
    )
    assert alarm + 10 * every < reached
    assert 0.5 < at_once.facts["left"] / (reached - alarm) < 2
