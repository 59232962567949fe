"""Logs with lines for every Nth step, or counts in every Nth line: steps are still counted."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from microscope_tui.commands.check.report import judge as check
from microscope_tui.diagnosis import Severity, overall
from microscope_tui.runlog import RunFile
from microscope_tui.scenarios import draw_counts
from tests.conftest import header, step
from tests.diagnosis.conftest import Counts, Record, about, even, judge, of, steps, without_expert

NARROW = [100.0, 95.0, 8.0, 6.0, 4.0, 3.0, 2.0, 2.0]
"""c about 0.19: uneven, steadily."""
FALLEN = [1.0, 1.0, *[1e-9] * 6]


def sparse(weights: Callable[[int], list[float]], every: int, last: int, **head: Any) -> Any:
    """The diagnosis of a line every ``every`` steps; the middle router draws by ``weights``."""
    return judge(
        [header(**head)]
        + [
            step(n, [even(n), draw_counts(weights(n), 2048, 2, random.Random(n)), even(n, 2)], 2048)
            for n in range(every, last + 1, every)
        ]
    )


def thinned(every: int, last: int, sick: Counts, **head: Any) -> list[Record]:
    """Counts in the lines of step 1 and of every ``every``-th step, as the recorder writes them."""
    records = [header(**head), *steps(1, last, sick)]
    for record in records[2:]:
        if record["step"] % every:
            del record["tokens_per_expert"]
    return records


@pytest.mark.parametrize("every", [1, 60, 100])
def test_a_router_that_was_never_seen_even_keeps_its_warm_up(every: int) -> None:
    def healing(n: int) -> list[float]:  # two experts lead, less and less until step 480
        lead = 1.0 + 40.0 * max(0.0, 1.0 - n / 480)
        return [lead, lead, *[1.0] * 6]

    diagnosis = sparse(healing, every, max(600, 10 * every), planned_steps=100_000)
    assert overall(diagnosis.findings()) is Severity.INFO


@pytest.mark.parametrize("every", [1, 10, 100])
def test_a_narrow_fine_tuning_is_its_own_reference_however_rarely_it_logs(every: int) -> None:
    last = 30 * max(every, 10)
    steady = sparse(lambda n: NARROW, every, last, profile="finetune")
    assert [e for e in steady.episodes if e.rule == "COLLAPSE"] == []
    onset = last // 2 + every
    falls = sparse(lambda n: NARROW if n < onset else FALLEN, every, last, profile="finetune")
    episode = of(falls, "COLLAPSE")
    assert (episode.onset, episode.severity) == (onset, Severity.CRITICAL)


@pytest.mark.parametrize("every", [1, 2, 10])
def test_dead_experts_are_found_in_the_steps_that_have_counts(every: int) -> None:
    dying: Counts = lambda n: without_expert(even(n), 3) if n >= 200 else even(n)  # noqa: E731
    found = of(judge(thinned(every, 750, dying)), "DEAD")
    assert (found.router_index, found.facts["experts"], found.active) == (1, (3,), True)
    assert found.severity is Severity.WARN  # one of eight is less than a fifth, however long
    assert 190 <= found.onset <= 200 + 16 * every
    assert 300 <= found.alarm <= 310 + 40 * every


@pytest.mark.parametrize("every", [2, 10])
def test_an_expert_that_is_empty_in_the_counted_steps_alone_is_not_dead(every: int) -> None:
    flicker: Counts = lambda n: even(n) if n % every else without_expert(even(n), 3)  # noqa: E731
    assert [e for e in judge(thinned(every, 500, flicker)).episodes if e.rule == "DEAD"] == []


@pytest.mark.parametrize("every", [1, 2, 10])
def test_a_busy_rank_is_found_in_the_steps_that_have_counts(every: int) -> None:
    skewed = about([900, 880, 400, 400, 380, 376, 380, 380])
    records = thinned(every, 200, skewed, expert_parallel_size=4)
    found = of(judge(records), "OVERLOAD")
    assert (found.router_index, found.onset, found.active) == (1, 1, True)
    assert found.alarm <= 160
    for record in records[1:]:  # the other routers have counts, this one no longer does
        if record["step"] > 140 and "tokens_per_expert" in record:
            record["tokens_per_expert"] = [record["tokens_per_expert"][0], None, None]
    assert of(judge(records), "OVERLOAD").active


@pytest.mark.parametrize(("every", "note"), [(1, False), (2, True), (10, True)])
def test_counts_too_sparse_for_a_swing_are_noted(write_log: Any, every: int, note: bool) -> None:
    notes = check(RunFile("run", write_log(thinned(every, 60, even)), 0.0)).notes
    assert any("OSCILLATION is not observable" in text for text in notes) == note


@pytest.mark.parametrize("left_out", ["starved_experts", "dead_experts", "max_load"])
def test_summaries_that_the_writer_leaves_out_are_computed_from_the_counts(left_out: str) -> None:
    starving = [560, 540, 555, 565, 622, 624, 620, 10]
    records = [header(), *steps(1, 200, about(starving))]
    for record in records[1:]:
        del record["router"][left_out]
    assert of(judge(records), "STARVED").router_index == 1


@pytest.mark.parametrize("every", [1, 10])
def test_a_slide_is_extrapolated_in_steps_however_many_of_them_are_logged(every: int) -> None:
    def sliding(line: int) -> list[int]:
        taken = 5 * max(0, line - 200) // 2  # from each of six experts, for the first two
        row = [count - taken for count in even(line, 1)]
        return [row[0] + 4 * taken, row[1] + 4 * taken, *row[2:]]

    records = [header(planned_steps=380 * every)] + [
        step(line * every, [even(line), sliding(line), even(line, 2)], 2048)
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
    assert 0.5 < float(str(at_once.facts["left"])) / (reached - alarm) < 2
