"""What no record may do: sway another layer's verdict, hang the engine, depend on an order."""

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings, strategies as st

from microscope_tui import measures
from microscope_tui.diagnosis import WHOLE_RUN, BadState, Diagnosis, Episode, restore, save
from microscope_tui.runlog import RouterInfo, RouterSummary, RunRecord, StepRecord
from microscope_tui.scenarios import draw_counts

Rows = Sequence[list[int]]
E, K, T = 8, 2, 1024
SEEDS = st.integers(0, 63)
"""Few enough that the properties share the histories."""


def run_record(routers: int, **changes: Any) -> RunRecord:
    infos = tuple(RouterInfo(f"L{i + 1}", i + 1, E, K) for i in range(routers))
    return RunRecord(run="r", routers=infos, balance={"method": "bias"}, **changes)


def readings_of(step: int) -> dict[str, Any]:
    """Spikes, two overflows, and a z-loss that leaves its usual range."""
    spike = 80.0 if step in (180, 300) else float("nan") if step in (240, 241) else 1.0
    return {"grad_norm": spike, "router": {"z_loss": [4.0 if step < 200 else 50.0] * 3}}


def judged(history: Sequence[Rows], readings: Any = lambda step: {}) -> Diagnosis:
    diagnosis = Diagnosis(run_record(len(history[0])))
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


@lru_cache(maxsize=64)
def sick_history(seed: int) -> list[list[list[int]]]:
    """Each router has a course of its own: well, collapsing, losing experts, swinging."""
    rng = random.Random(seed)
    courses = [rng.choice(["well", "slow", "sudden", "dead", "swing", "hot"]) for _ in range(3)]
    onset = rng.randrange(120, 240)
    return [
        [draw_counts(weights(course, step - onset, rng), T, K, rng) for course in courses]
        for step in range(1, 421)
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


def plain(episodes: Sequence[Episode], layers: Sequence[int] = (0, 1, 2)) -> list[Any]:
    """Episodes as plain tuples in an order of their own; the last layer is the whole run."""
    where = [*layers, WHOLE_RUN]
    found = [
        (e.rule, where[e.router_index], int(e.severity), e.onset, e.alarm, e.last, e.recovered_at)
        for e in episodes
    ]
    return sorted(found, key=repr)


@settings(max_examples=8)
@given(SEEDS)
def test_an_order_of_experts_and_layers_changes_only_the_layers_found(seed: int) -> None:
    rng = random.Random(seed + 1)
    experts, layers = rng.sample(range(E), E), rng.sample(range(3), 3)
    shuffled = [[[rows[i][e] for e in experts] for i in layers] for rows in sick_history(seed)]
    in_order = judged(sick_history(seed)).episodes
    assert plain(in_order) == plain(judged(shuffled).episodes, layers)


NUMBERS = st.one_of(
    st.none(),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, -1.0, 1e308, -1e308, 5e-324, 8.0]),
)
READING_NAMES = [name for name in RouterSummary.__struct_fields__ if name != "tokens"]


@lru_cache(maxsize=1)
def two_well_and_one_collapsed() -> list[list[list[int]]]:
    rng, well, fallen = random.Random(0), [1.0] * E, [1e4, 1e4, *[1.0] * 6]
    courses = ((well, well, fallen if n > 120 else well) for n in range(1, 201))
    return [[draw_counts(weights, T, K, rng) for weights in course] for course in courses]


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.sampled_from(READING_NAMES), NUMBERS, st.integers(1, 190), st.integers(1, 80)),
        max_size=6,
    )
)
def test_a_crafted_layer_sways_no_verdict_of_another(lies: list[Any]) -> None:
    history = two_well_and_one_collapsed()

    def readings(step: int) -> dict[str, Any]:
        router: dict[str, Any] = {}
        honest = measures.summarise(history[step - 1])
        for name, value, start, length in lies:
            if start <= step < start + length:
                router[name] = [value, *honest.get(name, [0.0] * 3)[1:]]
        return {"router": router, "tokens": None}

    episodes = judged(history, readings).episodes
    known = [(e.rule, e.router_index, e.onset, e.alarm) for e in episodes if e.router_index]
    assert known == [("COLLAPSE", 2, 121, 147)]


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.lists(NUMBERS, min_size=3, max_size=3)), max_size=60),
    st.sampled_from(RouterSummary.__struct_fields__),
    st.lists(st.integers(-(2**62), 2**62), min_size=8, max_size=8),
    NUMBERS,
)
@example([(0, [None] * 3)], "entropy", [0] * 8, float("inf"))
def test_no_record_breaks_the_engine(steps: Any, name: str, counts: Any, scalar: Any) -> None:
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


@lru_cache(maxsize=64)
def whole(seed: int) -> Diagnosis:
    return judged(sick_history(seed), readings_of)


@settings(max_examples=8)
@given(SEEDS, st.integers(1, 419))
def test_a_restored_state_continues_as_if_never_interrupted(seed: int, cut: int) -> None:
    history = sick_history(seed)
    first = judged(history[:cut], readings_of)
    second = restore(save(first), first.run)
    for step, rows in enumerate(history[cut:], start=cut + 1):
        observe(second, step, rows, readings_of(step))
    assert plain(second.episodes) == plain(whole(seed).episodes)
    assert save(second) == save(whole(seed))


@settings(max_examples=8)
@given(SEEDS, st.integers(120, 419))
def test_after_a_restart_only_what_the_steps_before_it_show_is_reported(seed: int, at: int) -> None:
    resumed = restore(save(whole(seed)), whole(seed).run)
    alone = judged(sick_history(seed)[: at - 1], readings_of)
    resumed.restart(at)
    reported = [
        sorted((e.rule, e.router_index, e.onset, e.alarm, e.severity) for e in one.episodes)
        for one in (resumed, alone)
    ]
    assert reported[0] == reported[1]
    assert all(e.last < at and e.worst_at < at for e in resumed.episodes)


@settings(max_examples=6)
@given(SEEDS, st.integers(120, 419))
def test_whatever_a_restart_leaves_open_ends_once_all_is_well(seed: int, at: int) -> None:
    diagnosis = restore(save(whole(seed)), whole(seed).run)
    rng = random.Random(seed)
    for step in range(at, at + 450):
        rows = [draw_counts(weights("well", 0, rng), T, K, rng) for _ in range(3)]
        observe(diagnosis, step, rows, {"router": {"z_loss": [4.0] * 3}})
    assert [e for e in diagnosis.episodes if e.active] == []


def test_an_unreasonable_number_of_tokens_costs_no_verdict() -> None:
    history = [[[600, 600, 2, 2, 2, 2, 2, 2]] * 2] * 150
    reading = {"router": {"tokens": [1e308, 5e-324]}, "grad_norm": 1.0}
    assert {e.rule for e in judged(history, lambda step: reading).episodes} == {"COLLAPSE"}


def test_bytes_that_are_not_a_state_are_refused_with_the_reason() -> None:
    state = save(judged(sick_history(1)[:150]))
    with pytest.raises(BadState, match="3 other routers"):
        restore(state, run_record(2))
    older = msgspec.msgpack.encode(msgspec.msgpack.decode(state) | {"version": 2})
    with pytest.raises(BadState, match="version 2, this is 7"):
        restore(older, run_record(3))
    for damaged in (b"", b"\x93", state[:-5], b"\xc1" * 40, b"\x81" * 5000):
        with pytest.raises(BadState):
            restore(damaged, run_record(3))
