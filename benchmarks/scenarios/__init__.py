"""All scenarios of the scoreboard: those of ``demo``, their variants, and hard negatives."""

from benchmarks.scenarios import causes, lookalikes, variants
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

SCENARIOS = scenarios.SCENARIOS | {one.name: one for one in (*_LOOKALIKES, *_VARIANTS, *_CAUSES)}
