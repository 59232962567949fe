"""LINT: settings that are known to damage a run, reported at the first step of each header."""

import sys
from collections.abc import Iterator, Mapping

import msgspec

from microscope_tui.diagnosis.balancing import right_sign
from microscope_tui.diagnosis.bias_sign import BiasSign, SignMemory, again
from microscope_tui.diagnosis.context import Context
from microscope_tui.diagnosis.episodes import Episode
from microscope_tui.diagnosis.reading import Severity
from microscope_tui.diagnosis.rules.base import Rule
from microscope_tui.diagnosis.signals import StepView
from microscope_tui.runlog import RunRecord

WRONG_SIGN = "wrong bias sign"
"""Cause: a bias update that favours the busy experts."""
_TEXTS = {
    "top-1 normalised": (
        "with top_k 1 the normalised weight is always 1, so the loss sends the router no gradient",
        "set norm_top_k (norm_topk_prob) to false, or route to two experts",
    ),
    "no balancing": (
        "the header names no load balancing: no bias update, no auxiliary loss",
        "switch one on: bias updates, or an auxiliary loss per layer",
    ),
    "aux not applied": (
        "an auxiliary loss is configured, but output_router_logits is off and the model adds none",
        "set output_router_logits to true",
    ),
    "aux pooled": (
        "the auxiliary loss is at its floor while layers are uneven: it pools all layers first",
        "compute the auxiliary loss per layer; pooled, opposite collapses cancel out",
    ),
    "aux too strong": (
        "gpt-oss ships with an auxiliary weight of 0.9, made for its own training",
        "fine-tune with router_aux_loss_coef 1e-5 or so",
    ),
    "layers pooled": (
        "transformers computes one auxiliary loss over all layers: layers that are uneven in "
        "different ways cancel out",
        "watch each layer by itself, or add an auxiliary loss per layer",
    ),
    "bias not updated": (
        "the routers have a selection bias, and transformers never updates it",
        "update it after every step, if your training code does not do so already",
    ),
    "router frozen": (
        "at least one router is not trained: it was frozen, or LoRA leaves it out",
        "nothing, if that is meant; else add the router to what is trained",
    ),
    WRONG_SIGN: (
        "the bias of busy experts rises and that of idle ones falls, step after step: the update "
        "has the wrong sign",
        right_sign(),
    ),
    "few tokens": (
        "an expert can expect less than one token a step: single steps show nothing",
        "log sums over more steps, or read the trend only",
    ),
    "one rank": (
        "the counts are those of one rank, not of the whole batch",
        "sum tokens_per_expert over all ranks before it is written",
    ),
}
_INFO = ("few tokens", "one rank", "layers pooled", "bias not updated", "router frozen")
_FROM_STEPS = ("aux pooled", WRONG_SIGN)
_OF_TRANSFORMERS = "output_router_logits"


class Memory(msgspec.Struct):
    """The causes so far, and how long the auxiliary loss has looked pooled."""

    looked: bool = False
    """Whether the header was read and is unchanged."""
    causes: list[str] = []
    pooled_for: int = 0
    """Steps in a row."""
    pooled_at: int | None = None
    """Step from which it counts as pooled."""
    sign: SignMemory = msgspec.field(default_factory=SignMemory)


class Lint(Rule):
    """Reads the header; two settings show only in the steps."""

    name = "LINT"
    subject = "A setting to check"
    means = "A setting that is known to damage routers, whatever the load shows so far."
    formula = (
        f"from the header: {'; '.join(cause for cause in _TEXTS if cause not in _FROM_STEPS)}; "
        f"from the steps: {'; '.join(_FROM_STEPS)} (the bias of busy experts rises)"
    )
    in_warm_up = True
    judges_moment = True
    cause_rank = 130
    judges_settings = True
    remedy_by_cause = True

    def set_up(self) -> None:
        self.limits = self.context.limits.LINT
        self.sign = BiasSign(self.context)

    def start(self) -> None:
        self.memory: Memory = Memory()

    def restart(self, step: int) -> None:
        at = self.memory.pooled_at
        self.memory = Memory(
            pooled_at=at if at is not None and at < step else None,
            sign=again(self.memory.sign, step),
        )

    def change(self, context: Context) -> None:
        super().change(context)
        self.memory.looked = False
        if not self._may_pool():
            self.memory.pooled_for, self.memory.pooled_at = 0, None
        self.memory.sign = again(self.memory.sign, sys.maxsize) if self.sign.moves else SignMemory()

    def standing(self, view: StepView) -> Mapping[str, Severity] | None:
        memory = self.memory
        pooled = memory.pooled_at is None and bool(view.record.losses) and self._pools_now(view)
        turned = self.sign.observe(view, memory.sign)
        if memory.looked and not pooled and not turned:
            return None
        if pooled:
            memory.pooled_at = view.step
        if not memory.looked:
            memory.looked, memory.causes = True, list(self._settings(view))
        causes = list(memory.causes)
        if memory.pooled_at is not None:
            causes.append("aux pooled")
        if memory.sign.wrong_at is not None:
            causes.append(WRONG_SIGN)
        return {cause: Severity.INFO if cause in _INFO else Severity.WARN for cause in causes}

    def _settings(self, view: StepView) -> Iterator[str]:
        if self.context.trains:  # the settings of a finished model damage nothing any more
            yield from self._training_settings()
        if self.context.run.counts == "local_rank":
            yield "one rank"
        if (tokens := view.tokens) is not None and any(
            r.top_k and tokens * r.top_k < r.num_experts for r in self.routers
        ):
            yield "few tokens"

    def _training_settings(self) -> Iterator[str]:
        run, balance = self.context.run, self.context.run.balance
        chooses_one = any(r.top_k == 1 < r.num_experts for r in self.routers)
        # The top_k of top-1 counts describes the counting, not the routing.
        if run.norm_top_k and chooses_one and run.counts != "top1":
            yield "top-1 normalised"
        method, weight = balance.get("method"), balance.get("aux_weight")
        if method == "none" or (method == "aux" and weight == 0):
            yield "no balancing"
        if method == "aux" and balance.get(_OF_TRANSFORMERS) == 0:
            yield "aux not applied"
        if balance.get("pools_layers"):
            yield "layers pooled"
        if balance.get("updates_bias") == 0:
            yield "bias not updated"
        if balance.get("frozen_routers"):
            yield "router frozen"
        is_gpt_oss = "gpt-oss" in run.model_name.lower().replace("_", "-")
        if is_gpt_oss and isinstance(weight, int | float) and weight >= self.limits.aux_weight:
            yield "aux too strong"

    def _may_pool(self) -> bool:
        """Only Transformers is known to pool; elsewhere the floor is 1 per layer."""
        balance = self.context.run.balance
        return balance.get("method") == "aux" and balance.get(_OF_TRANSFORMERS) is not None

    def _pools_now(self, view: StepView) -> bool:
        """Whether it has looked pooled for long enough."""
        memory = self.memory
        memory.pooled_for = memory.pooled_for + 1 if self._looks_pooled(view) else 0
        return memory.pooled_for >= self.limits.persistence

    def _looks_pooled(self, view: StepView) -> bool:
        """Near its floor k, pooled over layers, while a layer by itself is far from even."""
        losses, effective = view.record.losses, view.signal("effective_experts")
        if not losses or effective is None or view.step <= self.context.warm_up:
            return False
        loss = next((losses[n] for n in ("aux", "aux_loss", "router_aux") if n in losses), None)
        top_k = {r.top_k for r in self.routers}
        if loss is None or len(top_k) != 1 or 0 in top_k or not self._may_pool():
            return False
        floor = float(max(top_k))
        return abs(loss - floor) <= self.limits.floor * floor and any(
            value < self.limits.uneven * router.num_experts
            for value, router in zip(effective.values, self.routers, strict=True)
        )

    @staticmethod
    def why(worst: Episode, run: RunRecord) -> str:
        return _TEXTS[str(worst.facts.get("cause"))][0]

    @staticmethod
    def remedy(worst: Episode, run: RunRecord) -> str:
        return _TEXTS[str(worst.facts.get("cause"))][1]
