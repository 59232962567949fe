"""The card of one expert: what its lines claim, and that they always fit."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from microscope_tui import measures
from microscope_tui.draw.spans import plain
from microscope_tui.screens.expert import text as expert_card
from microscope_tui.screens.expert.text import LoadSeries
from microscope_tui.watch import RunWatch, Sample, samples, view_of
from tests.conftest import header, open_log, step

Synthetic = Callable[..., RunWatch]
NOTHING = LoadSeries(())


@pytest.fixture
def dead(synthetic: Synthetic) -> RunWatch:
    return synthetic("dead-experts", routers=8, num_experts=32, top_k=4, steps=600)


@pytest.mark.parametrize(
    ("load", "words"),
    [(0, "dead"), (0.05, "starving"), (0.3, "under"), (1, "fair"), (2, "over"), (3, "hot")],
)
def test_the_condition_of_an_expert_follows_its_load(load: float, words: str) -> None:
    assert expert_card.condition(load) == words


def test_places_count_from_the_busiest_and_the_dead_are_last() -> None:
    load = [1.0, 3.0, 1.0, 0.0, 0.0]
    assert [expert_card.place_of(load, e) for e in range(5)] == [2, 1, 2, 5, 5]


def test_the_most_remarkable_expert_is_the_one_farthest_from_fair() -> None:
    assert expert_card.most_remarkable([1.0, 0.0, 4.0]) == 1
    assert expert_card.most_remarkable([1.0, 0.9, 4.0, 0.3]) == 2
    assert expert_card.most_remarkable([]) == 0


def test_a_dead_expert_is_named_with_the_onset_of_its_finding(dead: RunWatch) -> None:
    view = view_of(dead)
    finding, episode = next((f, f.worst) for f, _ in view.findings if f.rule == "DEAD")
    layer, expert = view.layers[episode.router_index], episode.facts["experts"][0]  # type: ignore[index]
    assert isinstance(expert, int)
    first, second = expert_card.facts(view, layer, expert, NOTHING, 90)
    assert f"dead since step {episode.onset:,}" in plain(first)
    assert f"place {expert_card.place_of(layer.load or (), expert)} of 32" in plain(second)
    assert "W DEAD" in plain(expert_card.title(view, layer, expert, "", 90))
    assert f"DEAD since {finding.onset:,}" in plain(
        expert_card.findings_line(view, layer, expert, 90)
    )
    other = next(e for e in range(32) if e not in episode.facts["experts"])  # type: ignore[operator]
    assert "L7 has DEAD" in plain(expert_card.findings_line(view, layer, other, 90))
    assert "none names it" in plain(expert_card.findings_line(view, view.layers[0], other, 90))


def test_without_a_finding_it_is_dead_since_the_step_after_its_last_token(write_log: Any) -> None:
    """A starving expert is not dead yet; between samples the step is not exact."""
    alive, starving, gone = [400] * 8, [456] * 7 + [8], [457] * 7 + [0]
    rows = [alive if n < 9 else starving if n < 13 else gone for n in range(1, 21)]
    steps = [step(n, [row] * 3, 1600) for n, row in enumerate(rows, 1)]
    watch = open_log(write_log([header(), *steps]))
    view = view_of(watch)
    series = LoadSeries(samples(watch, 0, 20))
    facts = partial(expert_card.facts, view, view.layers[0])
    assert "dead since step 13" in plain(facts(7, series, 80)[0])
    sparse = LoadSeries(samples(watch, 0, 5))
    assert "dead since about step" in plain(facts(7, sparse, 80)[0])
    always = LoadSeries([Sample(n, gone, None) for n in range(5, 9)])
    assert "dead since step 5 or before" in plain(facts(7, always, 80)[0])
    assert "since" not in plain(facts(6, series, 80)[0])


def test_the_charts_of_an_expert_hold_its_exact_loads_places_and_biases(dead: RunWatch) -> None:
    view, found = view_of(dead), samples(dead, 3, 12)
    charts = expert_card.expert_charts(view.layers[3], 5, LoadSeries(found), "")
    load, place, bias = (charts[name].curves[0] for name in ("load", "place", "bias"))
    assert list(load.steps) == [sample.step for sample in found]
    for at, sample in enumerate(found):
        loads = measures.load(sample.counts)
        assert load.values[at] == loads[5]
        assert 33 - place.values[at] == expert_card.place_of(loads, 5)
        assert bias.values[at] == sample.bias[5]


def test_the_first_expert_is_the_busiest_that_an_alert_names(synthetic: Synthetic) -> None:
    view = view_of(synthetic("collapse", routers=3, steps=300))
    finding = view.alerts[0][0]
    sick = view.layers[finding.worst.router_index]
    assert expert_card.first_expert(view, sick) == sick.load.index(max(sick.load))  # type: ignore
    named = finding.worst.facts["experts"]
    assert expert_card.first_expert(view, sick) in named  # type: ignore[operator]
    for layer in view.layers:
        if not layer.severity:
            remarkable = expert_card.most_remarkable(layer.load or ())
            assert expert_card.first_expert(view, layer) == remarkable
