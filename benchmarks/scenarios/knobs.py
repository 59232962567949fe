"""Faults with a remedy that is easily wrong, and the healthy runs beside them."""

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from benchmarks.scenarios import causes
from benchmarks.scenarios.lookalikes import narrow_and_steady, run_of
from benchmarks.scenarios.loops import LINT, advised
from benchmarks.scenarios.variants import pooled_aux_loss
from microscope_tui.scenarios.control import ranks_of
from microscope_tui.scenarios.course import Course
from microscope_tui.scenarios.popularity import constant, pulled, whole
from microscope_tui.scenarios.run import (
    Expected,
    Record,
    Run,
    Shape,
    Step,
    around,
    hot_experts,
    some_routers,
)

_METER = Expected(rule="METER", severity="error", tolerance=60)
_NO_RATE = "raise"
_RISE = 300
"""Steps in which a z-loss grows."""


def _everywhere(shape: Shape) -> tuple[int, ...]:
    return tuple(range(shape.routers))


def _some_experts(shape: Shape, share: float, rng: random.Random) -> tuple[int, ...]:
    number = max(1, round(share * shape.num_experts))
    return tuple(sorted(rng.sample(range(shape.num_experts), number)))


def _rare(shape: Shape, rng: random.Random, share: float) -> tuple[Course, Expected]:
    """A quarter of the experts of a layer keeps this share of its fair one, from an onset on."""
    onset, sick = around(0.2 * shape.steps, rng), some_routers(shape, 1 / shape.routers, rng)
    rare = _some_experts(shape, 0.25, rng)
    popularity = pulled(
        constant(shape, 0.2, rng),
        dict.fromkeys(sick, rare),
        lambda s: (s >= onset) * math.log(share),
    )
    found = Expected(
        rule="DEAD", routers=sick, onset=onset, experts=rare, severity="crit", tolerance=80
    )
    return Course(popularity=popularity, bias_update_rate=None), found


def stray_tokens(shape: Shape, rng: random.Random) -> Run:
    """Dead experts that get a token now and then, of which a window of zeros sees nothing."""
    a_step = math.exp(rng.uniform(math.log(0.05), math.log(shape.fair_count / 2500)))
    return run_of(shape, rng, *_rare(shape, rng, a_step / shape.fair_count))


def rare_experts(shape: Shape, rng: random.Random) -> Run:
    """Experts with few tokens, far more than dead ones have: starved, not dead."""
    course, dead = _rare(shape, rng, rng.uniform(0.01, 0.04))
    starved = Expected(rule="STARVED", routers=dead.routers, onset=dead.onset, tolerance=150)
    return run_of(shape, rng, course, starved, allowed={"OVERLOAD": "warn"})


def stop_at_once(shape: Shape, rng: random.Random) -> Run:
    """Some experts of every layer stop in one step, the rest is even: data or code, no knob."""
    onset, number = around(0.4 * shape.steps, rng), max(1, shape.num_experts // 8)
    first = rng.randint(1, shape.num_experts - number - 1)  # a block that fits no rank
    is_block, header = rng.random() < 0.5, {"balance": {"method": "bias", "update": "sign"}}
    gone = {
        r: tuple(range(first, first + number)) if is_block else _some_experts(shape, 0.125, rng)
        for r in _everywhere(shape)
    }
    base = constant(shape, 0.15, rng)
    course = Course(popularity=pulled(base, gone, lambda step: -40.0 * (step >= onset)))
    found = Expected(rule="DEAD", routers=_everywhere(shape), onset=onset, tolerance=60)
    run = run_of(shape, rng, course, found, cause="data or code", header=header)
    block = rf".*{first}–{first + number - 1}\b" if is_block and number > 2 else ""
    return advised(run, f"(?=.*batches){block}", "raise|(?<!not )re-initiali")


def few_dead_at_start(shape: Shape, rng: random.Random) -> Run:
    """One expert or two of a layer are dead since step 1, and the others even."""
    sick, number = some_routers(shape, 1 / shape.routers, rng), 1 + (shape.num_experts > 32)
    dead = _some_experts(shape, number / shape.num_experts, rng)
    popularity = pulled(constant(shape, 0.1, rng), dict.fromkeys(sick, dead), lambda step: -40.0)
    found = Expected(rule="DEAD", routers=sick, experts=dead, tolerance=60)
    return advised(
        run_of(shape, rng, Course(popularity=popularity), found), "re-initiali", _NO_RATE
    )


def rank_lost(shape: Shape, rng: random.Random) -> Run:
    """A rank is lost in all layers; its experts may also have served data that ended."""
    run = causes.rank_lost(shape, rng)
    (found,) = run.truth.expected
    run = replace(run, truth=replace(run.truth, expected=(replace(found, severity="crit"),)))
    return advised(run, "or the data that only these experts serve", _NO_RATE)


def tiny_batches(shape: Shape, rng: random.Random) -> Run:
    """A fine-tuning with 64 tokens a step, and an expert that is rarely chosen."""
    shape, base = replace(shape, tokens=64), constant(shape, rng.uniform(0.4, 0.8), rng)
    rare = {r: (rng.randrange(shape.num_experts),) for r in some_routers(shape, 0.3, rng)}
    course = Course(
        popularity=pulled(base, rare, lambda step: -3.5),
        concentration=lambda step: 10.0,
        bias_update_rate=None,
    )
    return run_of(shape, rng, course, header={"profile": "finetune"} | causes._UNBALANCED)


def finetune_dead(shape: Shape, rng: random.Random) -> Run:
    """An eighth of the experts of a layer stops in a fine-tuning, where it had its share."""
    onset, sick = around(0.4 * shape.steps, rng), some_routers(shape, 1 / shape.routers, rng)
    gone = _some_experts(shape, 0.125, rng)
    popularity = pulled(
        constant(shape, 0.4, rng), dict.fromkeys(sick, gone), lambda s: -40.0 * (s >= onset)
    )
    found = Expected(rule="DEAD", routers=sick, onset=onset, experts=gone, tolerance=60)
    return run_of(shape, rng, Course(popularity=popularity), found, header={"profile": "finetune"})


def _lora(shape: Shape, frozen: int) -> Record:
    balance = {"method": "aux", "aux_weight": 0.001, "output_router_logits": False}
    adapters = {"experts": 0, "routers": 0, "other": 4 * shape.routers}
    trained = [shape.routers - frozen, shape.routers]
    return {
        "profile": "finetune",
        "model": {"score_function": "softmax"},
        "balance": balance | ({"frozen_routers": frozen} if frozen else {}),
        "training": {"routers": trained, "experts": [0, shape.routers], "adapters": adapters},
    }


def lora(shape: Shape, rng: random.Random) -> Run:
    """The default of LoRA: no router trains, and no auxiliary loss is asked for."""
    run = narrow_and_steady(shape, rng, router_grad=0.0, bias_update_rate=None)
    return replace(run, header=_lora(shape, shape.routers))


def lora_of_routers(shape: Shape, rng: random.Random) -> Run:
    """The same while the routers train."""
    course = Course(popularity=constant(shape, 0.6, rng), bias_update_rate=None)
    run = run_of(shape, rng, course, LINT, cause="not applied", header=_lora(shape, 0))
    return advised(run, "output_router_logits", _NO_RATE)


def _healing(shape: Shape, rng: random.Random, share: float) -> tuple[Course, int, int, Any]:
    """A layer collapses for 150 to 250 steps; then some experts keep this share of a fair one."""
    onset, sick = around(0.2 * shape.steps, rng), some_routers(shape, 1 / shape.routers, rng)
    end, rare = onset + rng.randint(150, 250), _some_experts(shape, 0.25, rng)
    hot = hot_experts(shape, sick, rng)
    fallen = pulled(constant(shape, 0.15, rng), hot, lambda s: 9.0 * (onset <= s < end))
    after = pulled(fallen, dict.fromkeys(sick, rare), lambda s: (s >= end) * math.log(share))
    return Course(popularity=after, bias_update_rate=None), onset, end, sick


def healed(shape: Shape, rng: random.Random) -> Run:
    """A collapse that healed: nothing starves any longer, and nothing did before."""
    course, onset, end, sick = _healing(shape, rng, 1.0)
    found = Expected(rule="COLLAPSE", routers=sick, onset=onset, until=end, severity="crit")
    return advised(run_of(shape, rng, course, found), never="starv")


def starved_after(shape: Shape, rng: random.Random) -> Run:
    """A collapse that healed, but for a quarter of the experts."""
    course, onset, end, sick = _healing(shape, rng, 0.04)
    found = Expected(rule="COLLAPSE", routers=sick, onset=onset, until=end, severity="crit")
    starved = Expected(rule="STARVED", routers=sick, onset=end, tolerance=30)
    return advised(run_of(shape, rng, course, found, starved), "starv")


def _changed(run: Run, change: Callable[[Step], Step]) -> Run:
    return replace(run, steps=map(change, run.steps))


def diverged(shape: Shape, rng: random.Random) -> Run:
    """Loss and gradient become NaN, and in half of the runs the entropies."""
    onset, names = around(0.5 * shape.steps, rng), rng.choice(((), ("entropy", "max_logit")))
    course = Course(popularity=constant(shape, 0.2, rng))
    found = Expected(rule="DIVERGED", onset=onset, severity="crit")

    def change(step: Step) -> Step:
        if step.step < onset:
            return step
        router = step.router | dict.fromkeys(names, [math.nan] * shape.routers)
        return replace(step, loss=math.nan, grad_norm=math.nan, router=router)

    run = _changed(run_of(shape, rng, course, found, cause="diverged"), change)
    return advised(run, rf"diverged at {onset:,}.*nan")


def loss_not_measured(shape: Shape, rng: random.Random) -> Run:
    """The writer has no loss, and logs NaN from the first line."""
    run = run_of(shape, rng, Course(popularity=constant(shape, 0.2, rng)))
    return _changed(run, lambda step: replace(step, loss=math.nan))


def single_spikes(shape: Shape, rng: random.Random) -> Run:
    """Here and there one NaN, one infinity or a gradient sixty times as large, and all is well."""
    odd = rng.sample(range(150, shape.steps), 4)
    kinds: list[Record] = [{"loss": math.nan}, {"grad_norm": math.inf}, {"loss": math.inf}]
    values = dict(zip(odd, [*kinds, {"grad_norm": 60.0}], strict=True))
    run = run_of(shape, rng, Course(popularity=constant(shape, 0.2, rng)))
    return _changed(run, lambda step: replace(step, **values.get(step.step, {})))


def _counted(shape: Shape, rng: random.Random, meter: Any, *found: Expected, **more: Any) -> Run:
    course = Course(popularity=constant(shape, 0.2, rng), meter=meter, bias_update_rate=None)
    return run_of(shape, rng, course, *found, **more)


def expert_choice(shape: Shape, rng: random.Random, odd: int = 0) -> Run:
    """Every expert chooses as many tokens, and the capacity decides how many these are."""
    each = min(shape.tokens, round(shape.fair_count * rng.choice((0.5, 1.0, 1.25, 2.0))))
    sick = some_routers(shape, 0.3, rng)

    def meter(router: int, step: int, counts: list[int]) -> list[int]:
        return [each - odd * (router in sick), *[each] * (len(counts) - 1)]

    found = (replace(_METER, routers=sick),) if odd else ()
    return _counted(shape, rng, meter, *found, header={"balance": {"method": "expert_choice"}})


def uneven_choice(shape: Shape, rng: random.Random) -> Run:
    """The same, but in some layers an expert has another count."""
    return expert_choice(shape, rng, rng.randint(1, 3))


def partial_sums(shape: Shape, rng: random.Random) -> Run:
    """Exactly a half, a quarter, an eighth or the double of all tokens are counted."""
    pairs = shape.tokens * shape.top_k
    wanted = rng.choice([2 * pairs, *(pairs // n for n in (2, 4, 8) if pairs % n == 0)])
    found = replace(_METER, routers=_everywhere(shape))
    run = _counted(shape, rng, lambda router, step, counts: whole(counts, wanted), found)
    return advised(run, "world size|recomput|top[-_]k")


def zero_block(shape: Shape, rng: random.Random) -> Run:
    """The counts of one rank are missing in the sum."""
    ranks = len(ranks_of(shape))
    each, rank = shape.num_experts // ranks, rng.randrange(ranks)

    def meter(router: int, step: int, counts: list[int]) -> list[int]:
        return [0 if expert // each == rank else n for expert, n in enumerate(counts)]

    header = {"world_size": ranks, "expert_parallel_size": ranks}
    found = replace(_METER, routers=_everywhere(shape))
    return advised(_counted(shape, rng, meter, found, header=header), f"rank {rank}")


def one_hog(shape: Shape, rng: random.Random) -> Run:
    """One expert has held the overflow since a step: look at its tokens."""
    shape, sick = replace(shape, capacity_factor=1.25), some_routers(shape, 0.2, rng)
    onset, hog = around(0.4 * shape.steps, rng), rng.randrange(shape.num_experts)
    load = rng.uniform(0.8, 0.95) * shape.num_experts / shape.top_k
    pull = math.log(load * (shape.num_experts - 1) / (shape.num_experts - load))
    held = pulled(
        constant(shape, 0.1, rng), dict.fromkeys(sick, (hog,)), lambda s: pull * (s >= onset)
    )
    found = Expected(rule="DROPS", routers=sick, onset=onset, tolerance=60)
    run = run_of(shape, rng, Course(popularity=held), found)
    return advised(run, rf"expert {hog}\b", "raise capacity")


def pooled_in_counts(shape: Shape, rng: random.Random) -> Run:
    """Layers uneven in different ways and an even sum, where the auxiliary loss is not logged."""
    run = pooled_aux_loss(shape, rng)
    return advised(_changed(run, lambda step: replace(step, losses={})), "pool", _NO_RATE)


def _z_loss(shape: Shape, rng: random.Random, grown: float, within: int) -> tuple[Course, Expected]:
    (sick,), onset = some_routers(shape, 1 / shape.routers, rng), around(0.3 * shape.steps, rng)

    def scale(router: int, step: int) -> float:
        return 1 + (router == sick) * (grown - 1) * min(1.0, max(0, step - onset) / within)

    found = Expected(rule="LOGITS", routers=(sick,), onset=onset, tolerance=_RISE)
    return Course(popularity=constant(shape, 0.2, rng), z_scale=scale), found


def z_loss_triples(shape: Shape, rng: random.Random) -> Run:
    """A step of the z-loss of one layer beside a flat loss and gradient: not a divergence."""
    course, _ = _z_loss(shape, rng, rng.uniform(3.2, 4.5), 20)
    return advised(run_of(shape, rng, course, allowed={"LOGITS": "warn"}), never="diverge")


def z_loss_sixfold(shape: Shape, rng: random.Random) -> Run:
    """The z-loss of one layer grows slowly, up to sixfold, as in healthy models."""
    return run_of(shape, rng, _z_loss(shape, rng, rng.uniform(4, 6), _RISE)[0])


def z_loss_thirtyfold(shape: Shape, rng: random.Random) -> Run:
    """The z-loss of one layer grows slowly to thirty or forty times what it was."""
    return run_of(shape, rng, *_z_loss(shape, rng, rng.uniform(32, 40), _RISE))


def no_preference(shape: Shape, rng: random.Random) -> Run:
    """An auxiliary loss fifty times as strong as usual leaves the router no preference."""
    course = Course(
        popularity=constant(shape, 0.05, rng),
        token_entropy=lambda router, step: 0.9995,
        softness=lambda router, step: 0.99,
        bias_update_rate=None,
    )
    balance = {"method": "aux", "aux_weight": 0.5, "output_router_logits": True}
    mass = [1.05 * shape.top_k / shape.num_experts] * shape.routers
    run = run_of(shape, rng, course, header={"balance": balance})
    run = _changed(run, lambda s: replace(s, router=s.router | {"selected_mass": [*mass]}))
    return advised(run, "no preference")
