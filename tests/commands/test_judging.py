"""What counts in a judgement, and the notes beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.commands.check.report import (
    CheckRequest,
    Judgement,
    judge,
    verdict_json,
    verdict_text,
)
from microscope_tui.diagnosis import Criteria
from microscope_tui.runlog import RunFile
from microscope_tui.watch import RunWatch
from tests.conftest import header, step

COLLAPSED = [2048, 2048, 0, 0, 0, 0, 0, 0]
FORBIDDEN = {"ERODING", "OVERLOAD", "STARVED", "DEAD", "SHOCK", "HOT_EXPERT"}


def judged(path: Path, **demand: Any) -> Judgement:
    return judge(RunFile(path.parent.name, path, 0.0), CheckRequest(**demand))


@pytest.fixture
def one_collapse(write_log: Any, balanced: Any) -> Any:
    """A log whose second router is collapsed in the steps asked for."""

    def write(sick: range, steps: int = 400, end: bool = True) -> Path:
        records = [
            step(n, [balanced(), COLLAPSED if n in sick else balanced(), balanced()], 2048)
            for n in range(1, steps + 1)
        ]
        over = [{"kind": "event", "event": "end", "reason": "finished", "step": steps}]
        return write_log([header(), *records, *(over if end else [])])  # type: ignore[no-any-return]

    return write


def collapses(judgement: Judgement) -> Sequence[int]:
    return [finding.onset for finding, _ in judgement.findings if finding.rule == "COLLAPSE"]


def test_an_active_finding_counts_whenever_it_began_unless_only_new_do(one_collapse: Any) -> None:
    path = one_collapse(range(150, 401))
    (onset,) = collapses(judged(path))
    assert judged(path, since_step=onset, new_only=True).exit_code == 2
    how: Any = {"since_step": onset + 1, "criteria": Criteria(frozenset(FORBIDDEN))}
    active = judged(path, **how)
    assert (active.exit_code, collapses(active)) == (2, [onset])
    words = f"only findings that began at step {onset + 1:,} or later or are active"
    assert list(active.notes)[-1] == words
    later = judged(path, new_only=True, **how)
    assert (later.exit_code, later.findings) == (0, [])
    assert f"only findings that began at step {onset + 1:,} or later" in later.notes
    assert f"an older finding is still active: COLLAPSE in L2 since step {onset:,}" in later.notes


def test_a_log_not_read_to_its_end_has_no_verdict_but_a_critical_one(one_collapse: Any) -> None:
    codes = []
    for sick in (range(0), range(150, 401)):
        path = one_collapse(sick)
        watch = RunWatch(RunFile("run", path, 0.0))
        while not watch.latest or watch.latest.record.step < 300:
            watch.advance(1 << 14)
        codes.append(judge(watch.file, watch=watch).exit_code)
    assert codes == [3, 2]


def test_an_older_finding_that_is_over_is_not_named(one_collapse: Any) -> None:
    path = one_collapse(range(110, 200), steps=500)
    later = judged(path, since_step=400, new_only=True)
    assert (later.exit_code, judged(path, since_step=400).exit_code) == (0, 0)
    assert not [note for note in later.notes if "still active" in note]


def test_evidence_that_is_building_up_is_noted(one_collapse: Any) -> None:
    judgement = judged(one_collapse(range(200, 999), steps=212, end=False))
    assert (judgement.exit_code, judgement.findings) == (0, [])
    assert list(judgement.notes) == ["L2 at .00 for 13 steps, gathering evidence"]
    assert judged(one_collapse(range(200, 999), steps=212)).exit_code == 1


def test_a_range_behind_the_newest_step_is_noted(one_collapse: Any) -> None:
    (note,) = judged(one_collapse(range(0), steps=50), since_step=999).notes
    words = "only findings that began at step 999 or later or are active"
    assert note == f"{words}; the newest step is 50"


def test_information_is_one_line_and_fails_nothing(scenario: Any) -> None:
    path = scenario("shock", routers=2, steps=1000) / "metrics.jsonl"
    judgement = judged(path)
    assert judgement.exit_code == 0
    head, *rest = verdict_text(judgement).splitlines()
    assert "healthy" in head
    assert [line.split(":")[0] for line in rest] == ["  INFO SHOCK"] * len(rest)
    assert rest
    findings = verdict_json([judgement])["runs"][0]["findings"]
    assert {finding["severity"] for finding in findings} == {"info"}


def test_a_finding_of_the_whole_run_names_no_layer(scenario: Any) -> None:
    path = scenario("lint-no-balance", routers=3, steps=150) / "metrics.jsonl"
    judgement = judged(path)
    assert judgement.exit_code == 1
    assert "WARN LINT: A setting to check" in verdict_text(judgement)
    (run,) = verdict_json([judgement])["runs"]
    assert [finding["layers"] for finding in run["findings"]] == [[]]


@pytest.mark.parametrize("changes", [{}, {"balance": {"method": "none"}}])
def test_a_log_without_a_measured_load_is_not_judged_even_with_a_finding_of_the_header(
    write_log: Any, changes: dict[str, Any]
) -> None:
    steps = [{"kind": "step", "step": n, "loss": 2.0} for n in range(1, 200)]
    judgement = judged(write_log([header(**changes), *steps]))
    assert (judgement.exit_code, judgement.judged, judgement.waits_until) == (3, False, None)
    assert "the log has no router loads" in str(judgement.problem)


def test_counts_doubled_for_a_while_leave_a_warning(write_log: Any, balanced: Any) -> None:
    doubled = [[2 * count for count in balanced()] for _ in range(3)]
    rows = [doubled] * 20 + [[balanced()] * 3 for _ in range(280)]
    steps = [step(n, row, 2048) for n, row in enumerate(rows, 1)]
    assert judged(write_log([header(), *steps[:15]], name="early")).exit_code == 3
    judgement = judged(write_log([header(), *steps]))
    assert [f.rule for f, _ in judgement.findings] == ["METER"]
    assert judgement.exit_code == 1


def test_another_profile_than_the_headers_is_noted(scenario: Any) -> None:
    path = scenario("healthy", routers=3, steps=150) / "metrics.jsonl"
    judgement = judged(path, criteria=Criteria(profile="eval"))
    assert judgement.profile == "eval"
    assert "judged as eval (--profile, the header has pretrain)" in judgement.notes
    assert judged(path).notes == []


def test_the_advice_is_for_the_profile_that_was_judged_by(write_log: Any) -> None:
    def jitter(n: int) -> list[int]:
        counts = [512] * 8 if n < 60 else [585, 585, 585, 585, 585, 585, 586, 0]
        counts[n % 4] += 20
        counts[(n + 1) % 4] -= 20
        return counts

    path = write_log([header(), *(step(n, [jitter(n)] * 3, 2048) for n in range(1, 400))])

    def next_of(profile: str) -> str:
        found = judged(path, criteria=Criteria(profile=profile)).findings
        return next(advice.next for finding, advice in found if finding.rule == "DEAD")

    assert "at the batches" in next_of("pretrain")
    assert "do not remove the experts" in next_of("finetune")


def test_lines_of_one_step_are_named_and_the_first_counts(write_log: Any, balanced: Any) -> None:
    """As of a trainer that logs every micro-batch."""
    records = [step(n, [balanced()] * 3, 2048) for n in range(1, 131)]
    for at in (60, 5):
        records[at:at] = [records[at - 1]] * 3
    words = "step 5 written 4 times: only the first counts; log one line per step"
    notes = judged(write_log([header(), *records])).notes
    assert words in notes
    assert "unreadable" not in str(notes)
