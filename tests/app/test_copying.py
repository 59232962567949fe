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
from microscope_tui.scenarios import Shape, write_run
from microscope_tui.watch import RunView, RunWatch, view_of


@pytest.fixture(scope="module")
def collapsed(tmp_path_factory: pytest.TempPathFactory) -> RunView:
    """A finished run whose last router collapses."""
    folder: Path = tmp_path_factory.mktemp("runs") / "collapse"
    write_run(folder, "collapse", shape=Shape(routers=5, steps=450), seed=0)
    watch = RunWatch(RunFile("collapse", folder / "metrics.jsonl", 0.0))
    watch.read_all()
    return view_of(watch)


def sick(view: RunView) -> Any:
    return min(view.layers, key=lambda layer: layer.collapse_index or 0.0)


def test_a_verdict_is_what_why_and_what_next_in_the_words_of_the_screen(
    collapsed: RunView,
) -> None:
    finding, advice = collapsed.alerts[0]
    assert verdict_text(collapsed).splitlines() == [
        "collapse step 450 (finished): critical COLLAPSE",
        f"Verdict: {advice.verdict}",
        f"Why: {advice.why}",
        f"Next: {advice.next}",
    ]
    assert f"since step {finding.onset:,}" in verdict_text(collapsed)


def test_more_alerts_than_the_worst_are_counted(collapsed: RunView) -> None:
    twice = replace(collapsed, findings=[*collapsed.findings, collapsed.findings[0]])
    assert verdict_text(twice).splitlines()[0].endswith("critical COLLAPSE (1 of 2 alerts)")


def test_a_healthy_run_is_one_line(collapsed: RunView) -> None:
    text = verdict_text(replace(collapsed, findings=[]))
    assert text.startswith("collapse step 450 (finished): 5 layers healthy, lowest balance .0")
    assert "\n" not in text


def test_a_run_that_cannot_be_read_says_why(collapsed: RunView) -> None:
    text = verdict_text(replace(collapsed, error="permission denied"))
    assert text == "collapse step 450 (finished): permission denied"


def test_a_row_is_one_line_with_its_numbers_and_its_alert(collapsed: RunView) -> None:
    layer = sick(collapsed)
    onset = collapsed.alerts[0][0].onset
    text = row_text(layer, collapsed)
    assert text.startswith(f"{layer.router.name} step 450: balance c .0")
    assert " of 8 experts effective, top-2), entropy " in text
    assert " of 2.08, max load " in text
    assert text.endswith(f"critical COLLAPSE since {onset}")
    assert "\n" not in text


def test_a_healthy_row_says_that_there_is_no_alert_or_how_far_that_is_known(
    collapsed: RunView,
) -> None:
    layer = collapsed.layers[0]
    assert row_text(layer, collapsed).endswith(", no alert")
    early = replace(collapsed, judged=0.5, judged_step=220)
    assert row_text(layer, early).endswith(", no alert up to step 220")


def test_a_row_leaves_out_what_was_not_measured(collapsed: RunView) -> None:
    layer = replace(
        collapsed.layers[0],
        collapse_index=None,
        entropy=None,
        max_load=None,
        drop_rate=None,
    )
    blind = replace(collapsed, record=None)
    assert row_text(layer, blind) == f"{layer.router.name} step 0: no alert"


def test_drops_are_said_as_on_the_screen(collapsed: RunView) -> None:
    def said(rate: float) -> str:
        return row_text(replace(collapsed.layers[0], drop_rate=rate), collapsed)

    assert ", dropped 12%, " in said(0.12)
    assert ", dropped <1%, " in said(0.001)
    assert ", dropped NaN, " in said(float("nan"))
    assert ", nothing dropped, " in said(0.0)


def test_a_value_has_all_its_digits(collapsed: RunView) -> None:
    layer = sick(collapsed)
    assert float(value_text(layer)) == layer.collapse_index
    for expert in range(8):
        assert float(value_text(layer, expert)) == layer.load[expert]


def test_a_value_that_is_not_there_is_empty(collapsed: RunView) -> None:
    layer = collapsed.layers[0]
    assert value_text(replace(layer, collapse_index=None)) == ""
    assert value_text(replace(layer, load=None), 0) == ""
    assert value_text(layer, 8) == value_text(layer, -1) == ""


@given(st.lists(st.text(st.characters(exclude_categories=())), min_size=1, max_size=6))
def test_no_text_holds_what_a_terminal_obeys(lines: list[str]) -> None:
    text = _clean(*lines)
    assert text.count("\n") == len(lines) - 1
    categories = {unicodedata.category(char) for char in text if char != "\n"}
    assert not categories & {"Cc", "Cf", "Cs", "Zl", "Zp"}


@pytest.mark.parametrize("char", ["x", "é", "界", "\N{CHEQUERED FLAG}"])
def test_a_text_is_never_longer_than_a_clipboard_takes(collapsed: RunView, char: str) -> None:
    long = Advice(*[char * 5000] * 4)
    text = verdict_text(replace(collapsed, findings=[(collapsed.findings[0][0], long)]))
    assert 3000 < len(text.encode()) <= MOST_BYTES
    assert text.endswith("…")
