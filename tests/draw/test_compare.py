"""What changed between two moments: ranks, pairs of layers, and layers that have no partner."""

from pathlib import Path
from typing import Any

import pytest

from microscope_tui.draw.heat import Heat, Look, Measure
from microscope_tui.draw.spans import line_width, plain
from microscope_tui.runlog import RunFile
from microscope_tui.screens.compare import text as compare
from microscope_tui.watch import NothingToCompare, PinnedRun, Reference, aligned, reference_of
from microscope_tui.watch.past_steps import pin_at
from microscope_tui.watch.reference import reference_in
from microscope_tui.watch.run_watch import RunWatch
from microscope_tui.watch.view import RunView, view_of
from tests.conftest import header, open_log, step

NOT_FOLLOWED = lambda _: None  # noqa: E731


@pytest.fixture
def make_log(write_log: Any, balanced: Any) -> Any:
    """A run of some steps whose layer L2 collapses at ``sick_from``."""

    def make(
        name: str = "run", steps: int = 40, sick_from: int = 20, names: Any = ("L1", "L2", "L3")
    ) -> Path:
        model = {"layers": list(range(len(names))), "layer_names": list(names)}
        records = [header(run=name, model=model)]
        sick = [2048, 2048, 0, 0, 0, 0, 0, 0]
        for n in range(1, steps + 1):
            rows = [sick if layer == "L2" and n >= sick_from else balanced() for layer in names]
            records.append(step(n, rows, 2048, loss=8.0 - n / 10, learning_rate=1e-3))
        return write_log(records, name=name)

    return make


@pytest.fixture
def make_run(make_log: Any) -> Any:
    return lambda *what, **more: open_log(make_log(*what, **more))


def at_step(watch: RunWatch, step: int) -> Reference:
    moment = pin_at(watch, step)
    return reference_of(watch.file.name, moment, watch.run)


def drawn(view: RunView, reference: Reference, rows: int = 12, columns: int = 120) -> list[str]:
    layout = compare.fit_compare(view, reference, columns, rows, len(view.layers))
    heat = Heat(Look(measure=Measure.DIFFERENCE), reference=reference, colour=False)
    lines = [layout.table.heads()]
    for layer in view.layers:
        lines += compare.layer_lines(layer, reference, layout, heat, chosen=False)
    assert {line_width(line) for line in lines} == {columns}
    return [plain(line) for line in lines]


def test_a_collapse_in_between_is_a_worse_balance_and_experts_without_tokens(make_run: Any) -> None:
    watch = make_run()
    view, reference = view_of(watch), at_step(watch, 10)
    _, first, second, _ = drawn(view, reference, rows=3)
    assert ".00 -1.00" in second
    assert second.endswith(" #######" * 2 + " xxxxxxx" * 6)
    assert "-1.00" not in first
    layer = view.layers[1]
    assert compare.moved_text(layer, reference, 200) == (
        f"L2: up 0 ({reference.loads[1][0]:.2g} to 4), 1 ({reference.loads[1][1]:.2g} to 4); "  # type: ignore[index]
        "without tokens now 2, 3, 4 and 3 more"
    )
    assert "no expert changed its load" in compare.moved_text(view.layers[0], reference, 200)


def test_layers_of_two_runs_are_matched_by_name_in_any_place(make_run: Any) -> None:
    one = make_run("one", names=("L0", "L2", "L3", "L9"))
    two = make_run("two", names=("L2", "L3", "L4"))
    view = view_of(two)
    raw = at_step(one, 40)
    reference = aligned(raw, two.run)
    assert reference.loads[:3] == [raw.loads[1], raw.loads[2], None]
    assert aligned(reference, two.run) == reference
    assert reference.record.router.max_load[2] is None
    assert compare.why_not_comparable(view.layers[0], reference) is None
    assert compare.why_not_comparable(view.layers[2], reference) == "no L4 in A"
    assert compare.only_in_reference(view, reference) == "only in A: L0, L9"
    assert any("no L4 in A" in line for line in drawn(view, reference))


def test_the_second_layer_of_one_name_is_matched_with_the_second(make_run: Any) -> None:
    one = make_run("one", names=("L1", "L1"))
    two = make_run("two", names=("L0", "L1", "L1"))
    raw = at_step(one, 5)
    assert aligned(raw, two.run).loads == [None, *raw.loads]


def test_other_numbers_of_experts_are_named_balance_compared(make_run: Any, write_log: Any) -> None:
    few = header(run="few", model={"num_experts": 4})
    path = write_log([few, step(1, [[3, 3, 2, 2]] * 3, 5)], name="few")
    watch, other = make_run(), open_log(path)
    view = view_of(watch)
    reference = aligned(reference_in(other, 1), watch.run)
    assert compare.why_not_comparable(view.layers[0], reference) == "4 experts in A, 8 in B"
    assert any("4 experts in A, 8 in B" in line for line in drawn(view, reference))
    assert compare.moved_text(view.layers[0], reference, 99) == "L1: 4 experts in A, 8 in B"


def test_a_pinned_run_is_read_again_only_when_its_file_has_changed(make_log: Any) -> None:
    path = make_log(steps=5)
    pinned = PinnedRun(RunFile("run", path, 0.0), NOT_FOLLOWED)
    assert pinned.at(3).step == 3
    first = pinned._own
    assert pinned.at(99).step == 5
    assert pinned._own is first
    make_log(steps=7)
    assert pinned.at(99).step == 7


def test_a_pinned_run_that_is_followed_is_not_read_twice(make_log: Any) -> None:
    path = make_log()
    watch = open_log(path)
    pinned = PinnedRun(watch.file, lambda wanted: watch if wanted == path else None)
    assert pinned.at(7).step == 7
    assert pinned._own is None


def test_a_pinned_run_without_a_step_is_refused_and_why(write_log: Any, tmp_path: Path) -> None:
    packed = tmp_path / "metrics.jsonl.gz"
    packed.write_bytes(b"\x1f\x8b")
    empty = write_log([header()])
    for path, why in ((packed, "decompress it"), (empty, "no step to compare")):
        with pytest.raises(NothingToCompare, match=why):
            PinnedRun(RunFile("run", path, 0.0), NOT_FOLLOWED).at(1)
    empty.unlink()
    with pytest.raises(FileNotFoundError):
        PinnedRun(RunFile("run", empty, 0.0), NOT_FOLLOWED).at(1)
