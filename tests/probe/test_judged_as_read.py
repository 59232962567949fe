"""What is judged beside the training is what a reader finds in the file afterwards."""

import math
import random
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from microscope_tui.commands.check.report import judge, verdict_text
from microscope_tui.diagnosis import Diagnosis
from microscope_tui.probe import Alert
from microscope_tui.runlog import RunFile, RunReader, StepEntry
from tests.probe import replay as replays
from tests.probe.replay import HEADER, Record, collapsing, open_recorder, replay, step, watch

SICK = (
    *("collapse", "early-collapse", "dead-experts", "divergence", "overflow", "bias-limit-cycle"),
    *("nan", "padding", "lint-no-balance", "shock"),
)
SPARSE = ("collapse", "early-collapse", "dead-experts", "padding", "bias-limit-cycle")
"""Also with counts in every tenth line only, where the last one cannot be recognised."""
RUNS = [(scenario, 1) for scenario in ("healthy", *SICK)] + [(scenario, 10) for scenario in SPARSE]
WORDS = {0: "healthy", 1: "WARNING", 2: "CRITICAL", 3: "NO VERDICT"}


class Recorded(NamedTuple):
    folder: Path
    scenario: str
    counts_every: int
    alerts: list[Alert]
    verdict: str


@pytest.fixture(
    name="recorded", scope="module", params=RUNS, ids=lambda run: f"{run[0]}-every-{run[1]}"
)
def _recorded(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    scenario, counts_every = request.param
    folder = tmp_path_factory.mktemp("recorded")
    header, *steps = replays.records_of(scenario)
    recorder = open_recorder(folder, header, counts_every=counts_every)
    alerts = replay(recorder, steps)
    recorder.close(step=replays.STEPS, reason="finished")
    return Recorded(folder, scenario, counts_every, alerts, recorder.verdict())


def test_alerts_are_those_of_the_diagnosis_of_the_written_file(recorded: Recorded) -> None:
    read = watch(recorded.folder)
    assert read.defects.count == 0
    known = replays.episodes_of(read.diagnosis)
    alerts = recorded.alerts
    assert {(a.step, a.rule, layer) for a in alerts for layer in a.layers or (None,)} == {
        (at, rule, router) for at, rule, _, router, _ in known
    }
    for alert in alerts:
        same = [k for k in known if k[:2] == (alert.step, alert.rule)]
        mine = [k for k in same if k[3] in (alert.layers or (None,))]
        assert (alert.severity, alert.onset) in {(k[2], k[4]) for k in mine}
        assert alert.onset == min(k[4] for k in mine)
    is_found = recorded.counts_every == 1 or recorded.scenario != "bias-limit-cycle"
    assert bool(alerts) == (is_found and recorded.scenario in SICK)


def test_the_verdict_is_that_of_check(recorded: Recorded) -> None:
    judged = judge(RunFile("run", recorded.folder / "run" / "metrics.jsonl", 0.0))
    assert recorded.verdict.startswith(WORDS[judged.exit_code])
    printed = verdict_text(judged)
    for line in recorded.verdict.splitlines():
        assert line == "healthy" or line.split(": ", 1)[1] in printed


def with_nan(first: int, last: int) -> list[Record]:
    steps = collapsing(1, 300, layers=())
    for one in steps[first - 1 : last]:
        one |= {"router": {"z_loss": [math.nan] * 4}, "expert_bias": [[math.nan] * 8] * 4}
    return steps


def with_faulty_counts() -> list[Record]:
    """L3 collapses at step 200; from step 100 on L1 has twice the counts of the others."""
    steps = collapsing(1, 300)
    for one in steps[99:]:
        one["tokens_per_expert"] = [[2 * n for n in replays.EVEN], *one["tokens_per_expert"][1:]]
    return steps


COLLAPSE_AND_METER = (
    "CRITICAL cause: bias update too slow; explains COLLAPSE in L3\n"
    "CRITICAL COLLAPSE: Router collapse in L3 since step 200\n"
    "NO VERDICT METER: Meter fault in L1 since step "
)
NOTHING_CHOSEN = [step(n, [[2048] * 8] * 4) for n in range(1, 5)]
FEW = [step(1, [[9, 11, 8, 12, 10, 10, 11, 9]] * 4, tokens=40)]
TOO_FEW = "not judged: L1 has 10 assignments per expert in this dump, needs 56"
VERDICTS: dict[str, tuple[Record, list[Record], int, str]] = {
    "a collapse comes before a faulty meter": (
        {}, with_faulty_counts(), 2, COLLAPSE_AND_METER,
    ),
    "a meter fault that is over is a warning": (
        {}, with_nan(100, 150), 1,
        "WARNING METER: Meter fault in L1, L2 and 2 more layers from step 100 to 151",
    ),
    "a meter fault is no verdict": (
        {}, with_nan(240, 300), 3,
        "NO VERDICT METER: Meter fault in L1, L2 and 2 more layers since step 240",
    ),
    "routers without a choice have no verdict": (
        {"model": HEADER["model"] | {"top_k": 8}}, NOTHING_CHOSEN, 3,
        "NO VERDICT: no router has more experts",
    ),
    "a dump with few assignments is not judged": (
        {"profile": "eval", "planned_steps": 1}, FEW, 3, TOO_FEW,
    ),
}  # fmt: skip


@pytest.mark.parametrize("claim", VERDICTS)
def test_the_words_of_the_verdict_follow_the_exit_code(claim: str, tmp_path: Path) -> None:
    header, steps, exit_code, verdict = VERDICTS[claim]
    recorder = open_recorder(tmp_path, HEADER | header)
    assert recorder.verdict() == "NO VERDICT: no step was judged"
    replay(recorder, steps)
    judged = judge(RunFile("run", tmp_path / "run" / "metrics.jsonl", 0.0))
    assert recorder.verdict().startswith(verdict)
    assert judged.exit_code == exit_code


def test_of_a_step_that_is_recorded_twice_the_first_one_is_judged(tmp_path: Path) -> None:
    steps = zip(collapsing(1, 230), collapsing(1, 230, at=1), strict=True)
    twice = [one for pair in steps for one in pair]
    (alert,) = [a for a in replay(open_recorder(tmp_path), twice) if a.rule == "COLLAPSE"]
    assert (alert.step, "COLLAPSE", "crit", "L3", 200) in replays.episodes_of(
        watch(tmp_path).diagnosis
    )
    assert alert.onset == 200


def odd_steps() -> list[Record]:
    """Numbers of all sizes, rows without a bias, readings that are missing or not finite."""
    rng = random.Random(0)
    made = []
    for number in range(1, 25):
        rows = [[rng.randrange(10 ** rng.randrange(1, 9)) for _ in range(8)] for _ in range(4)]
        biases = [[rng.gauss(0, 10.0 ** rng.randrange(-9, 6)) for _ in row] for row in rows]
        biases[number % 4] = [] if number % 3 else [math.nan, -math.inf, 0.0, 1.0] * 2
        made.append(
            step(
                number,
                rows,
                loss=rng.choice([math.nan, math.inf, 1 / 3, 1e-300]),
                losses={"aux": 1 / 3} if number % 2 else None,
                tokens=rng.choice([0, 2048, 10**17]),
                grad_norm=rng.choice([None, math.inf, 2 / 3]),
                expert_bias=biases if number % 5 else None,
                router={"entropy": [1 / 3, None, math.nan, 2.0], "tokens": [1, 2, 3, 2**60]},
            )
        )
    return made


@pytest.mark.parametrize("counts_every", [1, 4])
def test_every_number_is_judged_as_it_is_read(
    counts_every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[Any] = []

    def look(_: object, record: Any, counts: Any, biases: Any) -> list[Any]:
        rows = [(counts(index) or None, biases(index) or None) for index in range(4)]
        judged.append(repr((record, rows)))
        return []

    monkeypatch.setattr(Diagnosis, "observe", look)
    replay(open_recorder(tmp_path, counts_every=counts_every), odd_steps())
    data = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    read = [
        repr((entry.record, [(entry.counts(i), entry.biases(i)) for i in range(4)]))
        for entry in RunReader("run").feed(data)
        if isinstance(entry, StepEntry)
    ]
    assert judged == read
