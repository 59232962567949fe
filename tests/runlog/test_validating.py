"""The strict check: a valid log is clean, and every damage is named with its line."""

import json
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from microscope_tui import measures
from microscope_tui.runlog import Problem, records as tables, safe_text
from tests.problems import problems_in

Fields = dict[str, Any]
TOKENS = 24


def problems(log: list[Fields | bytes] | bytes) -> list[Problem]:
    if not isinstance(log, bytes):
        lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in log]
        log = b"".join(line + b"\n" for line in lines)
    return list(problems_in(enumerate(log.split(b"\n")[:-1], 1)))


def codes(log: Any) -> list[tuple[int, str]]:
    return [(p.line, p.code) for p in problems(log)]


def header(routers: int = 2, experts: int = 4, top_k: int = 2, **changes: Any) -> Fields:
    model = {"layers": list(range(1, routers + 1)), "num_experts": experts, "top_k": top_k}
    model |= {"capacity_factor": 1.25, "layer_names": [f"L{i}" for i in range(routers)]}
    run = {"kind": "run", "format_version": 1, "run": "r", "time": 1.0, "planned_steps": 50}
    run |= {"model": model | changes.pop("model", {}), "balance": {"method": "bias"}}
    return run | {"source": {"writer": "test", "counts": "exact"}} | changes


def step(number: int, seed: int = 0, routers: int = 2, experts: int = 4, top_k: int = 2) -> Fields:
    rng = random.Random(f"{seed} {number}")
    rows = [[0] * experts for _ in range(routers)]
    for row in rows:
        for _ in range(TOKENS):
            for expert in rng.sample(range(experts), top_k):
                row[expert] += 1
    means = [rng.uniform(0.5, 1) * math.log(experts) for _ in rows]
    router: Fields = {"entropy": [0.9 * mean for mean in means], "mean_entropy": means}
    router |= measures.summarise(rows)
    for name in ("drop_rate", "z_loss", "max_logit", "grad_norm", "selected_mass", "margin"):
        router[name] = [rng.random() for _ in rows]
    return {
        "kind": "step",
        "step": number,
        "time": 100.0 * number,
        "loss": 2.5,
        "grad_norm": 1.0,
        "losses": {"aux": 0.1},
        "tokens": TOKENS,
        "router": router,
        "expert_bias": [[rng.gauss(0, 0.01) for _ in row] for row in rows],
        "tokens_per_expert": rows,
    }


def damage(record: Fields, path: str, to: Any) -> None:
    """The value at ``path`` becomes ``to`` or ``to(value)``; ``GONE`` and ``">name"`` are keys."""
    *above, last = [int(key) if key.isdigit() else key for key in path.split(" ")]
    inside: Any = record
    for key in above:
        inside = inside[key]
    if to is GONE:
        del inside[last]
    elif isinstance(to, str) and to.startswith(">"):
        items = [(to[1:] if key == last else key, value) for key, value in inside.items()]
        inside.clear()
        inside.update(items)
    else:
        inside[last] = to(inside[last]) if callable(to) else to


GONE = object()
STEP_DAMAGE: list[tuple[str, str, Any]] = [
    ("kind", "kind", GONE),
    ("step", "step", GONE),
    ("type step", "step", str),
    ("type step", "step", float),
    ("type step", "step", True),
    ("range step", "step", -1),
    ("range step", "step", 10**400),
    ("twice", "step", lambda n: n - 1),
    ("backwards", "step", 1),
    ("type loss", "loss", "nan"),
    ("type tokens", "tokens", float),
    ("range tokens", "tokens", 0),
    ("range time", "time", 1.7e12),
    ("type losses", "losses", [0.1]),
    ("type a value of losses", "losses aux", "0.1"),
    ("unprintable", "losses aux", ">a\x1b[2J"),
    ("type router", "router", []),
    ("length router.entropy", "router entropy", [1.0]),
    ("range router.entropy", "router entropy 0", 5.0),
    ("range router.entropy", "router entropy 1", -0.1),
    ("range router.max_load", "router max_load 0", "NaN"),
    ("range router.max_load", "router max_load 0", 0.9),
    ("contradiction router.max_load", "router max_load 0", lambda v: v + 0.3),
    ("range router.effective_experts", "router effective_experts 0", 9.0),
    ("contradiction router.effective_experts", "router effective_experts 1", 1.5),
    ("range router.dead_experts", "router dead_experts 0", 99),
    ("type router.dead_experts", "router dead_experts 0", 0.5),
    ("contradiction router.dead_experts", "router dead_experts 0", lambda v: v + 1),
    ("range router.drop_rate", "router drop_rate 0", 12.0),
    ("range router.selected_mass", "router selected_mass 0", 1.2),
    ("range router.margin", "router margin 0", -0.5),
    ("sum", "tokens_per_expert 0 0", lambda n: n + 1),
    ("sum", "tokens_per_expert 1", lambda row: [2 * n for n in row]),
    ("range tokens_per_expert", "tokens_per_expert 0 1", -3),
    ("type tokens_per_expert", "tokens_per_expert 0 1", 3.0),
    ("type tokens_per_expert", "tokens_per_expert 1", 7),
    ("fractions", "tokens_per_expert 1", lambda row: [0.0, *row[1:-1], 0.25]),
    ("null in counts", "tokens_per_expert 1 0", None),
    ("width tokens_per_expert", "tokens_per_expert 1", lambda row: row[1:]),
    ("length tokens_per_expert", "tokens_per_expert", lambda rows: rows[1:]),
    ("type expert_bias", "expert_bias 0 0", "0.1"),
    ("null in expert_bias", "expert_bias 0 0", None),
    ("width expert_bias", "expert_bias 1", [0.1]),
    ("length expert_bias", "expert_bias", lambda rows: rows[1:]),
]
LINE_DAMAGE: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("json", lambda line: line[: len(line) // 2]),
    ("json", lambda line: line + line),
    ("json", lambda line: line.replace(b"2.5", b"1e999", 1)),
    ("json", lambda line: line.replace(b'"aux"', b'"\\ud800"', 1)),
    ("bare", lambda line: line.replace(b"2.5", b"NaN", 1)),
    ("utf-8", lambda line: line.replace(b"aux", b"\xe4ux", 1)),
    ("object", lambda line: b"[" + line + b"]"),
    ("depth", lambda line: b"[" * 100_000),
]


@pytest.mark.parametrize("case", [*STEP_DAMAGE, *LINE_DAMAGE], ids=lambda case: case[0])
@settings(max_examples=8)
@given(
    seed=st.integers(0, 10**6),
    at=st.integers(3, 6),
    shape=st.sampled_from([(2, 4, 1), (2, 4, 2), (3, 8, 3)]),
)
def test_one_damage_is_found_in_its_line_alone(case: Any, seed: int, at: int, shape: Any) -> None:
    records: list[Any] = [header(*shape)]
    records += [step(number, seed, *shape) for number in range(1, 8)]
    assert problems(records) == []
    if len(case) == 3:
        code, path, to = case
        damage(records[at], path, to)
    else:
        code, spoil = case
        records[at] = spoil(json.dumps(records[at]).encode())
    found = problems(records)
    assert code in {problem.code for problem in found}
    assert {problem.line for problem in found} == {at + 1}
    assert all(problem.reason == safe_text(problem.reason, 10**6) for problem in found)


HEADER_DAMAGE = {
    "format_version": {"format_version": 2},
    "type model": {"model": None},
    "model.layers": {"layers": None},
    "model.layers[]": {"layers": [1, None]},
    "type model.layers[]": {"layers": [1, "2"]},
    "length model.layer_names": {"layer_names": ["L1"]},
    "type model.layer_names": {"layer_names": [1, 2]},
    "unprintable": {"layer_names": ["\x1b]0;x\x07", "L2"]},
    "length model.num_experts": {"num_experts": [4]},
    "type model.num_experts": {"num_experts": "4"},
    "range model.top_k": {"top_k": 0},
    "top_k above num_experts": {"top_k": 5},
    "type model.norm_top_k": {"norm_top_k": 1},
    "range model.capacity_factor": {"capacity_factor": -1.0},
    "type planned_steps": {"planned_steps": "50"},
    "range resumed_at_step": {"resumed_at_step": -1},
    "choice profile": {"profile": "training"},
    "choice source.counts": {"source": {"counts": "mean"}},
    "type source": {"source": "exact"},
    "choice balance.update": {"balance": {"update": "signed"}},
    "type balance.names": {"balance": {"names": ["router_aux_loss_coef"]}},
    "type a name of balance.names": {"balance": {"names": {"aux_weight": 0.01}}},
    "type balance.force_collapse": {"balance": {"force_collapse": 3}},
    "type balance.bias_update_rate": {"balance": {"bias_update_rate": "1e-3"}},
}


@pytest.mark.parametrize("code", HEADER_DAMAGE)
def test_a_wrong_run_record_is_named_in_its_line(code: str) -> None:
    changes: Fields = dict(HEADER_DAMAGE[code])
    model = {key: changes.pop(key) for key in list(changes) if key in tables.MODEL}
    run = header(**({"model": model} if model else {})) | changes
    assert (1, code) in codes([run, step(1)])


@pytest.mark.parametrize("key", ["num_experts", "top_k"])
def test_a_forgotten_number_is_an_error_and_an_unknown_one_is_not(key: str) -> None:
    run = header()
    run["model"] = {name: value for name, value in run["model"].items() if name != key}
    assert codes([run, step(1)]) == [(1, f"missing model.{key}")]
    run["model"][key] = None
    assert codes([run, step(1)]) == []


END = {"kind": "event", "event": "end", "step": 3, "reason": "finished"}
BEFORE = [header(), step(1), step(2), step(3)]
RESUMED = [*BEFORE, header(resumed_at_step=2)]
LOGS: list[tuple[str, list[Any], list[tuple[int, str]]]] = [
    ("starts with a run record", [step(1), step(2)], [(1, "no run")]),
    ("goes back with a run record", [*RESUMED, step(2), step(3)], []),
    ("and not without", [*BEFORE, step(2)], [(5, "backwards")]),
    ("and not behind it", [*RESUMED, step(1)], [(6, "before resumed")]),
    ("goes on behind its end", [*BEFORE, END, header(resumed_at_step=4), step(4)], []),
    ("names its events", [header(), {"kind": "event"}], [(2, "event")]),
    ("may have other keys", [header(git_commit="abc"), {"kind": "step", "own": 0.5} | step(1)], []),
]


@pytest.mark.parametrize(("claim", "log", "found"), LOGS, ids=[claim for claim, *_ in LOGS])
def test_a_log_as_a_whole(claim: str, log: list[Any], found: list[tuple[int, str]]) -> None:
    assert codes(log) == found, f"a log {claim}"


@pytest.mark.parametrize(
    ("counts", "rows", "found"),
    [
        ("shares", [[250_000] * 4, [1_000_000, 0, 0, 0]], []),
        ("shares", [[250_000] * 4, [999_999, 0, 0, 0]], ["sum of shares"]),
        ("local_rank", [[3, 3, 3, 3], [12, 0, 0, 0]], []),
        ("local_rank", [[24, 24, 24, 24], [0, 0, 0, 0]], ["sum of a rank"]),
    ],
)
def test_each_source_has_its_own_sum(counts: str, rows: list[list[int]], found: list[str]) -> None:
    record = step(1) | {"router": {}, "tokens_per_expert": rows}
    log = [header(source={"counts": counts}), record]
    assert [problem.code for problem in problems(log)] == found


SOUND: dict[str, dict[str, Any]] = {
    "routers may see fewer tokens": {
        "router": {"tokens": [TOKENS, TOKENS - 4]},
        "tokens_per_expert 1": [10] * 4,
    },
    "what was not measured may be null or absent": {
        **{"loss": None, "router": {"entropy": [None, 1.0]}, "expert_bias": [[], None]},
        "tokens_per_expert 0": None,
    },
    "NaN may be measured": {
        **{"loss": "NaN", "grad_norm": "Infinity", "router entropy": ["NaN", "-Infinity"]},
        "expert_bias 0 0": "NaN",
    },
}


@pytest.mark.parametrize("claim", SOUND)
def test_a_step_is_sound(claim: str) -> None:
    record = step(1)
    for path, to in SOUND[claim].items():
        damage(record, path, to)
    bare = {"kind": "step", "step": 2}
    assert codes([header(), record, bare]) == []


def test_a_row_of_summaries_that_is_too_short_has_no_value_for_the_last_routers() -> None:
    """The counts of the second router are then compared with the tokens of the step."""
    line = step(1)
    line["router"] |= {"tokens": [TOKENS], "unrouted": [0]}
    assert "sum" not in {code for _, code in codes([header(), line])}
