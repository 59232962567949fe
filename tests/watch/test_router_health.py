"""The worst layer of every column, held against all layers by themselves."""

import math
from typing import Any

import pytest

from microscope_tui.watch import Quantity, Window, view_of, worst_of_layers
from tests.conftest import header, open_log


@pytest.mark.parametrize("window", [(1, 300), (120, 200)])
@pytest.mark.parametrize("columns", [1, 30, 500])
def test_the_worst_layer_of_every_column_is_the_worst_of_the_view(
    scenario: Any, window: tuple[int, int], columns: int
) -> None:
    log = scenario("collapse", routers=4, steps=300, top_k=1)  # where no expert is left out
    watch = open_log(log / "metrics.jsonl")
    view = view_of(watch, columns, window=Window(*window))
    balance = worst_of_layers(watch, Quantity.BALANCE, columns, Window(*window))
    load = worst_of_layers(watch, Quantity.LOAD, columns, Window(*window))
    assert len(balance) == len(load) == len(view.timeline.axis)
    for at in range(len(view.timeline.axis)):
        lows = [layer.balance_history[at].low for layer in view.layers]
        highs = [layer.max_load_history[at].high for layer in view.layers]
        assert balance[at].low == pytest.approx(min(lows))
        assert load[at].high == max(highs)


def test_what_one_router_did_not_measure_does_not_hide_the_others(write_log: Any) -> None:
    load = {"max_load": [2.0, None, "NaN"], "effective_experts": [None] * 3}
    balance = {"max_load": [None] * 3, "effective_experts": [4.0, 8.0, None]}
    steps = [{"kind": "step", "step": n, "router": r} for n, r in [(1, load), (2, balance)]]
    watch = open_log(write_log([header(), *steps]))
    highest = worst_of_layers(watch, Quantity.LOAD, 2, Window(1, 2))
    assert highest[0].high == 2.0
    assert math.isnan(highest[1].high)
    lowest = worst_of_layers(watch, Quantity.BALANCE, 2, Window(1, 2))
    assert math.isnan(lowest[0].low)
    assert lowest[1].low == pytest.approx((4 - 2) / (8 - 2))


def test_no_run_has_no_worst_layer(write_log: Any) -> None:
    assert worst_of_layers(open_log(write_log([])), Quantity.LOAD, 10, Window(1, 1)) == []
