"""What a restart supersedes, against the rule said backwards: does anything later undo a step?"""

from itertools import pairwise
from typing import Any

from hypothesis import example, given, strategies as st

from microscope_tui.runlog import Course, RouterInfo, RunRecord, StepEntry, StepRecord, drop_from

ROUTERS = (RouterInfo("L1", 1, 8, 2),)
STEP_3 = StepEntry(StepRecord(step=3), b"", 1)
STEPS = st.integers(0, 9).map(lambda step: StepEntry(StepRecord(step=step), b"", 1))


def run_from(resumed: int | None) -> RunRecord:
    return RunRecord("r", ROUTERS, resumed_at_step=resumed)


RUNS = st.builds(run_from, st.none() | st.integers(-1, 12))


def undoes(later: Any, step: int) -> bool:
    if isinstance(later, StepEntry):
        return later.record.step <= step
    first = later.resumed_at_step
    return first is not None and max(1, first) <= step


@given(st.lists(STEPS | RUNS, max_size=25))
@example([STEP_3, run_from(2), run_from(12), STEP_3])
def test_a_step_holds_unless_something_later_undoes_it(entries: list[Any]) -> None:
    course, kept = Course(), list[tuple[int, int]]()
    repeated = set[int]()
    everything = [RunRecord("r", ROUTERS), *entries]
    for number, entry in enumerate(everything):
        drop_from(kept, course.take(entry))
        if course.repeats:
            repeated.add(number)
        elif isinstance(entry, StepEntry):
            kept.append((entry.record.step, number))
    expected = [
        (entry.record.step, at)
        for at, entry in enumerate(everything)
        if isinstance(entry, StepEntry)
        and at not in repeated
        and not any(
            undoes(everything[later], entry.record.step)
            for later in range(at + 1, len(everything))
            if later not in repeated
        )
    ]
    assert kept == expected
    assert [step for step, _ in kept] == sorted({step for step, _ in kept})
    steps = [(at, e) for at, e in enumerate(everything) if isinstance(e, StepEntry)]
    for (at, one), (again, two) in pairwise(steps):
        held = not any(undoes(everything[n], one.record.step) for n in range(at + 1, again))
        assert (again in repeated) == (held and one.record.step == two.record.step)
