"""One case in full: the truth, and every finding in the words of the microscope."""

from benchmarks.scoreboard.judging import Judged, in_time, judge
from benchmarks.scoreboard.plan import Case
from benchmarks.scoreboard.score import false_alarms, outcomes, plain
from benchmarks.scoreboard.table import said_of
from microscope_tui.diagnosis import Finding, advise

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
        for finding in judged.diagnosis.findings():
            _print_finding(finding, judged)
    episodes = judged.episodes
    print()
    for outcome in outcomes(truth, episodes, shape.steps, shape.routers):
        print(f"  {said_of(outcome)}")
    for alarm in false_alarms(truth, episodes):
        print(f"  FALSE {alarm}")
    if judged.fall is not None:
        print(f"  warned in time: {in_time(judged.fall, episodes)} ({judged.fall})")
    for name, alarms in judged.alarms.items():
        print(f"  {name}: {plain(truth, [e for alarm in alarms for e in alarm.episodes])}")


def _print_finding(finding: Finding, judged: Judged) -> None:
    assert judged.diagnosis is not None
    advice = advise(
        finding, judged.diagnosis.run, judged.diagnosis.checkpoints, judged.diagnosis.episodes
    )
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
