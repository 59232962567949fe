"""Every empty part says why it is empty and what would fill it."""

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from microscope_tui.draw import words
from microscope_tui.draw.bars import load_bars
from microscope_tui.draw.charts import layer_charts
from microscope_tui.draw.glyphs import Glyphs
from microscope_tui.draw.heat import Heat
from microscope_tui.draw.spans import line_width, plain
from microscope_tui.draw.table import expert_line, fit
from microscope_tui.screens.expert import text as expert_card
from microscope_tui.screens.main.as_text import snapshot_text
from microscope_tui.watch import RunWatch, view_of
from tests.conftest import header, open_log, step

ONE = {"layers": [0], "layer_names": ["all layers"], "num_experts": 0, "top_k": None}
SUMMARIES = {"model": ONE, "source": {"writer": "other", "counts": "none"}}
NO_TOP_K = {"model": {"top_k": None}}


@pytest.fixture
def watched(write_log: Any, balanced: Any) -> Callable[[Any], RunWatch]:
    """A run with this in its header; of ``SUMMARIES`` there is only the largest load."""

    def watch(changes: dict[str, Any]) -> RunWatch:
        steps = [step(n, [balanced() for _ in range(3)], 2048) for n in range(1, 6)]
        if changes is SUMMARIES:
            steps = [{"kind": "step", "step": 1, "loss": 2.0, "router": {"max_load": [3.25]}}]
        return open_log(write_log([header(**changes), *steps]))  # type: ignore[no-any-return]

    return watch


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
def test_a_run_of_summaries_names_what_writes_counts(watched: Any, size: tuple[int, int]) -> None:
    text = snapshot_text(watched(SUMMARIES), *size)
    assert "no counts: only summaries; the probe writes counts (2 lines: docs/probe.md)" in text
    assert "max load 3.25" in text
    assert "E unknown" in text
    assert "no entropy in the log" in text
    assert "load: x dead" not in text  # a legend of nothing
    assert all(len(line) <= size[0] for line in text.splitlines())


@pytest.mark.parametrize("columns", [80, 160, 200])
def test_a_column_that_no_layer_fills_is_left_out_and_the_curve_has_its_room(
    watched: Any, write_log: Any, columns: int
) -> None:
    """Only a log with capacity can drop, and only one with entropies has their curve."""
    entropy, both = {"entropy": [1.0] * 3}, {"entropy": [1.0] * 3, "drop_rate": [0.1] * 3}
    runs = {"": watched({}), " ": watched(SUMMARIES)}
    for shown, router in {"entropy": entropy, "entropy drop": both}.items():
        steps = [step(n, [[8] * 8] * 3, 32, router=router if n == 1 else {}) for n in (1, 2)]
        path = write_log([header(), *steps], name=shown)
        runs[shown] = open_log(path)
    for shown, watch in runs.items():
        layout, text = (
            fit(view_of(watch), columns, 40),
            snapshot_text(watch, columns, 40),
        )
        heads = next(line for line in text.splitlines() if line.startswith("  layer"))
        assert [word for word in ("entropy", "drop") if word in heads] == shown.split()
        widths = layout.label + layout.heat, layout.curve, layout.entropy, layout.drop
        assert columns - 8 <= sum(2 + width for width in widths if width) - 2 <= columns


def test_an_unknown_top_k_is_named_where_the_balance_would_be(watched: Any) -> None:
    text = snapshot_text(watched(NO_TOP_K), 80, 24)
    assert text.count("k unknown") == 3
    assert "use --top-k" in text
    assert "healthy" not in text
    text = snapshot_text(watched({}), 100, 30)
    assert "unknown" not in text
    assert "no counts" not in text


def test_the_charts_of_a_layer_name_what_they_need(watched: Any) -> None:
    view = view_of(watched(NO_TOP_K))
    charts = layer_charts(view, view.layers[0])
    assert not charts["balance"].measured
    assert charts["balance"].nothing == "top_k is unknown: use --top-k"
    assert "docs/probe.md" in charts["entropy"].nothing
    nothing = words.no_counts(view_of(watched(SUMMARIES)))
    lines = load_bars(None, (40, 6), Glyphs.BRAILLE, step=1, nothing=nothing)
    assert " ".join(plain(line).strip() for line in lines).count("docs/probe.md") == 1
    assert [line_width(line) for line in lines] == [40] * 6


def test_a_mean_entropy_that_was_not_logged_has_no_words(synthetic: Any) -> None:
    view = view_of(synthetic("healthy", routers=2, steps=20))
    known = replace(view.layers[0], mean_entropy=1.25)
    assert layer_charts(view, known)["entropy"].note == "mean 1.25"
    assert layer_charts(view, replace(known, mean_entropy=None))["entropy"].note == ""


@pytest.mark.parametrize(
    ("header", "of", "wrong"),
    [
        ({}, "of 2,048 tokens", "assignments"),
        (NO_TOP_K, "of 4,096 assignments", "tokens"),
        ({"source": {"writer": "w", "counts": "shares"}}, "of the load", "tokens"),
    ],
)
def test_a_share_of_the_tokens_is_not_claimed_where_k_or_the_tokens_are_unknown(
    watched: Any, header: dict[str, Any], of: str, wrong: str
) -> None:
    view = view_of(watched(header))
    card = expert_card.facts(view, view.layers[0], 3, 100)
    for text in (
        " ".join(map(plain, card)),
        expert_line(view, 0, 3, Heat()),
    ):
        assert of in text
        assert wrong not in text
