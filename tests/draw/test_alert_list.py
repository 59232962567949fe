"""The list of alerts: their order, what is later, what a filter finds, and severity over time."""

from typing import Any

import pytest

from microscope_tui.draw.spans import line_width, plain
from microscope_tui.screens.alerts import text as alerts
from microscope_tui.screens.alerts.text import Entry
from microscope_tui.screens.layer.screen import evidence
from microscope_tui.watch import RunView, RunWatch, Window, pin_at, view_of
from tests.conftest import header, open_log, step


@pytest.fixture
def troubled(write_log: Any, balanced: Any) -> RunWatch:
    """400 steps: L2 collapses at 100 and recovers, L3 collapses at 300 and stays so."""
    sick, records = [2048, 2048, 0, 0, 0, 0, 0, 0], [header(planned_steps=400)]
    for n in range(1, 401):
        second = sick if 100 <= n < 180 else balanced()
        records.append(step(n, [balanced(), second, sick if n >= 300 else balanced()], 2048))
    return open_log(write_log(records))  # type: ignore[no-any-return]


def entries(view: RunView, seen: Any = (), pattern: str = "") -> list[Entry]:
    return alerts.entries_of(view, (), seen, pattern)


def view_at(watch: RunWatch, step: int) -> RunView:
    moment = pin_at(watch, step)
    assert moment is not None
    return view_of(watch, at=moment)


def roles(entry: Entry, view: RunView) -> list[str]:
    return [span.role for span in alerts.track(entry, view, 100, 40)[1:41]]


def marked(entry: Entry, view: RunView) -> list[int]:
    return [at for at, role in enumerate(roles(entry, view)) if role != "faint"]


def test_alerts_that_begin_after_the_shown_step_are_later(troubled: RunWatch) -> None:
    known = view_of(troubled).findings
    for at, states in ((150, ["active", "later"]), (50, ["later", "later"])):
        found = alerts.entries_of(view_at(troubled, at), known, (), "")
        assert [e.state for e in found] == states


def test_the_evidence_of_a_layer_is_its_own_not_of_the_worst(write_log: Any, balanced: Any) -> None:
    mild, worst = [1650, 1650, 150, 150, 150, 150, 100, 96], [2048, 2048, 0, 0, 0, 0, 0, 0]
    rows = {n: [mild, worst, balanced()] if n > 150 else [balanced()] * 3 for n in range(1, 301)}
    steps = [step(n, row, 2048) for n, row in rows.items()]
    watch = open_log(write_log([header(planned_steps=300), *steps]))
    view = view_of(watch)
    for layer, share in ((0, "81%"), (1, "100%")):
        text = "\n".join(map(plain, evidence(watch, view, layer, 120, 9)))
        assert f"Router collapse in L{layer + 1} since" in text
        assert f"take {share} of the load" in text
        assert "In L" not in text


@pytest.mark.parametrize(
    ("typed", "layers"),
    [
        *(("collapse", ["L3", "L2"]), ("l3", ["L3"]), ("critical !l3", ["L2"])),
        *(("recovered", ["L2"]), ("warning", []), ("colla L2", ["L2"])),
    ],
)
def test_a_filter_finds_rules_layers_and_severities(troubled: Any, typed: str, layers: Any) -> None:
    found = entries(view_of(troubled), pattern=typed)
    assert [layer for entry in found for layer in entry.finding.layers] == layers


def test_the_track_shows_when_and_how_bad_in_the_columns_of_the_ribbon(troubled: RunWatch) -> None:
    view = view_of(troubled)
    active, over = entries(view)
    assert {29, *marked(active, view)} == {*range(29, 40)}
    assert roles(active, view)[-1] == "crit"
    ended = max(e.recovered_at or 0 for e in over.finding.episodes)
    assert marked(over, view) == [*range(9, (ended - 2) // 10 + 1)]
    for alert, window, cells in ((active, (391, 400), 40), (over, (ended - 5, ended + 4), 20)):
        near = view_of(troubled, window=Window(*window))
        assert marked(alert, near) == [*range(cells)], "all columns of its last step"
    line = plain(alerts.track(active, view, 100, 40))
    assert "C━━━" in line
    assert "crit from" in line
    assert line_width(alerts.track(active, view, 60, 26)) == 60
    then = view_at(troubled, 120)
    (entry,) = entries(then)
    assert marked(entry, then) == [9, 10, 11]


def test_an_unfolded_alert_that_is_cut_says_so(troubled: RunWatch) -> None:
    (active, _) = entries(view_of(troubled))
    for height in (1, 2, 5, 30):
        lines = alerts.unfolded(active, 60, height)
        assert {line_width(line) for line in lines} == {60}
        assert len(lines) <= height
        assert ("more lines" in plain(lines[-1])) == (height == 5)
    assert alerts.unfolded(active, 60, len(lines)) == lines, "what just fits is not cut"
