"""Did the loss notice? Answered in numbers, and only where there are enough of them."""

from collections.abc import Callable
from typing import Any

import pytest

from microscope_tui.draw.charts import course_chart, loss_answer
from microscope_tui.draw.spans import line_width, plain
from microscope_tui.watch import RunView, RunWatch, Window, view_of
from tests.conftest import header, open_log, step


def answered(view: RunView) -> str:
    line = loss_answer(view, 100)
    assert line_width(line) == 100
    return plain(line)


@pytest.fixture
def make_run(write_log: Any, balanced: Any) -> Any:
    def make(loss: Callable[[int], Any], **changes: Any) -> RunWatch:
        """A router that collapses at step 150 of 400, and what the loss does meanwhile."""
        collapsed = [2048, 2048, 0, 0, 0, 0, 0, 0]
        steps = [
            step(n, [balanced(), balanced(), collapsed if n > 150 else balanced()], 2048)
            | {"loss": loss(n)}
            | changes
            for n in range(1, 401)
        ]
        return open_log(write_log([header(planned_steps=400), *steps]))  # type: ignore[no-any-return]

    return make


def test_a_loss_that_keeps_falling_does_not_show_the_collapse(make_run: Any) -> None:
    answer = answered(view_of(make_run(lambda n: 4.0 - n / 200), 80))
    assert "COLLAPSE in L3 since 1" in answer
    assert "the loss does not show it: 3." in answer


def test_a_loss_that_rises_later_is_reported_with_distance_a_spike_is_not(make_run: Any) -> None:
    answer = answered(view_of(make_run(lambda n: 3.0 if n < 250 else 5.0), 400))
    assert "the loss rose" in answer
    assert "steps later: 3.00 before, 5.00 now" in answer
    answer = answered(view_of(make_run(lambda n: 9.0 if n == 300 else 3.0), 400))
    assert "does not show it" in answer


def test_without_enough_loss_around_the_onset_nothing_is_claimed(make_run: Any) -> None:
    watch = make_run(lambda n: 3.0)
    assert "too near the edge" in answered(view_of(watch, 80, window=Window(200, 400)))


@pytest.mark.parametrize(("columns", "enough"), [(2, False), (3, True)])
def test_three_columns_before_the_onset_are_enough(
    make_run: Any, columns: int, enough: bool
) -> None:
    watch = make_run(lambda n: 3.0)
    (episode,) = {e.onset for e in watch.episodes if e.rule == "COLLAPSE"}
    view = view_of(watch, 400, window=Window(episode - columns, 400))
    assert ("too near the edge" not in answered(view)) is enough


def test_an_alert_of_the_run_itself_is_shown_where_no_router_has_one(make_run: Any) -> None:
    even = {"router": {"effective_experts": [7.9] * 3}, "tokens_per_expert": None}
    answer = answered(view_of(make_run(lambda n: "NaN" if n > 100 else 3.0, **even), 80))
    assert "C DIVERGED since 101" in answer
    assert "no alert in any router" in answer


def test_the_lowest_balance_names_its_layer(make_run: Any) -> None:
    watch = make_run(lambda n: "NaN")
    view = view_of(watch, 80)
    loss, balance = (course_chart(view, name) for name in ("loss", "balance"))
    assert not loss.measured
    assert balance.note == "in L3"
    assert balance.now == pytest.approx(0.0)


def test_validation_losses_are_points_of_the_loss(write_log: Any, balanced: Any) -> None:
    steps: list[Any] = [step(n, [balanced()] * 3, 2048) for n in range(1, 60)]
    for at, loss in ((20, 2.5), (40, "NaN")):
        event = {"kind": "event", "event": "eval", "step": at, "time": 1.0}
        steps.insert(at, event | {"values": {"loss": loss}})
    view = view_of(open_log(write_log([header(), *steps])), 80)
    chart = course_chart(view, "loss")
    assert list(chart.points) == [(20, 2.5)]
    assert "validation 2.50 at 20" in chart.note
