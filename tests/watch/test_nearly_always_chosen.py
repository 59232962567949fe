"""An expert near the limit from which the judged balance leaves it out: nothing jumps."""

import json
import random
import re
from collections.abc import Sequence
from typing import Any

import pytest

from microscope_tui.draw.export import view_json
from microscope_tui.screens.main.as_text import snapshot_text
from microscope_tui.watch import Quantity, RunWatch, Window, pin_at, view_of, worst_of_layers
from tests.conftest import header, open_log

EXPERTS, TOKENS, STEPS = 8, 4096, 400
NAMES = ["L1", "L2", "L3", "L4"]
MODEL = {"layers": [0, 1, 2, 3], "num_experts": EXPERTS, "top_k": 2, "layer_names": NAMES}


def row(rng: random.Random, load: float) -> list[int]:
    """Counts in which expert 3 has ``load`` times the fair share, and the others the rest."""
    busy = round(load * TOKENS / 4)
    others = [(2 * TOKENS - busy) // 7 + rng.randint(-20, 20) for _ in range(7)]
    others[0] += 2 * TOKENS - busy - sum(others)
    return [*others[:3], busy, *others[3:]]


def steps(loads: Sequence[float], every: int = 1) -> list[dict[str, Any]]:
    """Steps in which expert 3 of L3 has these loads; counts in one of ``every``."""
    rng = random.Random(1)
    found = []
    for number, load in enumerate(loads, start=1):
        rows = [row(rng, 1.0), row(rng, 1.0), row(rng, load), row(rng, 1.0)]
        numbers = {"effective_experts": [8.0, 8.0, 5.5, 8.0], "max_load": [1.0, 1.0, load, 1.0]}
        known = {"router": numbers} if number % every else {"tokens_per_expert": rows}
        found.append({"kind": "step", "step": number, "tokens": TOKENS, **known})
    return found


@pytest.fixture
def watch(write_log: Any) -> RunWatch:
    rng = random.Random(2)
    near_the_limit = [rng.uniform(3.75, 3.95) for _ in range(STEPS)]
    return open_log(write_log([header(model=MODEL), *steps(near_the_limit)]))


def at(watch: RunWatch, step: int) -> Any:
    return view_of(watch, STEPS, at=pin_at(watch, step))


def test_number_and_curve_are_those_of_all_experts_and_do_not_jump(watch: RunWatch) -> None:
    layer = view_of(watch, STEPS).layers[2]
    curve = [column.mean for column in layer.balance_history]
    assert len(curve) == STEPS
    assert max(curve) - min(curve) < 0.06
    assert layer.balance == pytest.approx(curve[-1], abs=1e-6)
    assert 0.5 < curve[-1] < 0.65
    shown = json.loads(view_json(view_of(watch)))["layers"][2]
    assert shown["balance"] == layer.balance
    assert shown["judged_balance"] == layer.judged_balance > 0.98
    assert "collapse_index" not in shown


def test_at_every_step_the_screen_names_what_it_leaves_out(watch: RunWatch) -> None:
    for step in range(20, STEPS, 7):
        layers = at(watch, step).layers
        assert [layer.without for layer in layers] == [(), (), (3,), ()]
        assert layers[2].judged_balance == pytest.approx(1.0, abs=0.01)
    text = snapshot_text(watch, 120, at=pin_at(watch, 200))
    assert "* L3 without expert 3: 1.00" in text
    assert re.search(r"lowest balance (1\.00|\.99)", text)
    lowest = worst_of_layers(watch, Quantity.BALANCE, STEPS, Window(1, STEPS))
    assert min(column.low for column in lowest[20:]) > 0.98


@pytest.mark.parametrize("loads", [[3.9] * 10 + [3.6] * 90, [3.9] * 99 + [3.2]])
@pytest.mark.parametrize("columns", [7, 100])
def test_no_zoom_hides_a_balance_that_is_judged_low(
    write_log: Any, loads: list[float], columns: int
) -> None:
    watch = open_log(write_log([header(model=MODEL), *steps(loads)]))
    lowest = worst_of_layers(watch, Quantity.BALANCE, columns, Window(1, 100))
    assert lowest[-1].low < at(watch, 100).layers[2].judged_balance + 0.02 < 0.8


def test_the_note_leaves_once_the_expert_is_clearly_one_of_others(write_log: Any) -> None:
    loads = [3.9] * 50 + [3.2] * 50
    watch = open_log(write_log([header(model=MODEL), *steps(loads)]))
    assert [at(watch, step).layers[2].without for step in (50, 51, 100)] == [(3,), (), ()]


def test_the_note_names_the_expert_also_in_steps_without_counts(write_log: Any) -> None:
    watch = open_log(write_log([header(model=MODEL), *steps([3.9] * 35, every=10)]))
    assert [at(watch, step).layers[2].without for step in (30, 31, 35)] == [(3,)] * 3
