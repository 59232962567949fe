"""A wide screen is used: wider cells and longer curves, and nothing runs over the edge."""

from pathlib import Path

import pytest

from microscope_tui.lines import TableLayout, fit, plain, table
from microscope_tui.runlog import RunFile
from microscope_tui.scenarios import Shape, write_run
from microscope_tui.watch import RunView, RunWatch, view_of


@pytest.fixture(scope="module", params=[(8, 6), (16, 10), (64, 5)], ids=lambda p: f"{p[0]} experts")
def view(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunView:
    experts, routers = request.param
    folder: Path = tmp_path_factory.mktemp("logs") / "run"
    write_run(folder, "healthy", shape=Shape(routers=routers, num_experts=experts, steps=20))
    watch = RunWatch(RunFile("run", folder / "metrics.jsonl", 0.0))
    watch.read_all()
    return view_of(watch)


def used(layout: TableLayout) -> int:
    """Cells of a row of the table, from the names to the dropped share."""
    return (
        layout.label
        + layout.heat
        + 2 * (2 + 4 + (layout.spark and layout.spark + 1))
        + 2
        + layout.drop
    )


@pytest.mark.parametrize("columns", range(72, 261, 4))
def test_a_row_uses_its_width_and_no_more(view: RunView, columns: int) -> None:
    layout = fit(view, columns, 60)
    assert used(layout) <= columns
    if columns <= 240:
        assert used(layout) >= 0.93 * columns
    assert len(plain(table.column_heads(view, layout))) <= columns


def test_with_more_columns_curves_shrink_only_where_the_load_grows(view: RunView) -> None:
    before: TableLayout | None = None
    for columns in range(72, 261):
        layout = fit(view, columns, 60)
        if before is not None:
            assert layout.cell >= before.cell
            assert layout.heat > before.heat or layout.spark >= before.spark
        before = layout
