"""The results file: one line of JSON for every run, and what is still to be judged."""

import multiprocessing
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from benchmarks.scoreboard.judging import in_time, judge
from benchmarks.scoreboard.plan import Case, fingerprint
from benchmarks.scoreboard.score import FalseAlarm, Outcome, Plain, false_alarms, outcomes, plain

MOST_LISTED = 40
"""False alarms of one run that are kept one by one; all are counted."""


class RunScore(msgspec.Struct, kw_only=True):
    """How one run was judged."""

    scenario: str
    shape: str
    seed: int
    code: str
    """Fingerprint of the code that made and judged it."""
    layers: int = 0
    tokens: int = 0
    steps: int = 0
    seconds: float = 0.0
    hard_negative: bool = False
    outcomes: list[Outcome] = []
    false_warnings: int = 0
    false_criticals: int = 0
    false_alarms: list[FalseAlarm] = []
    in_time: bool | None = None
    """A warning came before the load had fallen; only where one is asked for."""
    named_first: bool | None = None
    """The first line names the planted cause; only where there is one."""
    baselines: dict[str, Plain] = {}
    error: str = ""
    """The judgement ended in an exception."""

    @property
    def is_positive(self) -> bool:
        """Something is wrong with the run."""
        return not self.hard_negative and any(o.severity != "info" for o in self.outcomes)

    @property
    def case(self) -> Case:
        """What it is a score of, and what it is found by."""
        return Case(self.scenario, self.shape, self.seed)


def score_case(case: Case) -> RunScore:
    """Judge one run and score it; an exception is a result too."""
    started = time.perf_counter()
    score = RunScore(scenario=case.scenario, shape=case.shape, seed=case.seed, code=fingerprint())
    try:
        judged = judge(case)
    except Exception:
        score.error = traceback.format_exc(limit=-4)
        return score
    truth, episodes, shape = judged.truth, judged.episodes, judged.shape
    wrong = false_alarms(truth, episodes)
    critical = [alarm for alarm in wrong if alarm.severity != "warn"]
    score.layers, score.tokens, score.steps = shape.routers, shape.tokens, judged.steps
    score.hard_negative = truth.hard_negative
    score.outcomes = outcomes(truth, episodes, shape.steps, shape.routers)
    score.false_criticals, score.false_warnings = len(critical), len(wrong) - len(critical)
    score.false_alarms = [*critical, *(a for a in wrong if a.severity == "warn")][:MOST_LISTED]
    score.in_time = in_time(judged.fall, episodes)
    score.named_first = judged.named_first
    score.baselines = {
        name: plain(truth, [episode for alarm in alarms for episode in alarm.episodes])
        for name, alarms in judged.alarms.items()
    }
    score.seconds = round(time.perf_counter() - started, 3)
    return score


def load(path: Path) -> dict[Case, RunScore]:
    """What is there already; a line torn by an interruption is left out."""
    found: dict[Case, RunScore] = {}
    if path.exists():
        for line in path.read_bytes().splitlines():
            try:
                score = msgspec.json.decode(line, type=RunScore)
            except msgspec.DecodeError:
                continue
            found[score.case] = score
    return found


def complete(cases: Sequence[Case], path: Path, jobs: int) -> list[RunScore]:
    """The scores of all cases; only those that ``path`` does not hold are judged."""
    known = load(path)
    todo = [case for case in cases if case not in known]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        if file.tell() and not path.read_bytes().endswith(b"\n"):
            file.write(b"\n")
        for score in _with_progress(_scored(todo, jobs), len(todo)):
            file.write(msgspec.json.encode(score) + b"\n")
            file.flush()
            known[score.case] = score
    return [known[case] for case in cases]


def _scored(cases: Sequence[Case], jobs: int) -> Iterator[RunScore]:
    if jobs <= 1 or len(cases) <= 1:
        yield from map(score_case, cases)
        return
    with multiprocessing.Pool(min(jobs, len(cases))) as pool:
        yield from pool.imap_unordered(score_case, cases)


def _with_progress(scores: Iterable[RunScore], number: int) -> Iterator[RunScore]:
    started = time.monotonic()
    for done, score in enumerate(scores, start=1):
        yield score
        left = (time.monotonic() - started) / done * (number - done)
        sys.stderr.write(f"\r{done:,} of {number:,} runs, {left / 60:.1f} minutes left   ")
        sys.stderr.flush()
    if number:
        sys.stderr.write("\n")
