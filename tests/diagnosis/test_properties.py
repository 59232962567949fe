"""What no record may do: sway another layer's verdict, hang the engine, depend on an order."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microscope_tui import measures
from microscope_tui.diagnosis import BadState, Diagnosis, Episode, Severity, restore, save
from microscope_tui.runlog import RouterInfo, RouterSummary, RunRecord, StepRecord
from microscope_tui.scenarios import draw_counts

Rows = Sequence[list[int]]
E, K, T = 8, 2, 1024


def run_record(routers: int, **changes: Any) -> RunRecord:
    infos = tuple(RouterInfo(f"L{i + 1}", i + 1, E, K) for i in range(routers))
    return RunRecord(run="r", routers=infos, balance={"method": "bias"}, **changes)


def judged(
    history: Sequence[Rows], readings: Callable[[int], dict[str, Any]] = lambda step: {}, **run: Any
) -> Diagnosis:
    diagnosis = Diagnosis(run_record(len(history[0]), **run))
    for step, rows in enumerate(history, start=1):
        observe(diagnosis, step, rows, readings(step))
    return diagnosis


def observe(diagnosis: Diagnosis, step: int, rows: Rows, readings: dict[str, Any]) -> None:
    router = {**measures.summarise(rows), **readings.get("router", {})}
    scalars = {key: value for key, value in readings.items() if key != "router"}
    record = StepRecord(
        step=step,
        **{"loss": 2.0, "tokens": float(sum(rows[0]) // K), "grad_norm": 1.0} | scalars,
        router=RouterSummary(**router),
    )
    diagnosis.observe(record, lambda index: list(rows[index]))


def sick_history(seed: int, routers: int = 4, steps: int = 420) -> list[list[list[int]]]:
    """Each router has a course of its own: well, collapsing, losing experts, swinging."""
    rng = random.Random(seed)
    courses = [
        rng.choice(["well", "slow", "sudden", "dead", "swing", "hot"]) for _ in range(routers)
    ]
    onset = rng.randrange(120, 240)
    return [
        [draw_counts(weights(course, step - onset, rng), T, K, rng) for course in courses]
        for step in range(1, steps + 1)
    ]


def weights(course: str, since: int, rng: random.Random) -> list[float]:
    values = [1.0 + 0.05 * rng.random() for _ in range(E)]
    if since < 0:
        return values
    match course:
        case "slow":
            values[1] *= 2.718 ** min(8.0, since / 30)
            values[5] *= 2.718 ** min(8.0, since / 30)
        case "sudden":
            values[2] *= 1e4
            values[3] *= 1e4
        case "dead":
            values[4] = 0.0
        case "swing":
            values = [v * (3.0 if (e + since) % 2 else 1.0) for e, v in enumerate(values)]
        case "hot":
            values[0] *= 60
    return values


def told(
    episodes: Sequence[Episode], routers: Sequence[int] | None = None, experts: bool = False
) -> list[tuple[Any, ...]]:
    """Episodes as plain tuples in an order of their own."""
    found = [
        (
            e.rule,
            e.router_index if routers is None or e.router_index < 0 else routers[e.router_index],
            *(int(e.severity), e.onset, e.alarm, e.last, e.recovered_at, round(e.value, 9)),
            *([e.facts.get("experts")] if experts else []),
        )
        for e in episodes
    ]
    return sorted(found, key=repr)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6))
def test_permuting_the_experts_changes_nothing(seed: int) -> None:
    history = sick_history(seed, routers=2)
    order = random.Random(seed + 1).sample(range(E), E)
    shuffled = [[[row[e] for e in order] for row in rows] for rows in history]
    assert told(judged(history).episodes) == told(judged(shuffled).episodes)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6))
def test_permuting_the_layers_permutes_the_findings(seed: int) -> None:
    history = sick_history(seed)
    order = random.Random(seed + 1).sample(range(4), 4)
    shuffled = [[rows[i] for i in order] for rows in history]
    assert told(judged(history).episodes) == told(judged(shuffled).episodes, order)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_ten_times_the_tokens_keep_a_healthy_run_healthy(seed: int) -> None:
    rng = random.Random(seed)
    spread = [2.718 ** rng.gauss(0, 0.25) for _ in range(E)]
    history = [[draw_counts(spread, T, K, rng) for _ in range(3)] for _ in range(400)]
    tenfold = [[[10 * n for n in row] for row in rows] for rows in history]
    for one in (history, tenfold):
        assert [e for e in judged(one).episodes if e.severity > Severity.INFO] == []


NUMBERS = st.one_of(
    st.none(),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, -1.0, 1e308, -1e308, 5e-324, 8.0]),
)
READING_NAMES = [name for name in RouterSummary.__struct_fields__ if name != "tokens"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(READING_NAMES), NUMBERS, st.integers(1, 300), st.integers(1, 80)),
        max_size=6,
    )
)
def test_a_crafted_layer_sways_no_verdict_of_another(lies: list[Any]) -> None:
    history = [[[256] * 7 + [256 + (step % 3), 256][:1] for _ in range(3)] for step in range(300)]

    def readings(step: int) -> dict[str, Any]:
        router: dict[str, Any] = {}
        for name, value, start, length in lies:
            if start <= step < start + length:
                honest = measures.summarise(history[step - 1]).get(name, [1.0] * 3)
                router[name] = [value, honest[1], honest[2]]
        return {"router": router, "tokens": None}

    honest = judged(history, lambda step: {"tokens": None})
    crafted = judged(history, readings)
    assert [one for one in told(crafted.episodes) if one[1] in (1, 2)] == [
        one for one in told(honest.episodes) if one[1] in (1, 2)
    ]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.lists(NUMBERS, min_size=3, max_size=3)), max_size=60),
    st.sampled_from(RouterSummary.__struct_fields__),
    st.lists(st.integers(-(2**62), 2**62), min_size=8, max_size=8),
    NUMBERS,
)
def test_no_record_breaks_the_engine(
    steps: list[Any], name: str, counts: list[int], scalar: float | None
) -> None:
    diagnosis = Diagnosis(run_record(3, planned_steps=-5))
    for step, values in steps:
        record = StepRecord(
            step=step, loss=scalar, tokens=scalar, grad_norm=scalar, losses={"aux": scalar}
        )
        setattr(record.router, name, values)
        diagnosis.observe(record, lambda index: list(counts), lambda index: [scalar or 0.0] * 8)
    state = save(diagnosis)
    assert save(restore(state, diagnosis.run)) == state
    assert diagnosis.last_step == (steps[-1][0] if steps else 0)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 419))
def test_a_restored_state_goes_on_as_if_nothing_had_happened(seed: int, cut: int) -> None:
    history = sick_history(seed, routers=3)

    def readings(step: int) -> dict[str, Any]:
        return {"grad_norm": 80.0 if step == 300 else 1.0, "router": {"z_loss": [1.0 + step] * 3}}

    whole = judged(history, readings)
    first = judged(history[:cut], readings)
    second = restore(save(first), first.run)
    for step, rows in enumerate(history[cut:], start=cut + 1):
        observe(second, step, rows, readings(step))
    assert told(second.episodes, experts=True) == told(whole.episodes, experts=True)
    assert save(second) == save(whole)


def readings_of(step: int) -> dict[str, Any]:
    """A spike, two overflows, and a z-loss that leaves its usual range."""
    spike = 80.0 if step in (180, 300) else float("nan") if step in (240, 241) else 1.0
    return {"grad_norm": spike, "router": {"z_loss": [4.0 if step < 200 else 50.0] * 3}}


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(120, 419))
def test_after_a_restart_only_what_the_steps_before_it_say_is_told(seed: int, at: int) -> None:
    history = sick_history(seed, routers=3)
    resumed, alone = judged(history, readings_of), judged(history[: at - 1], readings_of)
    resumed.restart(at)
    said = [
        sorted((e.rule, e.router_index, e.onset, e.alarm, e.severity) for e in one.episodes)
        for one in (resumed, alone)
    ]
    assert said[0] == said[1]
    assert all(e.last < at and e.worst_at < at for e in resumed.episodes)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(120, 419))
def test_whatever_a_restart_leaves_open_ends_once_all_is_well(seed: int, at: int) -> None:
    history = sick_history(seed, routers=3)
    diagnosis = judged(history, readings_of)
    rng = random.Random(seed)
    for step in range(at, at + 450):
        rows = [draw_counts([1.0 + 0.05 * rng.random() for _ in range(E)], T, K, rng)] * 3
        observe(diagnosis, step, rows, {"router": {"z_loss": [4.0] * 3}})
    assert [e for e in diagnosis.episodes if e.active] == []


def test_a_number_of_tokens_beyond_all_reason_costs_no_verdict() -> None:
    history = [[[600, 600, 2, 2, 2, 2, 2, 2]] * 2] * 200
    reading = {"router": {"tokens": [1e308, 5e-324]}, "grad_norm": 1.0}
    assert {e.rule for e in judged(history, lambda step: reading).episodes} == {"COLLAPSE"}


def test_bytes_that_are_no_state_are_refused_with_the_reason() -> None:
    state = save(judged(sick_history(1, routers=3)[:150]))
    other = run_record(2)
    with pytest.raises(BadState, match="3 other routers"):
        restore(state, other)
    for damaged in (b"", b"\x93", state[:-5], b"\xc1" * 40, b"\x81" * 5000):
        with pytest.raises(BadState):
            restore(damaged, run_record(3))
