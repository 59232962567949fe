"""Faults with a remedy that is easily wrong, and the healthy runs beside them."""

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from benchmarks.scenarios.causes import jump
from benchmarks.scenarios.lookalikes import modulated, narrow_and_steady, run_of, soft
from benchmarks.scenarios.variants import pooled_aux_loss
from microscope_tui.scenarios.control import LINT, ranks_of
from microscope_tui.scenarios.course import Course
from microscope_tui.scenarios.popularity import constant, whole
from microscope_tui.scenarios.run import Expected, Record, Run, Shape, Step, around, some_routers

_GONE = -40.0  # log-weight of an expert without tokens
_UNLOVED: dict[str, tuple[float, float, float, float, str, dict[str, Any]]] = {
    "stray": (0.3, 0.25, -10.8, -7.8, "DEAD", {}),
    "rare": (0.3, 0.25, -4.6, -3.2, "STARVED", {"allowed": {}}),
    "first": (0.0, 0.01, _GONE, _GONE, "DEAD", {"says": "re-initiali", "never": "raise"}),
    "tuned": (0.3, 0.125, _GONE, _GONE, "DEAD", {"header": {"profile": "finetune"}}),
    "tiny": (0.0, 0.0, -6.0, -4.0, "", {"header": {"profile": "finetune"}}),
}
"""When, which share of the experts, least and largest log-weight, the rule, and the text."""


def _some(shape: Shape, rng: random.Random, share: float) -> tuple[int, ...]:
    number = max(1, round(share * shape.num_experts))
    return tuple(sorted(rng.sample(range(shape.num_experts), number)))


def unloved(shape: Shape, rng: random.Random, kind: str) -> Run:
    """Some experts of a layer get few tokens, or none: stray ones, rare ones, 64 in a batch."""
    at, share, low, high, rule, more = _UNLOVED[kind]
    experts, log = _some(shape, rng, share), rng.uniform(low, high)
    exact = {"experts": experts, "tolerance": 80} if rule == "DEAD" else {"tolerance": 150}
    found = Expected(rule=rule, severity="crit" if kind == "stray" else "warn", **exact)

    def drawn(row: list[float]) -> list[float]:
        return [old + log * (e in experts) for e, old in enumerate(row)]

    course, found = jump(shape, rng, 1 / shape.routers, drawn, found, at)
    if kind != "tiny":
        return run_of(shape, rng, course, found, **more)
    course = replace(course, concentration=lambda step: 10.0)
    return run_of(replace(shape, tokens=64), rng, course, **more)


def stop_at_once(shape: Shape, rng: random.Random) -> Run:
    """Some experts of every layer stop in one step, the rest is even: data or code, no knob."""
    number = max(1, shape.num_experts // 8)
    first = rng.randint(1, shape.num_experts - number - 1)  # a block that fits no rank
    block = range(first, first + number) if rng.random() < 0.5 else ()

    def drawn(row: list[float]) -> list[float]:
        gone = block or _some(shape, rng, 0.125)
        return [old + _GONE * (e in gone) for e, old in enumerate(row)]

    course, found = jump(shape, rng, 1.0, drawn, Expected(rule="DEAD", tolerance=80))
    says = "(?=.*batches)" + (f".*{first}–{block[-1]}" if len(block) > 2 else "")
    never = "raise|(?<!not )re-initiali"
    return run_of(shape, rng, course, found, cause="data or code", says=says, never=never)


def lora(shape: Shape, rng: random.Random, trained: bool) -> Run:
    """The default of LoRA: no auxiliary loss is asked for, and no router trains, or they do."""
    balance = {"method": "aux", "aux_weight": 0.001, "output_router_logits": False}
    frozen = {} if trained else {"frozen_routers": shape.routers}
    routers = [shape.routers * trained, shape.routers]
    header = {"profile": "finetune", "balance": balance | frozen, "training": {"routers": routers}}
    run = narrow_and_steady(shape, rng, router_grad=0.02 * trained, bias_update_rate=None)
    if not trained:
        return replace(run, header=header)
    truth = replace(run.truth, expected=(LINT,), hard_negative=False, says="output_router_logits")
    return replace(run, header=header, truth=truth)


def healed(shape: Shape, rng: random.Random, after: float = 1.0) -> Run:
    """A layer falls for some 200 steps; then a quarter of its experts has ``after`` of its share.

    A collapse that healed leaves nothing that starves.
    """
    onset, sick = around(0.2 * shape.steps, rng), some_routers(shape, 1 / shape.routers, rng)
    end, hot = onset + rng.randint(150, 250), _some(shape, rng, shape.top_k / shape.num_experts)
    rare = _some(shape, rng, 0.25)

    def factor(router: int, expert: int, step: int) -> float:
        if router not in sick or step < onset:
            return 1.0
        if step < end:
            return 1e4 if expert in hot else 1.0
        return after if expert in rare else 1.0

    course = Course(popularity=modulated(constant(shape, 0.15, rng), factor), bias_update_rate=None)
    found = Expected(rule="COLLAPSE", routers=sick, onset=onset, until=end, severity="crit")
    if after == 1.0:
        return run_of(shape, rng, course, found, never="starv")
    rest = Expected(rule="STARVED", routers=sick, onset=end, tolerance=30)
    return run_of(shape, rng, course, found, rest, says="starv")


def _changed(run: Run, change: Callable[[int], dict[str, Any]]) -> Run:
    def changed(step: Step) -> Step:
        new = change(step.step)
        return replace(step, **new | {"router": step.router | new.get("router", {})})

    return replace(run, steps=map(changed, run.steps))


def diverged(shape: Shape, rng: random.Random) -> Run:
    """Loss and gradient become NaN, and in half of the runs the entropies."""
    onset, course = around(0.5 * shape.steps, rng), Course(popularity=constant(shape, 0.2, rng))
    gone: dict[str, Any] = {"loss": math.nan, "grad_norm": math.nan}
    if rng.random() < 0.5:
        gone["router"] = dict.fromkeys(("entropy", "max_logit"), [math.nan] * shape.routers)
    found = Expected(rule="DIVERGED", onset=onset, severity="crit")
    says, allowed = rf"diverged at {onset:,}.*nan", {"GRADSPIKE": "crit"}
    run = run_of(shape, rng, course, found, says=says, allowed=allowed)
    return _changed(run, lambda step: gone if step >= onset else {})


def odd_values(shape: Shape, rng: random.Random, always: bool = False) -> Run:
    """One NaN, one infinity, a gradient sixty times as large; or a loss that is not measured."""
    run = run_of(shape, rng, Course(popularity=constant(shape, 0.2, rng)))
    if always:
        return _changed(run, lambda step: {"loss": math.nan})
    values = {"loss": math.nan}, {"grad_norm": math.inf}, {"loss": math.inf}, {"grad_norm": 60.0}
    odd = dict(zip(rng.sample(range(shape.steps // 4, shape.steps), 4), values, strict=True))
    return _changed(run, lambda step: odd.get(step, {}))


def miscounted(shape: Shape, rng: random.Random, kind: str) -> Run:
    """Sums that are not tokens × k: of ``expert choice``, right where all counts are the same.

    ``uneven`` choice: a layer has another count. ``part``: a half, a quarter, an eighth or the
    double of all. ``rank``: the counts of one rank are missing.
    """
    pairs, ranks = shape.tokens * shape.top_k, len(ranks_of(shape)) or 1
    each = min(shape.tokens, round(shape.fair_count * rng.choice((0.5, 1.0, 1.25, 2.0))))
    total = rng.choice([2 * pairs, *(pairs // n for n in (2, 4, 8) if pairs % n == 0)])
    rank, size = rng.randrange(ranks), shape.num_experts // ranks
    sick = some_routers(shape, 1 / shape.routers if kind == "uneven" else 1.0, rng)

    def meter(router: int, step: int, row: list[int]) -> list[int]:
        if kind == "part":
            return whole(row, total)
        if kind == "rank":
            return [n * (e // size != rank) for e, n in enumerate(row)]
        return [each - (kind == "uneven" and router in sick), *[each] * (len(row) - 1)]

    course = Course(popularity=constant(shape, 0.2, rng), meter=meter)
    found = [Expected(rule="METER", routers=sick, severity="error")] if kind != "choice" else []
    header: Record = {"world_size": ranks, "expert_parallel_size": ranks}
    if kind in ("choice", "uneven"):
        header = {"balance": {"method": "expert_choice"}}
    says = {"rank": f"rank {rank}", "part": "world size|recomput|top[-_]k"}.get(kind, "")
    return run_of(shape, rng, course, *found, header=header, says=says)


def one_hog(shape: Shape, rng: random.Random) -> Run:
    """One expert has held the overflow since a step: look at its tokens."""
    shape, (hog,) = replace(shape, capacity_factor=1.75), _some(shape, rng, 0)
    load = rng.uniform(0.8, 0.95) * shape.num_experts / shape.top_k
    pull = math.log(load * (shape.num_experts - 1) / (shape.num_experts - load))
    hot = [pull * (e == hog) for e in range(shape.num_experts)]
    found = Expected(rule="DROPS", experts=(hog,))
    course, found = jump(shape, rng, 1 / shape.routers, lambda row: hot, found)
    return run_of(shape, rng, course, found, says=rf"expert {hog}\b", never="raise capacity")


def pooled_in_counts(shape: Shape, rng: random.Random) -> Run:
    """Layers uneven in different ways and an even sum, where the auxiliary loss is not logged."""
    return _changed(pooled_aux_loss(shape, rng, even=True), lambda step: {"losses": {}})


def z_loss(shape: Shape, rng: random.Random, grown: float, within: float, rule: str = "") -> Run:
    """The z-loss of one layer grows, within this share of the run, beside a flat gradient."""
    onset, sick = around(0.3 * shape.steps, rng), some_routers(shape, 1 / shape.routers, rng)
    length, grown = within * shape.steps, grown * rng.uniform(0.85, 1.15)

    def scale(router: int, step: int) -> float:
        return grown ** (router in sick and min(1.0, max(0, step - onset) / length))

    course = Course(popularity=constant(shape, 0.2, rng), z_scale=scale)
    if rule:
        found = Expected(rule=rule, routers=sick, onset=onset, tolerance=shape.steps)
        return run_of(shape, rng, course, found)
    allowed = {"LOGITS": "warn"} if within < 0.1 else {}
    return run_of(shape, rng, course, allowed=allowed, never="diverge")


def no_preference(shape: Shape, rng: random.Random) -> Run:
    """An auxiliary loss fifty times as strong as usual leaves the router no preference."""
    mass = {"selected_mass": [1.05 * shape.top_k / shape.num_experts] * shape.routers}
    header = {"balance": {"method": "aux", "aux_weight": 0.5, "output_router_logits": True}}
    run = _changed(soft(shape, rng), lambda step: {"router": mass})
    return replace(run, header=header, truth=replace(run.truth, says="no preference"))
