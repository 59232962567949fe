"""``--ranks``: the cost of uneven load in ``check``, in snapshots and on the screens."""

import json
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.kit.session import Preferences
from microscope_tui.watch.cost import CostRequest
from tests.app.pilot import open_app
from tests.conftest import Call, header, step

UNEVEN, FAIR = [300, 100, 100, 100, 50, 50, 50, 50], [100] * 8


@pytest.fixture
def run(write_log: Any) -> Path:
    """Three layers; on 4 ranks the first one waits for half of the time."""
    head = header(expert_parallel_size=4)
    return write_log([head, *(step(n, [UNEVEN, FAIR, FAIR], 400) for n in range(1, 31))])


def test_check_reports_the_cost_and_its_exit_code_stays(call: Call, run: Path) -> None:
    code, text, _ = call("check", run, "--expert-share", "0.5", "--nodes", "2")
    assert "  cost: 4 ranks: training and prefill lose 25% of expert time, 14% of a whole" in text
    assert "(worst L1: 50%, busiest rank (0) 2.00 x mean); busiest node 1.17 x mean" in text
    code_of_one, text, _ = call("check", run, "--ranks", "1")
    assert (code_of_one, "cost" in text) == (code, False)
    code_of_json, text, _ = call("check", run, "--json", "--ranks", "2")
    cost = json.loads(text)["runs"][0]["cost"]
    assert code_of_json == code
    assert (cost["ranks"], cost["regime"], cost["steps"]) == (2, "tokens", 30)
    assert [one["ratio"] for one in cost["layers"]] == [1.5, 1.0, 1.0]
    assert cost["layers"][0]["busiest_pairs"] == 600
    assert cost["model"]["ratio"] == pytest.approx(1 + 0.5 / 3)
    assert json.loads(call("check", run, "--json", "--ranks", "1")[1])["runs"][0]["cost"] is None


def test_a_snapshot_reports_the_cost_at_its_step(call: Call, run: Path) -> None:
    assert " cost: 4 ranks: training and prefill lose 25%" in call("snapshot", run)[1]
    small = call("snapshot", run, "--ranks", "2", "--size", "60x20")[1].splitlines()
    assert next(line for line in small if "cost:" in line).endswith("…")
    cost = json.loads(call("snapshot", run, "--format", "json", "--step", "7")[1])["cost"]
    assert (cost["first_step"], cost["last_step"]) == (7, 7)
    assert "cost:" not in call("snapshot", run, "--ranks", "1")[1]
    plain_call = call(run, "--ranks", "8")[1]
    assert "cost: 8 ranks" in plain_call
    drawn = call("snapshot", run, "--screen", "layer", "--layer", "L1", "--ranks", "2")[1]
    assert "2 ranks  training and prefill lose 33% of expert time (model 14%)" in drawn
    assert "decode of 64 tokens" in drawn


async def test_the_layer_screen_and_the_overlay_are_on_the_given_ranks(run: Path) -> None:
    given = Preferences(interval_s=0.05, cost=CostRequest(ranks=2))
    async with open_app(run, "g", "v", "v", size=(140, 40), preferences=given) as app:
        assert "load per rank, 2 ranks" in app.text("heads").replace(", mean of 8 steps", "")
        assert "assumed" not in app.text("heads")
        await app.press("enter")
        assert "2 ranks  training and prefill lose 33%" in app.text("evidence")
        assert "mean of 30 steps" in app.text("evidence")
        await app.press("[")
        assert "step 29" in app.text("evidence")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--ranks", "0"], "--ranks 0: write a number from 1 up"),
        (["--ranks", "4", "--nodes", "3"], "--nodes 3: --ranks 4 does not divide by it"),
        (["--expert-share", "nan"], "--expert-share nan: write a share, above 0 up to 1"),
    ],
)
def test_misfit_numbers_are_a_usage_error(call: Call, run: Path, options: Any, says: str) -> None:
    for command in ([], ["check"], ["snapshot"]):
        code, out, err = call(*command, run, *options)
        assert (code, out, err) == (64, "", f"moe-microscope: {says}\n")
