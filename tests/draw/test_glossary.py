"""``?`` explains every word that a screen prints as a name: columns, charts, states, badges."""

import re
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from microscope_tui.diagnosis import Severity
from microscope_tui.draw import frame, numbers, table
from microscope_tui.draw.charts import course_chart, layer_charts
from microscope_tui.draw.heat import Heat, Look, Measure, Order
from microscope_tui.draw.numbers import label_of
from microscope_tui.draw.spans import WORD_OF_SEVERITY, plain
from microscope_tui.draw.table import fit
from microscope_tui.kit.keys import screen_class
from microscope_tui.kit.screen_table import SCREENS
from microscope_tui.screens.alerts import text as alerts
from microscope_tui.screens.expert import text as expert_card
from microscope_tui.screens.expert.text import LoadSeries
from microscope_tui.screens.runs import text as run_list
from microscope_tui.watch import Fleet, RunView, RunWatch, state, view_of

_PLAIN = """
a against all alert at before by cell each expert experts for from in is its layers log mean no of
per room run runs scale state step the to tokens why next
"""
PLAIN = frozenset(_PLAIN.split())
"""English that needs no explanation here."""

GLOSSARY = {name: screen_class(name).WORDS for name in SCREENS if name != "help"}


def names_in(text: str) -> set[str]:
    return {word for word in re.findall(r"[a-z]+[?]?", text.lower()) if word not in PLAIN}


def unexplained(screen: str, *texts: str) -> set[str]:
    known = {name for words in GLOSSARY[screen] for name in names_in(words)}
    return {name for text in texts for name in names_in(text)} - known


@pytest.fixture(params=["collapse", "overflow", "bias-runaway"])
def watch(request: pytest.FixtureRequest, synthetic: Callable[..., RunWatch]) -> RunWatch:
    return synthetic(request.param, routers=3, steps=300)


@pytest.fixture
def view(watch: RunWatch) -> RunView:
    return view_of(watch)


def test_every_column_of_the_main_screen(view: RunView) -> None:
    for measure, order, columns in product(Measure, Order, (60, 80, 100, 120, 200)):
        layout = fit(view, columns, 40)
        for run in (view.run, None):
            heat = Heat(Look(measure=measure, order=order), run)
            heads = plain(table.column_heads(view, layout, heat))
            assert not unexplained("main", heads), heads


def test_every_chart(view: RunView) -> None:
    for layer in view.layers:
        titles = [chart.name for chart in layer_charts(view, layer).values()]
        assert not unexplained("layer", *titles, "load", "bias")
        titles = [c.name for c in expert_card.expert_charts(layer, 0, LoadSeries(()), "").values()]
        assert not unexplained("expert", *titles)
    drawn = [course_chart(view, name) for name in ("loss", "balance", "max-load")]
    labels = [label_of(name) for name in numbers._LABELS]
    assert not unexplained("course", *(chart.name for chart in drawn), *labels)


def test_every_column_of_the_lists(view: RunView, tmp_path: Path) -> None:
    entries = alerts.entries_of(view, (), (), "")
    assert not unexplained("alerts", plain(alerts.fit_alerts(entries, 100).heads()))
    found = [line for entry in entries for line in alerts.unfolded(entry, 80, 40) if len(line) > 1]
    assert not unexplained("alerts", *(line[0].text for line in found))
    layout = run_list.fit_list(Fleet(tmp_path).cards(), 120)
    assert not unexplained("runs", plain(layout.heads()), "open pinned")


def test_every_state_badge_and_condition() -> None:
    listed_only = {state.RunState.ARCHIVED, state.RunState.ERROR, state.RunState.UNKNOWN}
    ended = set(state.RunState) - listed_only
    assert set(frame.STATE_ROLES) <= ended
    for screen in GLOSSARY:
        assert not unexplained(screen, *(ended - {state.RunState.STALE}), "stalled", "usually 2")
        assert not unexplained(screen, "no end record")
    of_runs = "archived error to be judged, not judged healthy selected"
    assert not unexplained("runs", of_runs)
    assert not unexplained("main", *frame._BADGES.values(), "healthy", "seen")
    assert not unexplained("main", "not judged yet (warm-up)", "gathering evidence")
    assert not unexplained("alerts", *alerts.AlertState, *WORD_OF_SEVERITY.values())
    assert not unexplained("alerts", *(severity.label for severity in Severity))
    states = {expert_card.condition(load) for load in (0.0, 0.05, 0.3, 1.0, 1.8, 3.0, 9.0, 20.0)}
    assert states == {"dead", "starving", "under", "fair", "over", "hot"}
    for screen in ("main", "expert", "compare"):
        assert not unexplained(screen, *states)
    assert not unexplained("layer", "collapsed", "specialised", "uniform", "undecided")


def test_every_screen_of_a_run_has_its_words_and_no_word_twice() -> None:
    for screen, words in GLOSSARY.items():
        assert words, screen
        names = [name.strip() for entry in words for name in entry.split(",")]
        assert len(names) == len(set(names)), screen
