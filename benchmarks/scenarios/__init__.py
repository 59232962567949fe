"""All scenarios of the scoreboard: those of ``demo``, their variants, and hard negatives."""

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.scenarios import causes, knobs, lookalikes, loops, variants
from microscope_tui import scenarios
from microscope_tui.scenarios import Scenario, Shape, several_choices
from microscope_tui.scenarios.catalogue import any_shape, can_lose_experts


def _is_wide(shape: Shape) -> bool:
    return any_shape(shape) and shape.num_experts >= 8


_LOOKALIKES = (
    Scenario("specialised", lookalikes.specialised),
    Scenario("soft", lookalikes.soft),
    Scenario("warm-up", lookalikes.warm_up),
    Scenario("small-batch", lookalikes.small_batch),
    Scenario("domain-bursts", lookalikes.domain_bursts),
    Scenario("narrow-finetune", lookalikes.narrow_finetune),
    Scenario("upcycled", lookalikes.upcycled),
    Scenario("resume-bias-reset", lookalikes.resume_bias_reset),
    Scenario("ragged", lookalikes.ragged),
    Scenario("even-but-one", lookalikes.even_but_one, several_choices, 600),
    Scenario("narrow-steady", lookalikes.narrow_and_steady, _is_wide),
    Scenario("parting", lookalikes.parting, steps=900),
    Scenario("data-in-blocks", lookalikes.data_in_blocks, can_lose_experts),
    Scenario("alternating-tokens", lookalikes.alternating_tokens),
    Scenario("fine-grained", lookalikes.fine_grained),
    Scenario("hovering-finetune", lookalikes.hovering, can_lose_experts),
)
_VARIANTS = (
    Scenario("collapse-unconfident", variants.collapse_unconfident),
    Scenario("early-collapse", variants.early_collapse),
    Scenario("lr-restarts", variants.lr_restarts),
    Scenario("from-shares", variants.from_shares),
    Scenario("from-top1", variants.from_top1),
    Scenario("bias-bang-bang", variants.bias_bang_bang),
    Scenario("forced-balance", variants.forced_balance, _is_wide),
    Scenario("padding", variants.padding),
    Scenario("nan", variants.nan),
    Scenario("lint-top1-normalised", variants.top1_normalised),
    Scenario("lint-pooled-aux", variants.pooled_aux_loss, variants.pooled_aux_fits),
    Scenario("bias-wrong-sign", partial(loops.wrong_sign, everywhere=True)),
    Scenario("lint-gpt-oss-aux", variants.gpt_oss_aux),
    Scenario("dead-groups", variants.dead_groups, can_lose_experts, 900),
    Scenario("finetune-collapse", variants.finetune_collapse, _is_wide),
    Scenario("long-plan", variants.long_plan, steps=480),
    Scenario("sparse-log", variants.sparse, steps=120),
    Scenario("rotation", variants.rotation, lambda s: s.num_experts >= 3 * s.top_k),
    Scenario("bias-odd-period", variants.odd_period),
    Scenario("slow-swing", variants.slow_swing),
    Scenario("impossible-counts", variants.impossible_counts, several_choices),
)
_CAUSES = (
    Scenario("lint-aux-not-applied", causes.aux_off, steps=900),
    Scenario("cause-unbalanced", causes.unbalanced, steps=900),
    Scenario("cause-frozen", causes.frozen, steps=900),
    Scenario("cause-too-slow", causes.too_slow, steps=1800),
    Scenario("cause-too-fast", causes.too_fast, steps=1200),
    Scenario("cause-divergence", causes.diverging, steps=400),
    Scenario("cause-restart", causes.restart, steps=900),
    Scenario("cause-bias-lost", causes.bias_lost, steps=900),
    Scenario("cause-rank", causes.rank_lost, scenarios.SCENARIOS["rank-skew"].fits, 1200),
    Scenario("cause-data", causes.data_switch, steps=900),
    Scenario("cause-capacity", causes.small_capacity, steps=600),
    Scenario("cause-stale-rows", causes.stale_rows, can_lose_experts, 600),
    Scenario("cause-wrong-sums", causes.wrong_sums, steps=900),
    Scenario("hot-and-narrow", causes.hot_and_narrow, causes.can_be_hot, 600),
    Scenario("idle-in-turn", causes.idle_in_turn, _is_wide),
    Scenario("probed-collapse", causes.probed_collapse, steps=14),
    Scenario("probed-narrow", causes.probed_narrow, steps=14),
    Scenario("frozen-steady", causes.frozen_steady, _is_wide, 900),
    Scenario("same-batch", causes.same_batch, steps=600),
    Scenario("sinkhorn", causes.sinkhorn, steps=600),
    Scenario("hot-rising", causes.hot_rising, several_choices, 1200),
    Scenario("growing-logits", causes.growing_logits, steps=900),
)

_fills_ranks = scenarios.SCENARIOS["rank-skew"].fits


def _has_many(shape: Shape) -> bool:
    """A thousandth of the fair share can be a token now and then."""
    return can_lose_experts(shape) and shape.fair_count >= 200 and shape.routers > 1


def _knob(
    name: str, build: Callable[..., Any], fits: Any = any_shape, steps: int = 900, **more: Any
) -> Scenario:
    return Scenario(name, partial(build, **more), fits, steps)


_KNOBS = (
    _knob("stray-tokens", knobs.unloved, _has_many, 850, kind="stray"),
    _knob("rare-experts", knobs.unloved, _has_many, kind="rare"),
    _knob("few-dead-at-start", knobs.unloved, can_lose_experts, kind="first"),
    _knob("finetune-dead", knobs.unloved, can_lose_experts, kind="tuned"),
    _knob("tiny-batches", knobs.unloved, _is_wide, kind="tiny"),
    _knob("stop-at-once", knobs.stop_at_once, _has_many),
    _knob("lora", knobs.lora, _is_wide, 300, trained=False),
    _knob("lora-of-routers", knobs.lora, _is_wide, 300, trained=True),
    _knob("healed-collapse", knobs.healed, _is_wide, 1200),
    _knob("starved-after", knobs.healed, can_lose_experts, 1200, after=0.04),
    _knob("diverged", knobs.diverged, steps=600),
    _knob("odd-values", knobs.odd_values, steps=600),
    _knob("loss-not-measured", knobs.odd_values, steps=300, always=True),
    _knob("expert-choice", knobs.miscounted, steps=300, kind="choice"),
    _knob("expert-choice-uneven", knobs.miscounted, steps=300, kind="uneven"),
    _knob("partial-sums", knobs.miscounted, steps=300, kind="part"),
    _knob("zero-block", knobs.miscounted, _fills_ranks, 300, kind="rank"),
    _knob("one-hog", knobs.one_hog, lambda s: _has_many(s) and s.top_k > 1, 600),
    _knob("pooled-in-counts", knobs.pooled_in_counts, variants.pooled_aux_cancels),
    _knob("z-loss-triples", knobs.z_loss, grown=3.8, within=0.02),
    _knob("z-loss-sixfold", knobs.z_loss, steps=1200, grown=5, within=0.5),
    _knob("z-loss-thirtyfold", knobs.z_loss, steps=1800, grown=45, within=0.5, rule="LOGITS"),
    _knob("no-preference", knobs.no_preference),
    _knob("settles-late", loops.settles_late, steps=600),
    _knob("sign-of-some", loops.wrong_sign, lambda s: any_shape(s) and s.routers > 1, 600),
    _knob("bias-never-moves", loops.still),
    _knob("bias-stands-still", loops.still, at=0.4),
    _knob("bias-annealed", loops.still, at=0.4, drifts=False),
    _knob("sources-in-turn", loops.sources, _is_wide, c=(0.5, 0.9), logged=True),
    _knob("sources-mild", loops.sources, _is_wide, c=(0.88, 0.95), logged=False),
    _knob("sources-hidden", loops.sources, _is_wide, c=(0.45, 0.55), logged=False, warns=True),
    _knob("bias-overshoots", loops.overshoots, can_lose_experts),
    _knob("tiny-rate", loops.tiny_rate),
    _knob("bias-lost-at-resumes", loops.lost_at_resumes, steps=1200),
)
KNOBS = {one.name: one for one in _KNOBS}

SCENARIOS = (
    scenarios.SCENARIOS | {one.name: one for one in (*_LOOKALIKES, *_VARIANTS, *_CAUSES)} | KNOBS
)
