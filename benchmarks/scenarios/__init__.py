"""All scenarios of the scoreboard: those of ``demo``, their variants, and hard negatives."""

from benchmarks.scenarios import causes, knobs, lookalikes, loops, variants
from microscope_tui import scenarios
from microscope_tui.scenarios import Scenario, Shape, any_shape, can_lose_experts, several_choices


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
    Scenario("bias-wrong-sign", variants.bias_wrong_sign),
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
    return can_lose_experts(shape) and shape.fair_count >= 200


def _overflows(shape: Shape) -> bool:
    return several_choices(shape) and shape.num_experts >= 8


def _has_neighbours(shape: Shape) -> bool:
    return _has_many(shape) and shape.routers > 1


_KNOBS = (
    Scenario("stray-tokens", knobs.stray_tokens, _has_many, 850),
    Scenario("rare-experts", knobs.rare_experts, _has_many, 850),
    Scenario("sign-of-some", loops.sign_of_some, lambda s: any_shape(s) and s.routers > 1, 600),
    Scenario("loop", loops.settles, steps=600),
    Scenario("bias-never-moves", loops.never_moves, steps=900),
    Scenario("bias-stands-still", loops.stands_still, steps=1200),
    Scenario("bias-annealed", loops.annealed, steps=900),
    Scenario("bias-evaluated", loops.evaluated, steps=300),
    Scenario("stop-at-once", knobs.stop_at_once, _has_neighbours, 900),
    Scenario("few-dead-at-start", knobs.few_dead_at_start, can_lose_experts, 600),
    Scenario("rank-lost-everywhere", knobs.rank_lost, _fills_ranks, 1000),
    Scenario("tiny-batches", knobs.tiny_batches, _is_wide, 900),
    Scenario("finetune-dead", knobs.finetune_dead, can_lose_experts, 900),
    Scenario("lora", knobs.lora, _is_wide, 300),
    Scenario("lora-of-routers", knobs.lora_of_routers, steps=300),
    Scenario("healed-collapse", knobs.healed, _is_wide, 1200),
    Scenario("starved-after", knobs.starved_after, can_lose_experts, 1200),
    Scenario("sources-in-turn", loops.sources_in_turn, _is_wide, 900),
    Scenario("sources-mild", loops.mild_sources, _is_wide, 900),
    Scenario("sources-hidden", loops.hidden_sources, _is_wide, 900),
    Scenario("bias-overshoots", loops.overshoots, _is_wide, 900),
    Scenario("diverged", knobs.diverged, steps=600),
    Scenario("loss-not-measured", knobs.loss_not_measured, steps=300),
    Scenario("single-spikes", knobs.single_spikes, steps=600),
    Scenario("expert-choice", knobs.expert_choice, steps=300),
    Scenario("expert-choice-uneven", knobs.uneven_choice, steps=300),
    Scenario("partial-sums", knobs.partial_sums, steps=300),
    Scenario("zero-block", knobs.zero_block, _fills_ranks, 300),
    Scenario("tiny-rate", loops.tiny_rate, steps=900),
    Scenario("one-hog", knobs.one_hog, _overflows, 600),
    Scenario("pooled-in-counts", knobs.pooled_in_counts, variants.pooled_aux_fits),
    Scenario("bias-lost-at-resumes", loops.lost_at_resumes, steps=1200),
    Scenario("z-loss-triples", knobs.z_loss_triples, steps=600),
    Scenario("z-loss-sixfold", knobs.z_loss_sixfold, steps=900),
    Scenario("z-loss-thirtyfold", knobs.z_loss_thirtyfold, steps=900),
    Scenario("settles-late", loops.settles_late, steps=600),
    Scenario("no-preference", knobs.no_preference, steps=900),
)

KNOBS = {one.name: one for one in _KNOBS}
SCENARIOS = scenarios.SCENARIOS | {
    one.name: one for one in (*_LOOKALIKES, *_VARIANTS, *_CAUSES, *_KNOBS)
}
