"""The product has one limit, in bytes and lines, and no function decides too much at once."""

import ast
import tomllib

import pytest

from tests.architecture.sizes import (
    PRODUCT,
    ROOT,
    branches_of,
    dense_functions,
    files_of,
    size_of,
)

LIMITS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["limits"]
DENSE: dict[str, int] = {
    "microscope_tui/app/charts.py:lay_over": 18,
    "microscope_tui/app/out.py:row_text": 16,
    "microscope_tui/app/picture.py:_choose": 20,
    "microscope_tui/app/reader.py:_follow": 19,
    "microscope_tui/app/screens/alerts_screen.py:draw": 21,
    "microscope_tui/app/screens/base.py:key_line": 16,
    "microscope_tui/app/screens/runs_screen.py:_title": 19,
    "microscope_tui/app/screens/runs_screen.py:redraw": 17,
    "microscope_tui/commands/options.py:refuse_invalid": 21,
    "microscope_tui/diagnosis/advice.py:_remedy": 17,
    "microscope_tui/diagnosis/advice.py:_why": 16,
    "microscope_tui/diagnosis/advice.py:advise": 19,
    "microscope_tui/diagnosis/causes.py:_by_lint": 28,
    "microscope_tui/diagnosis/engine.py:observe": 17,
    "microscope_tui/diagnosis/engine.py:restart": 16,
    "microscope_tui/diagnosis/ledger.py:open": 24,
    "microscope_tui/diagnosis/repeats.py:add": 22,
    "microscope_tui/diagnosis/rules/collapse.py:_look_closer": 18,
    "microscope_tui/diagnosis/rules/collapse.py:read": 17,
    "microscope_tui/diagnosis/rules/dead.py:_judge": 21,
    "microscope_tui/diagnosis/rules/hot_expert.py:read": 18,
    "microscope_tui/diagnosis/rules/lint.py:_training_settings": 26,
    "microscope_tui/diagnosis/rules/lint.py:observe": 17,
    "microscope_tui/diagnosis/rules/meter.py:read": 26,
    "microscope_tui/diagnosis/rules/overload.py:_judge_loads": 17,
    "microscope_tui/diagnosis/rules/starved.py:read": 21,
    "microscope_tui/lines/bars.py:bias_bars": 18,
    "microscope_tui/lines/bars.py:load_bars": 23,
    "microscope_tui/lines/charts.py:course_charts": 17,
    "microscope_tui/lines/compare.py:moved_text": 20,
    "microscope_tui/lines/expert_card.py:across_layers": 18,
    "microscope_tui/lines/frame.py:_after_name": 18,
    "microscope_tui/lines/frame.py:_all_well": 20,
    "microscope_tui/lines/heat.py:cells_of": 22,
    "microscope_tui/lines/slices.py:slice_table": 19,
    "microscope_tui/lines/table.py:fit": 32,
    "microscope_tui/placement/cost.py:cost_of": 38,
    "microscope_tui/placement/counted.py:read_counts": 17,
    "microscope_tui/placement/files.py:_rows": 21,
    "microscope_tui/placement/files.py:write_form": 20,
    "microscope_tui/probe/header.py:_balance": 33,
    "microscope_tui/probe/still.py:_parts_of": 25,
    "microscope_tui/probe/still.py:_read": 16,
    "microscope_tui/probe/still.py:found": 40,
    "microscope_tui/probe/trained.py:_missing": 20,
    "microscope_tui/probe/trained.py:_places": 19,
    "microscope_tui/probe/trained.py:_weights": 21,
    "microscope_tui/probe/trained.py:trained": 30,
    "microscope_tui/report/check.py:_notes_on_the_log": 25,
    "microscope_tui/report/coverage.py:coverage_of": 22,
    "microscope_tui/routing/engine.py:_response": 29,
    "microscope_tui/runlog/index.py:_last": 16,
    "microscope_tui/runlog/validate.py:_check_counts": 16,
    "microscope_tui/runlog/validate.py:_check_run": 24,
    "microscope_tui/sources/catalogue.py:_of_folder": 17,
    "microscope_tui/sources/proposals.py:_as_matrix": 25,
    "microscope_tui/sources/proposals.py:propose": 17,
    "microscope_tui/sources/reader.py:whole_steps": 16,
    "microscope_tui/sources/row_records.py:read": 19,
    "microscope_tui/sources/row_records.py:step_record": 17,
    "microscope_tui/sources/tensorboard.py:first_step": 16,
    "microscope_tui/sources/tensorrt_llm.py:_read_files": 16,
    "microscope_tui/watch/fleet.py:_card": 30,
    "microscope_tui/watch/history.py:grouped": 27,
    "microscope_tui/watch/reference.py:aligned": 18,
    "microscope_tui/watch/run_watch.py:advance": 18,
    "microscope_tui/watch/view.py:view_of": 25,
    "moe_model/config.py:fitting": 19,
    "moe_model/huggingface/config.py:read_rope": 21,
    "moe_model/store.py:read_checkpoint": 16,
    "moe_model/training/distributed.py:share_fault": 18,
    "moe_model/training/resolving.py:_problems": 22,
    "moe_model/training/resolving.py:resolve": 19,
}
"""Functions that may have more than 15 branches. The list only shrinks."""


def test_the_product_keeps_its_limit() -> None:
    size, lines = size_of(files_of(*PRODUCT))
    assert size <= LIMITS["product_bytes"], "remove something before you add"
    assert lines <= LIMITS["product_lines"], "remove something before you add"


@pytest.mark.parametrize(
    ("folders", "limit"),
    [(["tests"], "test_lines"), (["benchmarks", "examples"], "benchmark_and_example_lines")],
    ids=["tests", "benchmarks and examples"],
)
def test_what_surrounds_the_product_keeps_its_limit(folders: list[str], limit: str) -> None:
    assert size_of(files_of(*folders))[1] <= LIMITS[limit]


def test_all_documents_can_be_read_in_an_afternoon() -> None:
    texts = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    words = sum(len(path.read_text(encoding="utf-8").split()) for path in texts)
    assert words <= LIMITS["document_words"]


def test_no_function_has_more_than_15_branches_but_those_listed() -> None:
    found = dense_functions(files_of(*PRODUCT))
    assert not {name: n for name, n in found.items() if n > DENSE.get(name, 0)}
    assert not DENSE.keys() - found.keys(), "take these from the list"


def test_every_decision_of_a_function_is_counted_and_none_of_an_inner_one() -> None:
    source = """
def outer(x):
    if x and x.a or x.b: pass             # 3
    elif x: pass                          # 1
    for y in [z for z in x if z if z.a]:  # 4
        while y: break                    # 1
    try: pass
    except ValueError: pass               # 1
    match x:
        case 1: pass                      # 1
    def inner(): return 1 if x else 2
    return 1 if x else 2                  # 1
"""
    outer = ast.parse(source).body[0]
    assert branches_of(outer) == 12
