"""The card of one expert: what its lines claim, and that they always fit."""

from collections.abc import Callable

import pytest

from microscope_tui import measures
from microscope_tui.draw.spans import plain
from microscope_tui.screens.expert import text as expert_card
from microscope_tui.screens.expert.text import LoadSeries
from microscope_tui.watch import RunWatch, samples, view_of

Synthetic = Callable[..., RunWatch]


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
    first, second = expert_card.facts(view, layer, expert, 90)
    assert plain(first).endswith("dead")
    assert f"place {expert_card.place_of(layer.load or (), expert)} of 32" in plain(second)
    assert f"DEAD since {finding.onset:,}" in plain(
        expert_card.findings_line(view, layer, expert, 90)
    )
    other = next(e for e in range(32) if e not in episode.facts["experts"])  # type: ignore[operator]
    assert "L7 has DEAD" in plain(expert_card.findings_line(view, layer, other, 90))
    assert "none names it" in plain(expert_card.findings_line(view, view.layers[0], other, 90))


def test_the_charts_of_an_expert_hold_its_exact_loads_and_biases(dead: RunWatch) -> None:
    view, found = view_of(dead), samples(dead, 3, 12)
    charts = expert_card.expert_charts(view.layers[3], 5, LoadSeries(found), "")
    load, bias = (charts[name].curves[0] for name in ("load", "bias"))
    assert list(load.steps) == [sample.step for sample in found]
    for at, sample in enumerate(found):
        loads = measures.load(sample.counts)
        assert load.values[at] == loads[5]
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
