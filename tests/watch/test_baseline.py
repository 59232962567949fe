"""Another run as the reference of a judgement."""

from pathlib import Path
from typing import Any

import pytest

from microscope_tui.commands.check.baseline import (
    MOST_STEPS,
    AgainstBaseline,
    Baseline,
    read_baseline,
)
from microscope_tui.diagnosis import Criteria
from microscope_tui.runlog import RouterInfo, RunFile, RunRecord
from tests.conftest import header, step

EVEN, ONE_DEAD = [4, 4, 4, 4], [8, 8, 0, 0]


def small(routers: int = 1) -> Any:
    model = {"layers": list(range(routers)), "layer_names": None, "num_experts": 4, "top_k": 1}
    return header(model=model)


def read(path: Path) -> Baseline:
    return read_baseline(RunFile(path.parent.name, path, 0.0))


def test_a_baseline_sums_up_the_last_steps_that_have_counts(write_log: Any) -> None:
    early = [step(n, [EVEN], 16) for n in range(1, 100)]
    late = [step(n, [ONE_DEAD], 16) for n in range(100, 100 + MOST_STEPS)]
    without = [{"kind": "step", "step": 1000, "loss": 1.0}]
    found = read(write_log([small(), *early, *late, *without]))
    assert (found.first_step, found.last_step, found.steps) == (100, 299, MOST_STEPS)
    reference = found.reference
    assert reference.dead == (frozenset({2, 3}),)
    assert reference.starved_share == (0.5,)
    assert reference.max_violation == (1.0,)
    assert reference.collapse_index[0] == pytest.approx(1 / 3)


def test_steps_that_a_resumed_run_took_back_do_not_count(write_log: Any) -> None:
    steps = [step(n, [ONE_DEAD], 16) for n in range(1, 50)]
    again = [step(n, [EVEN], 16) for n in range(1, 20)]
    found = read(write_log([small(), *steps, *again]))
    assert (found.last_step, found.reference.dead) == (19, (frozenset(),))


def test_a_router_without_counts_has_no_reference(write_log: Any) -> None:
    one = step(1, [EVEN, EVEN], 16)
    one["tokens_per_expert"][1] = None
    reference = read(write_log([small(2), one])).reference
    assert reference.dead == (frozenset(), None)
    assert (reference.starved_share[1], reference.max_violation[1]) == (None, None)


def test_other_routers_are_told_with_both_shapes(write_log: Any) -> None:
    found = read(write_log([small(), step(1, [EVEN], 16)]))
    same, other = RouterInfo("another name", 7, 4, 1), RouterInfo("L1", 1, 8, 2)
    assert found.mismatch(RunRecord("r", (same,))) is None
    assert found.mismatch(RunRecord("r", (other, other))) == (
        "the baseline has 1 router of 4 experts, top-1, the run has 2 routers of 8 experts, top-2"
    )
    mixed = found.mismatch(RunRecord("r", (same, other)))
    assert "1 router of 4 experts, top-1, 1 router of 8 experts, top-2" in str(mixed)


@pytest.mark.parametrize(
    ("header", "asked", "judged_as"),
    [
        *(("pretrain", "", "finetune"), ("eval", "", "eval"), ("pretrain", "pretrain", "pretrain")),
        ("finetune", "eval", "eval"),
    ],
)
def test_a_baseline_makes_a_run_a_fine_tuning_unless_somebody_says_otherwise(
    header: str, asked: str, judged_as: str
) -> None:
    run = RunRecord("r", (RouterInfo("L1", 1, 8, 2),), profile=header)
    assert AgainstBaseline(profile=asked).context(run).run.profile == judged_as
    assert Criteria(profile=asked).context(run).run.profile == (asked or header)
