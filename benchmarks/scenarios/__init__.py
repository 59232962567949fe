"""All scenarios of the scoreboard: those of ``demo``, their variants, and hard negatives."""

from benchmarks.scenarios import lookalikes, variants
from microscope_tui import scenarios
from microscope_tui.scenarios import Scenario, Shape, any_shape, can_lose_experts, several_choices


def _is_wide(shape: Shape) -> bool:
    return any_shape(shape) and shape.num_experts >= 8


def _takes_turns(shape: Shape) -> bool:
    return shape.num_experts >= 3 * shape.top_k


def _has_many_routers(shape: Shape) -> bool:
    return any_shape(shape) and variants.pooled_aux_fits(shape)


_LOOKALIKES = (
    Scenario("specialised", "uneven but steady experts", lookalikes.specialised),
    Scenario("soft", "token entropy at its maximum, yet learned", lookalikes.soft),
    Scenario("warm-up", "imbalance that heals in the first steps", lookalikes.warm_up),
    Scenario("small-batch", "96 tokens a step", lookalikes.small_batch),
    Scenario("domain-bursts", "batches of one kind now and then", lookalikes.domain_bursts),
    Scenario("narrow-finetune", "fine-tuning on narrow data", lookalikes.narrow_finetune),
    Scenario("upcycled", "experts that begin as copies", lookalikes.upcycled),
    Scenario("resume-bias-reset", "resumed without its biases", lookalikes.resume_bias_reset),
    Scenario("ragged", "a log with holes and a torn end", lookalikes.ragged),
    Scenario(
        "even-but-one",
        "every token chooses the same expert, the rest is even",
        lookalikes.even_but_one,
        several_choices,
        600,
    ),
    Scenario(
        "narrow-steady", "a steadily uneven fine-tuning", lookalikes.narrow_and_steady, _is_wide
    ),
    Scenario("parting", "experts part and settle", lookalikes.parting, steps=900),
    Scenario(
        "data-in-blocks",
        "a quarter of the experts rests, another one every 30 to 40 steps",
        lookalikes.data_in_blocks,
        can_lose_experts,
    ),
    Scenario("alternating-tokens", "steps of several sizes", lookalikes.alternating_tokens),
    Scenario("fine-grained", "many small experts specialise", lookalikes.fine_grained),
    Scenario(
        "hovering-finetune",
        "experts at a tenth of their share",
        lookalikes.hovering,
        can_lose_experts,
    ),
)
_VARIANTS = (
    Scenario("collapse-unconfident", "the token entropy stays", variants.collapse_unconfident),
    Scenario("early-collapse", "a collapse in the warm-up", variants.early_collapse),
    Scenario("lr-restarts", "the third restart is one too many", variants.lr_restarts),
    Scenario("from-shares", "a slow collapse read from shares", variants.from_shares),
    Scenario("from-top1", "a collapse read from first choices", variants.from_top1),
    Scenario("bias-bang-bang", "the load jumps every step", variants.bias_bang_bang),
    Scenario("forced-balance", "exactly even by force", variants.forced_balance),
    Scenario("padding", "padding is counted too", variants.padding),
    Scenario("nan", "the model computes NaN", variants.nan),
    Scenario("lint-top1-normalised", "one choice, normalised", variants.top1_normalised),
    Scenario("lint-aux-not-applied", "a loss that is never added", variants.aux_not_applied),
    Scenario(
        "lint-pooled-aux",
        "a balancing loss that cannot see collapsed layers",
        variants.pooled_aux_loss,
        _has_many_routers,
    ),
    Scenario("bias-wrong-sign", "busy experts gain bias", variants.bias_wrong_sign),
    Scenario("lint-gpt-oss-aux", "a huge balancing loss left on", variants.gpt_oss_aux),
    Scenario("dead-groups", "most experts die", variants.dead_groups, can_lose_experts, 900),
    Scenario("finetune-collapse", "a fine-tuning collapses", variants.finetune_collapse, _is_wide),
    Scenario("long-plan", "a fall in a long warm-up", variants.long_plan, steps=480),
    Scenario("sparse-log", "a collapse in every fiftieth step", variants.sparse, steps=120),
    Scenario("rotation", "three groups or more take turns", variants.rotation, _takes_turns),
    Scenario("bias-odd-period", "the load swings in three steps", variants.odd_period),
    Scenario("slow-swing", "a swing too slow to detect", variants.slow_swing),
    Scenario(
        "impossible-counts",
        "an expert has more pairs than tokens",
        variants.impossible_counts,
        several_choices,
    ),
)

SCENARIOS = scenarios.SCENARIOS | {one.name: one for one in (*_LOOKALIKES, *_VARIANTS)}
