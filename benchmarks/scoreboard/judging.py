"""One case through the real path: bytes, records, engine; and the baselines beside it."""

import math
import multiprocessing
import re
import resource
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.bulk import write_bulk
from benchmarks.scenarios import SCENARIOS
from benchmarks.scoreboard.baselines import Alarm, baselines
from benchmarks.scoreboard.plan import Case, drawn
from microscope_tui import measures
from microscope_tui.diagnosis import Criteria, Diagnosis, Episode, report
from microscope_tui.runlog import Entry, RunReader, RunRecord, StepEntry, StepRecord
from microscope_tui.scenarios import Scenario, Shape, Truth, lines
from microscope_tui.watch.judge import Judge


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
        """What the engine found."""
        return self.diagnosis.episodes if self.diagnosis else []

    @property
    def named_first(self) -> bool | None:
        """Whether the first line names the planted cause and the remedy, where there is one.

        Of a healthy run every line may tell what it is.
        """
        truth, diagnosis = self.truth, self.diagnosis
        says, never = getattr(truth, "says", ""), getattr(truth, "never", "")
        if not (truth.cause or says or never) or diagnosis is None:
            return None
        first = [advice for _, advice in report(diagnosis)][: None if truth.hard_negative else 1]
        named = any(truth.cause in f"{a.cause} {a.verdict}".lower() for a in first)
        texts = [f"{a.cause} {a.verdict} {a.why} {a.next}".lower() for a in first]
        told = any(re.search(says, text, re.DOTALL) for text in texts)
        wrong = never and any(re.search(never, text) for text in texts)
        return (named or not truth.cause) and (told or not says) and not wrong


def judge(case: Case, scenario: Scenario | None = None, shape: Shape | None = None) -> Judged:
    """Write the run, read it back, judge it; or a twin of it, with another scenario or shape."""
    shape = shape or drawn(case)
    if shape is None:
        raise ValueError(f"scenario {case.scenario} does not fit {case.shape}")
    truth, encoded = lines(scenario or SCENARIOS[case.scenario], shape, case.seed)
    judged = Judged(case=case, shape=shape, truth=truth, fall=fall_of(truth))
    reader, engine = RunReader(case.scenario), Judge(case.scenario, Criteria())
    for line in encoded:
        _take(reader.feed(line), engine, judged)
    if engine.diagnosis is not None:
        engine.diagnosis.conclude()
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


CHUNK = 1 << 20
REPEATS = 3
_LARGE = Shape(routers=58, num_experts=256, top_k=8, tokens=131_072, steps=3_000)
LOADS: tuple[tuple[Shape, tuple[float, ...]], ...] = (
    (Shape(routers=10, num_experts=8, top_k=2, tokens=4096, steps=5_000), ()),
    (_LARGE, ()),
    (_LARGE, (0.02, 0.02, 2e-4, 2e-4, 2e-5, 0.0)),
)
"""Runs to be judged: healthy ones, and one whose layers all have a long tail: the weights of its
experts, starved, with a stray token, or dead, in every step."""


def show_throughput() -> None:
    """Print records per second and peak memory; each figure is from a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        for load, tail in LOADS:
            log, twice = Path(folder) / "once.jsonl", Path(folder) / "twice.jsonl"
            sizes = asdict(load)
            del sizes["capacity_factor"]
            sizes["tail"] = tail
            write_bulk(log, **sizes)
            write_bulk(twice, **{**sizes, "steps": 2 * load.steps})
            measured = [_apart(log) for _ in range(REPEATS)]
            rates = sorted(load.steps / seconds for seconds, _ in measured)
            _, doubled = _apart(twice)
            peak = max(peak for _, peak in measured)
            print(
                f"{load.routers} layers x {load.num_experts} experts, {load.steps:,} steps"
                f"{' with a long tail' if tail else ''}, "
                f"{log.stat().st_size / 1e6:.0f} MB: best {rates[-1]:,.0f} records/s "
                f"({rates[0]:,.0f} to {rates[-1]:,.0f}, {REPEATS} runs), "
                f"{rates[-1] * log.stat().st_size / load.steps / 1e6:,.0f} MB/s"
            )
            print(f"  peak memory {peak:.1f} MB, {doubled - peak:+.1f} MB with twice the steps")
            log.unlink()
            twice.unlink()


def _apart(path: Path) -> tuple[float, float]:
    """Seconds and peak MB, in a fresh process: memory that was once taken stays in the peak."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(judge_log, (path,))


def judge_log(path: Path) -> tuple[float, float]:
    """Judge a whole log; seconds, and the peak memory of this process in MB."""
    started = time.perf_counter()
    reader, engine = RunReader(path.name), Judge(path.name, Criteria())
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            for entry in reader.feed(chunk):
                engine.take(entry)
    seconds = time.perf_counter() - started
    assert engine.diagnosis is not None
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
