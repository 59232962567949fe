"""What is copied reads well without the screen, and is safe to paste."""

import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microscope_tui.app import MOST_BYTES, row_text, value_text, verdict_text
from microscope_tui.app.out import _clean
from microscope_tui.diagnosis import Advice
from microscope_tui.runlog import RunFile
from microscope_tui.watch import LayerView, RunView, RunWatch, view_of


@pytest.fixture(scope="module")
def view(collapsed: Path) -> RunView:
    watch = RunWatch(RunFile("collapse", collapsed / "metrics.jsonl", 0.0))
    watch.read_all()
    return view_of(watch)


@pytest.fixture
def sick(view: RunView) -> LayerView:
    return min(view.layers, key=lambda layer: layer.collapse_index or 0.0)


def test_a_verdict_is_what_why_and_what_next_in_the_words_of_the_screen(view: RunView) -> None:
    finding, advice = view.alerts[0]
    assert verdict_text(view).splitlines() == [
        "collapse step 450 (finished): critical COLLAPSE",
        f"Verdict: {advice.verdict}",
        f"Why: {advice.why}",
        f"Next: {advice.next}",
    ]
    assert f"since step {finding.onset:,}" in verdict_text(view)
    twice = replace(view, findings=[*view.findings, view.findings[0]])
    assert verdict_text(twice).splitlines()[0].endswith("critical COLLAPSE (1 of 2 alerts)")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"findings": []}, "5 layers healthy, lowest balance .0"),
        ({"error": "permission denied"}, "permission denied"),
    ],
)
def test_a_run_without_a_finding_is_one_line(
    view: RunView, change: dict[str, Any], text: str
) -> None:
    found = verdict_text(replace(view, **change))
    assert found.startswith(f"collapse step 450 (finished): {text}")
    assert "\n" not in found


def test_a_row_is_one_line_with_its_numbers_and_its_alert(view: RunView, sick: LayerView) -> None:
    text = row_text(sick, view)
    assert text.startswith(f"{sick.router.name} step 450: balance c .0")
    assert " of 8 experts effective, top-2), entropy " in text
    assert " of 2.08, max load " in text
    assert text.endswith(f"critical COLLAPSE since {view.alerts[0][0].onset}")
    assert "\n" not in text


def test_a_healthy_row_has_no_alert_as_far_as_that_is_known(view: RunView) -> None:
    layer = view.layers[0]
    assert row_text(layer, view).endswith(", no alert")
    early = replace(view, judged=0.5, judged_step=220)
    assert row_text(layer, early).endswith(", no alert up to step 220")


def test_a_row_leaves_out_what_was_not_measured_and_shows_drops_as_the_screen_does(
    view: RunView,
) -> None:
    nothing: dict[str, Any] = dict.fromkeys(("collapse_index", "entropy", "max_load", "drop_rate"))
    layer = view.layers[0]
    assert row_text(replace(layer, **nothing), replace(view, record=None)) == (
        f"{layer.router.name} step 0: no alert"
    )
    for rate, text in ((0.12, "12%"), (0.001, "<1%"), (float("nan"), "NaN")):
        assert f", dropped {text}, " in row_text(replace(layer, drop_rate=rate), view)
    assert ", nothing dropped, " in row_text(replace(layer, drop_rate=0.0), view)


def test_a_value_has_all_its_digits_and_is_empty_if_there_is_none(sick: LayerView) -> None:
    assert float(value_text(sick)) == sick.collapse_index
    assert sick.load is not None
    assert [float(value_text(sick, expert)) for expert in range(8)] == list(sick.load)
    assert value_text(replace(sick, collapse_index=None)) == ""
    assert value_text(replace(sick, load=None), 0) == ""
    assert value_text(sick, 8) == value_text(sick, -1) == ""


@given(st.lists(st.text(st.characters(exclude_categories=())), min_size=1, max_size=6))
def test_no_text_holds_what_a_terminal_obeys(lines: list[str]) -> None:
    text = _clean(*lines)
    assert text.count("\n") == len(lines) - 1
    categories = {unicodedata.category(char) for char in text if char != "\n"}
    assert not categories & {"Cc", "Cf", "Cs", "Zl", "Zp"}


@pytest.mark.parametrize("char", ["x", "é", "界", "\N{CHEQUERED FLAG}"])
def test_a_text_is_never_longer_than_a_clipboard_takes(view: RunView, char: str) -> None:
    long = Advice(*[char * 5000] * 4)
    text = verdict_text(replace(view, findings=[(view.findings[0][0], long)]))
    assert 3000 < len(text.encode()) <= MOST_BYTES
    assert text.endswith("…")
