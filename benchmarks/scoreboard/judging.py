"""One case through the real path: bytes, records, engine; and the baselines beside it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from benchmarks.scenarios import SCENARIOS
from benchmarks.scoreboard.baselines import Alarm, baselines
from benchmarks.scoreboard.plan import Case, drawn
from microscope_tui import measures
from microscope_tui.diagnosis import Criteria, Diagnosis, Episode
from microscope_tui.runlog import Entry, RunReader, RunRecord, StepEntry, StepRecord
from microscope_tui.scenarios import Shape, Truth, lines
from microscope_tui.watch import Judge


@dataclass(slots=True)
class Fall:
    """When the balance of some routers first fell below a limit, step by step, noise and all."""

    rules: tuple[str, ...]
    """Which should have warned by then."""
    routers: tuple[int, ...]
    limit: float
    start: int
    """Earlier steps do not count: routers are uneven in the beginning."""
    step: int | None = None

    def observe(self, run: RunRecord, record: StepRecord) -> None:
        """Take one step."""
        effective = record.router.effective_experts
        if self.step is not None or record.step < self.start or effective is None:
            return
        for index in self.routers:
            router = run.routers[index]
            c = measures.collapse_index(effective[index], router.num_experts, router.top_k)
            if c is not None and c < self.limit:
                self.step = record.step


@dataclass(slots=True, kw_only=True)
class Judged:
    """All that is needed to score one run."""

    case: Case
    shape: Shape
    truth: Truth
    diagnosis: Diagnosis | None = None
    alarms: dict[str, list[Alarm]] = field(default_factory=baselines)
    fall: Fall | None = None
    steps: int = 0

    @property
    def episodes(self) -> list[Episode]:
        """What the engine said."""
        return self.diagnosis.episodes if self.diagnosis else []


def judge(case: Case) -> Judged:
    """Write the run, read it back, judge it.

    Raises:
        ValueError: the scenario fits no such shape.
    """
    shape = drawn(case)
    if shape is None:
        raise ValueError(f"scenario {case.scenario} does not fit {case.shape}")
    truth, encoded = lines(SCENARIOS[case.scenario], shape, case.seed)
    judged = Judged(case=case, shape=shape, truth=truth, fall=fall_of(truth))
    reader, engine = RunReader(case.scenario), Judge(case.scenario, Criteria())
    for line in encoded:
        _take(reader.feed(line), engine, judged)
    judged.diagnosis = engine.diagnosis
    return judged


def _take(entries: Iterable[Entry], engine: Judge, judged: Judged) -> None:
    for entry in entries:
        engine.take(entry)
        if not isinstance(entry, StepEntry) or engine.diagnosis is None:
            continue
        judged.steps += 1
        run, record = engine.diagnosis.run, entry.record
        for alarms in judged.alarms.values():
            for alarm in alarms:
                alarm.observe(run, record)
        if judged.fall is not None:
            judged.fall.observe(run, record)


def fall_of(truth: Truth) -> Fall | None:
    """What must be announced before the load shows it: a slide, and a divergence."""
    by_rule = {e.rule: e for e in truth.expected}
    collapse = by_rule.get("COLLAPSE")
    if collapse is None:
        return None
    if (sliding := by_rule.get("ERODING")) is not None:
        return Fall(("ERODING",), collapse.routers, 0.5, sliding.onset)
    if (spike := by_rule.get("GRADSPIKE")) is not None:
        return Fall(("GRADSPIKE", "LOGITS"), collapse.routers, 0.8, spike.onset)
    return None


def in_time(fall: Fall | None, episodes: Iterable[Episode]) -> bool | None:
    """Whether a warning came before the fall; ``None`` where there is none to come before."""
    if fall is None or fall.step is None:
        return None
    wanted = {*fall.routers, -1}
    said = [e.alarm for e in episodes if e.rule in fall.rules and e.router_index in wanted]
    said = [alarm for alarm in said if alarm >= fall.start]
    return min(said, default=math.inf) < fall.step
