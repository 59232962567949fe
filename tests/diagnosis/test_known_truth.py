"""Synthetic runs with known truth: everything that is wrong is found in time, and nothing else."""

import pytest

from benchmarks.scenarios import KNOBS, SCENARIOS
from benchmarks.scoreboard.judging import judge
from benchmarks.scoreboard.plan import Case
from benchmarks.scoreboard.score import Outcome, false_alarms, outcomes
from microscope_tui.diagnosis import Criteria, report
from microscope_tui.runlog import RunReader
from microscope_tui.scenarios import Shape, lines
from microscope_tui.watch.judge import Judge

DELAYS = {
    **{"shock": (31,), "hot-expert": (100,), "collapse": (48,), "slow-collapse": (117, 193)},
    **{"dead-experts": (111,), "starving-finetune": (84,), "divergence": (67, 76, 71)},
    **{"bias-limit-cycle": (262,), "bias-runaway": (458,), "overflow": (31,)},
    **{"dead-gradient": (589,), "rank-skew": (100,), "double-counting": (2,)},
    **{"lint-no-balance": (0,), "even-but-one": (100,), "collapse-unconfident": (36,)},
    **{"early-collapse": (87,), "lr-restarts": (24, 23, 35), "from-shares": (117, 193)},
    **{"from-top1": (38,), "bias-bang-bang": (284,), "forced-balance": (2,), "padding": (2,)},
    **{"nan": (8,), "lint-top1-normalised": (0, 589), "lint-aux-not-applied": (0, 122)},
    **{"lint-pooled-aux": (59, 61), "bias-wrong-sign": (51,), "lint-gpt-oss-aux": (0,)},
    **{"dead-groups": (201,), "finetune-collapse": (80,), "long-plan": (37,), "sparse-log": (350,)},
    **{"rotation": (272,), "bias-odd-period": (267,), "impossible-counts": (2,)},
    **{"cause-unbalanced": (0, 188), "cause-too-slow": (224, 499), "cause-too-fast": (98, 100)},
    **{"cause-bias-lost": (0, 100), "cause-wrong-sums": (15,), "cause-frozen": (59,)},
    **{"cause-restart": (45,), "cause-rank": (103,), "cause-data": (26,), "cause-capacity": (100,)},
    **{"cause-divergence": (14, 66), "probed-collapse": (6,), "cause-stale-rows": (33,)},
    **{"hot-and-narrow": (26,), "idle-in-turn": (600,)},
}
"""Steps from the beginning of each trouble to its alarm; all others are healthy runs."""


def judged(name: str, shape: Shape, seed: int) -> list[Outcome]:
    """What became of the troubles of a run; a false alarm fails."""
    truth, encoded = lines(SCENARIOS[name], shape, seed)
    judge, reader = Judge(name, Criteria()), RunReader(name)
    for line in encoded:
        for entry in reader.feed(line):
            judge.take(entry)
    judge.diagnosis.conclude()
    episodes = judge.diagnosis.episodes
    assert false_alarms(truth, episodes) == []
    return outcomes(truth, episodes, shape.steps, shape.routers)


@pytest.mark.parametrize("name", [n for n in SCENARIOS if n not in KNOBS])
def test_everything_that_is_wrong_is_found_in_time_and_nothing_else(name: str) -> None:
    scenario = SCENARIOS[name]
    shape = Shape(routers=3, tokens=2048, steps=scenario.steps // 2)
    if not scenario.fits(shape):
        shape = Shape(routers=10, tokens=2048, steps=scenario.steps // 2)
    found = judged(name, shape, 0)
    assert [outcome.missing for outcome in found] == [""] * len(found)
    assert tuple(outcome.delay for outcome in found) == pytest.approx(DELAYS.get(name, ()), abs=3)
    for outcome in found:  # chance decides which token of a dying expert is the last
        assert outcome.dated or outcome.rule == "DEAD", outcome


@pytest.mark.parametrize("name", KNOBS)
def test_the_remedy_is_the_right_one_and_a_healthy_run_gets_none(name: str) -> None:
    shape = Shape(routers=8, tokens=4096, steps=KNOBS[name].steps)
    run = judge(Case(name, "8/2", 0), shape=shape)
    found = outcomes(run.truth, run.episodes, shape.steps, shape.routers)
    assert [outcome.missing for outcome in found] == [""] * len(found)
    assert all(outcome.dated for outcome in found)
    assert false_alarms(run.truth, run.episodes) == []
    assert run.named_first is not False, report(run.diagnosis)[:1]


@pytest.mark.parametrize("name", ["collapse", "healthy"])
@pytest.mark.parametrize(
    ("experts", "top_k", "tokens"), [(4, 1, 96), (64, 8, 2048), (128, 8, 4096)]
)
def test_a_collapse_is_found_at_every_size(
    name: str, experts: int, top_k: int, tokens: int
) -> None:
    shape = Shape(routers=3, num_experts=experts, top_k=top_k, tokens=tokens, steps=450)
    found = judged(name, shape, experts)
    assert all(outcome.hit and outcome.dated for outcome in found), found
    assert all((outcome.delay or 0) <= 55 for outcome in found), found
