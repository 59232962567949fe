"""The scores as a table, and what went wrong as lines that can be tried again."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.scoreboard.judging import in_time, judge
from benchmarks.scoreboard.plan import Case
from benchmarks.scoreboard.results import RunScore
from benchmarks.scoreboard.score import Outcome, Plain, false_alarms, outcomes, plain
from microscope_tui.diagnosis import Advice, Finding, report

LEAST_HITS = 0.99
MOST_WARNINGS = 0.2
"""False warnings per 10,000 steps of runs that only look sick."""
_PER = 10_000
_MOST_CLASSES = 60
_HEAD = (
    f"{'':22}{'runs':>5}{'hit':>6}{'layer':>6}{'delay':>11}{'critical':>11}{'dated':>6}"
    f"{'warn':>7}{'crit':>6} |{'token entropy':>14}{'MaxVio > 2':>14}{'any dead':>14}"
)
_UNITS = (
    f"{'':22}{'':>5}{'%':>6}{'%':>6}{'mid':>6}{'max':>5}{'mid':>6}{'max':>5}{'%':>6}"
    f"{'/10k':>7}{'/10k':>6} |" + 3 * f"{'hit %':>6}{'/10k':>8}"
)


def show(scores: Sequence[RunScore]) -> None:
    """Everything: by scenario, in total, by shape, early warnings, and what went wrong."""
    print(_HEAD)
    print(_UNITS)
    for name in dict.fromkeys(score.scenario for score in scores):
        print(row(name, [score for score in scores if score.scenario == name]))
    print()
    for name, kind in KINDS.items():
        print(row(name, [score for score in scores if kind(score)]))
    print()
    for shape in dict.fromkeys(score.shape for score in scores):
        print(row(f"all, {shape}", [score for score in scores if score.shape == shape]))
    print()
    for line in [*_early(scores), *_classes(scores)]:
        print(line)


KINDS: dict[str, Callable[[RunScore], bool]] = {
    "positives": lambda score: score.is_positive,
    "hard negatives": lambda score: score.hard_negative,
    "others": lambda score: not (score.is_positive or score.hard_negative),
}


def row(name: str, scores: Sequence[RunScore]) -> str:
    """One line of the table."""
    found = [outcome for score in scores for outcome in score.outcomes]
    delays = [o.delay for o in found if o.delay is not None]
    critical = [o.critical_delay for o in found if o.critical_delay is not None]
    dated = [o.dated for o in found if o.dated is not None]
    cells = [
        f"{name:22}{len(scores):5}",
        percent([o.hit for o in found], 6),
        percent([o.placed for o in found], 6),
        *_middle_and_most(delays),
        *_middle_and_most(critical),
        percent(dated, 6),
        f"{rate(scores, lambda s: s.false_warnings):7.2f}",
        f"{rate(scores, lambda s: s.false_criticals):6.2f} |",
    ]
    for baseline in ("token entropy", "MaxVio > 2", "any dead"):
        cells += _plainly([s.baselines[baseline] for s in scores if not s.error], scores)
    return "".join(cells)


def failures(scores: Sequence[RunScore]) -> list[str]:
    """Targets that are not met, in words."""
    failed = [f"{s.scenario} {s.shape} {s.seed} ended in an exception" for s in scores if s.error]
    found = [outcome.hit for s in scores if s.is_positive for outcome in s.outcomes]
    if found and statistics.mean(found) < LEAST_HITS:
        failed.append(f"positives: {sum(found)} of {len(found)} hit, below {LEAST_HITS:.0%}")
    named = [score.named_first for score in scores if score.named_first is not None]
    if named and statistics.mean(named) < LEAST_HITS:
        failed.append(f"causes: {sum(named)} of {len(named)} named first, below {LEAST_HITS:.0%}")
    looks_sick = [score for score in scores if score.hard_negative]
    critical = sum(score.false_criticals for score in looks_sick)
    if critical:
        failed.append(f"hard negatives: {critical} false critical alarms")
    warnings = rate(looks_sick, lambda score: score.false_warnings)
    if warnings > MOST_WARNINGS:
        failed.append(
            f"hard negatives: {warnings:.2f} false warnings in 10,000 steps, above {MOST_WARNINGS}"
        )
    return failed


def rate(scores: Sequence[RunScore], count: Callable[[RunScore], int]) -> float:
    """What is counted, in 10,000 steps."""
    return _PER * sum(map(count, scores)) / max(1, sum(score.steps for score in scores))


def percent(values: Sequence[bool], width: int) -> str:
    """The share that is true; a dash where there is nothing to count."""
    if not values:
        return f"{'-':>{width}}"
    share = 100 * sum(values) / len(values)
    return f"{share:{width}.0f}" if share in (0, 100) else f"{share:{width}.1f}"


def _middle_and_most(values: Sequence[int]) -> tuple[str, str]:
    if not values:
        return f"{'-':>6}", f"{'-':>5}"
    return f"{statistics.median(values):6.0f}", f"{max(values):5}"


def _plainly(plain: Sequence[Plain], scores: Sequence[RunScore]) -> tuple[str, str]:
    hits, asked = sum(p.hits for p in plain), sum(p.expected for p in plain)
    false = _PER * sum(p.false_alarms for p in plain) / max(1, sum(s.steps for s in scores))
    return f"{100 * hits / asked:6.0f}" if asked else f"{'-':>6}", f"{false:8.1f}"


def _early(scores: Sequence[RunScore]) -> Iterable[str]:
    """Whether what can be known early was reported early."""
    for name in dict.fromkeys(score.scenario for score in scores):
        asked = [s.in_time for s in scores if s.scenario == name and s.in_time is not None]
        if asked:
            share = f"{sum(asked)} of {len(asked)}"
            yield f"{name}: warned before the load had fallen in {share} runs"
    if planted := [s.named_first for s in scores if s.named_first is not None]:
        yield f"the planted cause is named first in {sum(planted)} of {len(planted)} runs"


@dataclass(slots=True)
class _Class:
    """The same thing that went wrong, in how many runs, and in which one worst."""

    runs: int = 0
    number: int = 0
    example: RunScore | None = None
    most: int = 0

    def add(self, score: RunScore, number: int) -> None:
        self.runs += 1
        self.number += number
        if number > self.most:
            self.example, self.most = score, number


def _classes(scores: Sequence[RunScore]) -> Iterable[str]:
    """Misses and false alarms by kind, each with the run that shows it best."""
    classes: dict[tuple[int, str, str], _Class] = {}
    for score in scores:
        for (rank, what), number in _wrong(score).items():
            classes.setdefault((rank, score.scenario, what), _Class()).add(score, number)
    order = sorted(classes.items(), key=lambda item: (item[0][0], -item[1].runs, item[0]))
    if order:
        yield "What went wrong, and the run that shows it best (--one …):"
    for (_, scenario, what), found in order[:_MOST_CLASSES]:
        if (example := found.example) is not None:
            yield (
                f"  {what:44} {found.number:5} in {found.runs:3} runs: --one {scenario} "
                f"{example.shape} {example.seed} ({example.layers} layers, {example.tokens} tokens)"
            )
    if len(order) > _MOST_CLASSES:
        yield f"  … and {len(order) - _MOST_CLASSES} more kinds"


def _wrong(score: RunScore) -> dict[tuple[int, str], int]:
    """Rank and words of everything that is wrong with one score → how often."""
    found: dict[tuple[int, str], int] = {}

    def add(rank: int, what: str, number: int = 1) -> None:
        found[rank, what] = found.get((rank, what), 0) + number

    if score.error:
        add(0, f"exception: {score.error.strip().splitlines()[-1][:32]}")
    for outcome in score.outcomes:
        if not outcome.hit:
            add(1, f"missed {outcome.rule}: {outcome.missing}")
        elif outcome.dated is False:
            add(4, f"{outcome.rule} hit, but dated wrongly")
        if outcome.hit and outcome.ended_early:
            add(4, f"{outcome.rule} hit, but ended early")
    if score.named_first is False:
        add(1, "the first line names another cause")
    for alarm in score.false_alarms:
        add(2 if alarm.severity != "warn" else 3, f"false {alarm.severity} {alarm.rule}")
    return found


def said_of(outcome: Outcome) -> str:
    """One outcome in words."""
    state = "hit" if outcome.hit else f"MISSED ({outcome.missing})"
    delays = f"delay {outcome.delay}, critical {outcome.critical_delay}, dated {outcome.dated}"
    return f"{outcome.rule} {outcome.severity}: {state}; {delays}"


_MOST_EPISODES = 8


def show_one(case: Case) -> None:
    """Judge the case and print it."""
    judged = judge(case)
    shape, truth = judged.shape, judged.truth
    print(
        f"{case.scenario} {case.shape} seed {case.seed}: {shape.routers} layers, "
        f"{shape.tokens} tokens, {judged.steps} steps, profile {truth.profile}"
        f"{', a hard negative' if truth.hard_negative else ''}"
    )
    for expected in truth.expected:
        print(f"  expected: {expected}")
    print(f"  allowed: {dict(truth.allowed)}")
    if judged.diagnosis is not None:
        for finding, advice in report(judged.diagnosis):
            _print_finding(finding, advice)
    episodes = judged.episodes
    print()
    for outcome in outcomes(truth, episodes, shape.steps, shape.routers):
        print(f"  {said_of(outcome)}")
    for alarm in false_alarms(truth, episodes):
        print(f"  FALSE {alarm}")
    if truth.cause:
        print(f"  the first line names {truth.cause!r}: {judged.named_first}")
    if judged.fall is not None:
        print(f"  warned in time: {in_time(judged.fall, episodes)} ({judged.fall})")
    for name, alarms in judged.alarms.items():
        print(f"  {name}: {plain(truth, [e for alarm in alarms for e in alarm.episodes])}")


def _print_finding(finding: Finding, advice: Advice) -> None:
    if advice.explains:
        print(f"\n  {advice.cause}, explains {', '.join(advice.explains)}: {advice.next}")
    print(f"\n  {finding.rule} {finding.severity.label}: {advice.verdict}")
    print(f"    {advice.why}")
    for e in finding.episodes[:_MOST_EPISODES]:
        grades = ", ".join(f"{g.severity.label} at {g.step} ({g.value:.3g})" for g in e.grades)
        print(
            f"    router {e.router_index}: onset {e.onset}, alarm {e.alarm}, last {e.last}, "
            f"recovered {e.recovered_at}; {grades}; {e.facts}"
        )
    if len(finding.episodes) > _MOST_EPISODES:
        print(f"    … and {len(finding.episodes) - _MOST_EPISODES} more routers")
