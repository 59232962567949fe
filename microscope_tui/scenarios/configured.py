"""Runs with a faulty configuration, visible in the header; most of them train well."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

from microscope_tui.scenarios.collapsing import BESIDE_COLLAPSE, collapsing, fallen, growing
from microscope_tui.scenarios.course import Course, steps
from microscope_tui.scenarios.healthy import settled
from microscope_tui.scenarios.popularity import pulled
from microscope_tui.scenarios.run import Record, Run, around, some_routers
from microscope_tui.scenarios.shape import Shape
from microscope_tui.scenarios.truth import Expected, Truth

LINT = Expected(rule="LINT")
_POOLED_SICK = 0.75  # share of the routers that collapse behind the pooled loss


def _configured(shape: Shape, rng: random.Random, header: Record) -> Run:
    aux = header.get("balance", {}).get("method") == "aux"
    course = Course(
        popularity=settled(shape, rng),
        bias_update_rate=0.001 if "balance" not in header else None,
        losses=(lambda counts: {"aux": pooled_aux(counts, shape)}) if aux else None,
    )
    truth = Truth(expected=(LINT,))
    return Run(shape=shape, truth=truth, header=header, steps=steps(shape, rng, course))


def top1_normalised(shape: Shape, rng: random.Random) -> Run:
    """One choice per token, and its weight is divided by itself."""
    return _configured(replace(shape, top_k=1), rng, {"model": {"norm_top_k": True}})


def no_balance(shape: Shape, rng: random.Random) -> Run:
    """No load balancing: no method, or one of weight zero."""
    nothing: Record = {"method": "none"}
    zero: Record = {"method": "aux", "aux_weight": 0.0}
    return _configured(shape, rng, {"balance": rng.choice((nothing, zero))})


def aux_not_applied(shape: Shape, rng: random.Random) -> Run:
    """A balancing loss is configured, but the model never returns what it needs."""
    balance = {"method": "aux", "aux_weight": 0.001, "output_router_logits": False}
    return _configured(shape, rng, {"balance": balance})


def gpt_oss_aux(shape: Shape, rng: random.Random) -> Run:
    """The published configuration is fine-tuned with its huge balancing loss."""
    model = {"name": "gpt-oss-20b", "score_function": "softmax"}
    balance = {"method": "aux", "aux_weight": 0.9, "output_router_logits": True}
    return _configured(shape, rng, {"model": model, "balance": balance})


def pooled_aux(counts: Sequence[Sequence[int]], shape: Shape) -> float:
    """The balancing loss of counts pooled over all routers; its floor is k."""
    pooled = [sum(column) for column in zip(*counts, strict=True)]
    per_choice = shape.top_k / max(1, sum(pooled))
    fractions = [n * per_choice for n in pooled]
    # The mean probability is the load, softened.
    softened = (0.7 * f / shape.top_k + 0.3 / shape.num_experts for f in fractions)
    return shape.num_experts * math.fsum(f * p for f, p in zip(fractions, softened, strict=True))


def pooled_aux_fits(shape: Shape) -> bool:
    """The collapsed routers must be enough to cover nearly all experts."""
    sick = round(_POOLED_SICK * shape.routers)
    return shape.routers >= 4 and sick * shape.top_k >= 0.8 * shape.num_experts


def pooled_aux_loss(shape: Shape, rng: random.Random) -> Run:
    """Routers collapse on different experts each, and the loss of their sum sees nothing."""
    sick = some_routers(shape, _POOLED_SICK, rng)
    onset = around(0.2 * shape.steps, rng)
    ids = rng.sample(range(shape.num_experts), shape.num_experts)
    hot = {
        router: tuple(ids[(place * shape.top_k + j) % len(ids)] for j in range(shape.top_k))
        for place, router in enumerate(sick)
    }
    popularity = pulled(settled(shape, rng), hot, growing(onset, 15))
    course = replace(
        collapsing(popularity, sick, onset, confident=True),
        bias_update_rate=None,
        losses=lambda counts: {"aux": pooled_aux(counts, shape)},
    )
    collapsed = fallen(popularity, sick, shape, onset)
    lint = replace(LINT, onset=onset, tolerance=150)
    model = {"name": "mixtral", "score_function": "softmax"}
    balance = {"method": "aux", "aux_weight": 0.02, "output_router_logits": True}
    return Run(
        shape=shape,
        truth=Truth(expected=(lint, collapsed), allowed=BESIDE_COLLAPSE),
        header={"model": model, "balance": balance},
        steps=steps(shape, rng, course),
    )
