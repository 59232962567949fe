"""All scenarios by name: description, supported shapes, length."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from microscope_tui.scenarios import (
    backwards,
    borderline,
    collapsing,
    configured,
    control,
    healthy,
    metering,
    mistakable,
    rhythms,
)
from microscope_tui.scenarios.run import Run
from microscope_tui.scenarios.shape import Shape

_ENOUGH = 20  # tokens per expert and step that distinguish a fading expert from chance
_STEADY = 100  # tokens per expert and step at which no expert of a skewed rank stands out


@dataclass(frozen=True, slots=True)
class Scenario:
    """A kind of run with known ground truth."""

    name: str
    summary: str
    build: Callable[[Shape, random.Random], Run]
    fits: Callable[[Shape], bool]
    """Whether the scenario supports the shape."""
    steps: int = 1500
    """Default number of steps."""


def _any(shape: Shape) -> bool:
    return shape.num_experts >= 2 * shape.top_k


def _several_choices(shape: Shape) -> bool:
    return _any(shape) and shape.top_k > 1


def _is_wide(shape: Shape) -> bool:
    return _any(shape) and shape.num_experts >= 8


def _can_lose_experts(shape: Shape) -> bool:
    return _any(shape) and shape.num_experts >= 8 and shape.fair_count >= _ENOUGH


def _takes_turns(shape: Shape) -> bool:
    return shape.num_experts >= 3 * shape.top_k


def _can_starve(shape: Shape) -> bool:
    return _any(shape) and shape.num_experts >= 8 and shape.fair_count >= _STEADY


def _fills_ranks(shape: Shape) -> bool:
    return _any(shape) and bool(control.ranks_of(shape)) and shape.fair_count >= _STEADY


def _has_many_routers(shape: Shape) -> bool:
    return _any(shape) and configured.pooled_aux_fits(shape)


_ALL = (
    Scenario("healthy", "nothing is wrong", healthy.healthy, _any),
    Scenario("specialised", "uneven but steady experts", healthy.specialised, _any),
    Scenario("soft", "token entropy at its maximum, yet learned", healthy.soft, _any),
    Scenario("warm-up", "imbalance that heals in the first steps", healthy.warm_up, _any),
    Scenario("small-batch", "96 tokens a step", healthy.small_batch, _any),
    Scenario("domain-bursts", "batches of one kind now and then", healthy.domain_bursts, _any),
    Scenario("shock", "a layer falls and comes back at once", healthy.shock, _any),
    Scenario("narrow-finetune", "fine-tuning on narrow data", healthy.narrow_finetune, _any),
    Scenario("hot-expert", "one expert serves every token", healthy.hot_expert, _several_choices),
    Scenario("upcycled", "experts that begin as copies", healthy.upcycled, _any),
    Scenario("collapse", "a layer falls onto k experts", collapsing.collapse, _any, 600),
    Scenario("slow-collapse", "a layer erodes, then collapses", collapsing.slow_collapse, _any),
    Scenario(
        "collapse-unconfident",
        "layers collapse while their token entropy reads healthy",
        collapsing.collapse_unconfident,
        _any,
    ),
    Scenario("early-collapse", "a collapse in the warm-up", collapsing.early_collapse, _any),
    Scenario("dead-experts", "some experts fade away", collapsing.dead_experts, _can_lose_experts),
    Scenario("divergence", "gradients and logits blow up first", collapsing.divergence, _any),
    Scenario("lr-restarts", "the third restart is one too many", collapsing.lr_restarts, _any),
    Scenario("from-shares", "a slow collapse read from shares", collapsing.from_shares, _any),
    Scenario("from-top1", "a collapse read from first choices", collapsing.from_top1, _any),
    Scenario("bias-bang-bang", "the load jumps every step", control.bias_bang_bang, _any),
    Scenario("bias-limit-cycle", "the load swings slowly", control.bias_limit_cycle, _any),
    Scenario("bias-runaway", "the bias grows without effect", control.bias_runaway, _any),
    Scenario("overflow", "experts beyond their capacity", control.overflow, _any),
    Scenario("dead-gradient", "routers that learn nothing", control.dead_gradient, _any),
    Scenario("rank-skew", "one rank does most of the work", control.rank_skew, _fills_ranks),
    Scenario("forced-balance", "exactly even by force", metering.forced_balance, _any),
    Scenario("double-counting", "every choice is counted twice", metering.double_counting, _any),
    Scenario("padding", "padding is counted too", metering.padding, _any),
    Scenario("nan", "the model computes NaN", metering.nan, _any),
    Scenario(
        "resume-bias-reset", "a resumed run without its biases", metering.resume_bias_reset, _any
    ),
    Scenario("ragged", "a log with holes and a torn end", metering.ragged, _any),
    Scenario("lint-top1-normalised", "one choice, normalised", configured.top1_normalised, _any),
    Scenario("lint-no-balance", "nothing balances the load", configured.no_balance, _any),
    Scenario(
        "lint-aux-not-applied",
        "a balancing loss that is never added",
        configured.aux_not_applied,
        _any,
    ),
    Scenario(
        "lint-pooled-aux",
        "a balancing loss that cannot see collapsed layers",
        configured.pooled_aux_loss,
        _has_many_routers,
    ),
    Scenario("bias-wrong-sign", "busy experts gain bias", backwards.bias_wrong_sign, _any),
    Scenario("lint-gpt-oss-aux", "a huge balancing loss left on", configured.gpt_oss_aux, _any),
    Scenario(
        "even-but-one",
        "every token chooses the same expert, the rest is even",
        healthy.even_but_one,
        _several_choices,
        600,
    ),
    Scenario("dead-groups", "most experts die", mistakable.dead_groups, _can_lose_experts, 900),
    Scenario(
        "narrow-steady", "a steadily uneven fine-tuning", mistakable.narrow_and_steady, _is_wide
    ),
    Scenario(
        "finetune-collapse", "a fine-tuning collapses", mistakable.finetune_collapse, _is_wide
    ),
    Scenario("parting", "experts part and settle", mistakable.parting, _any, 900),
    Scenario("long-plan", "a fall in a long warm-up", mistakable.long_plan, _any, 480),
    Scenario("sparse-log", "a collapse in every fiftieth step", mistakable.sparse, _any, 120),
    # What changes from step to step, and what stays close to a limit.
    Scenario(
        "data-in-blocks",
        "a quarter of the experts rests, another one every 30 to 40 steps",
        rhythms.data_in_blocks,
        _can_lose_experts,
    ),
    Scenario("rotation", "three groups or more take turns", rhythms.rotation, _takes_turns),
    Scenario("bias-odd-period", "the load swings in three steps", rhythms.odd_period, _any),
    Scenario("slow-swing", "a swing too slow to detect", rhythms.slow_swing, _any),
    Scenario(
        "alternating-tokens",
        "steps of one and of two times the tokens",
        rhythms.alternating_tokens,
        _any,
    ),
    Scenario(
        "impossible-counts",
        "an expert has more pairs than tokens",
        borderline.impossible_counts,
        _several_choices,
    ),
    Scenario("fine-grained", "many small experts specialise", borderline.fine_grained, _any),
    Scenario(
        "hovering-finetune",
        "experts at a tenth of their share",
        borderline.hovering,
        _can_lose_experts,
    ),
    Scenario("starving-finetune", "experts starve", borderline.starving, _can_starve),
)

SCENARIOS: dict[str, Scenario] = {scenario.name: scenario for scenario in _ALL}
