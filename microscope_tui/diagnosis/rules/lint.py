"""LINT: settings that are known to damage a run, reported at the first step of each header.

What the header shows is found here. What only the steps show (``_FROM_STEPS``) is found by
``lint_steps`` and, if an update has the wrong sign, by ``bias_sign``.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from microscope_tui.diagnosis.bias_sign import BiasSign, SignMemory
from microscope_tui.diagnosis.context import AtMost, Context, RuleLimits
from microscope_tui.diagnosis.episodes import WHOLE_RUN, Episode, Facts, Reading, Reason, Severity
from microscope_tui.diagnosis.lint_steps import (
    LOOKS,
    FrozenBias,
    LostBias,
    StandingBias,
    cancel_out,
)
from microscope_tui.diagnosis.rules.base import BACK, Rule, listed, number, place, setting
from microscope_tui.diagnosis.rules.collapse import CollapseLimits
from microscope_tui.diagnosis.rules.meter import CONSTRUCTED
from microscope_tui.diagnosis.signals import StepView
from microscope_tui.runlog import RunRecord

_TEXTS = {
    Reason.TOP1_NORMALISED: (
        "with top_k 1 the normalised weight is always 1, so the loss sends the router no gradient",
        "set norm_top_k (norm_topk_prob) to false",
    ),
    Reason.NO_BALANCING: (
        "the header names no load balancing: no bias update, no auxiliary loss",
        "switch on load balancing: bias updates, or an auxiliary loss per layer",
    ),
    Reason.AUX_NOT_APPLIED: (
        "an auxiliary loss is configured, but {output_router_logits} is off or ignored: the model "
        "adds none",
        "set {output_router_logits} to true; if it is, the forward of the model ignores it",
    ),
    Reason.AUX_POOLED: (
        "layers are uneven while their sum is even: the auxiliary loss pools all layers first",
        "compute the auxiliary loss per layer",
    ),
    Reason.AUX_TOO_STRONG: (
        "gpt-oss ships with an auxiliary weight of 0.9, made for its own training",
        "lower router_aux_loss_coef to 1e-5 or so",
    ),
    Reason.LAYERS_POOLED: (
        "transformers computes one auxiliary loss over all layers: layers that are uneven in "
        "different ways cancel out",
        "add an auxiliary loss per layer",
    ),
    Reason.BIAS_NOT_UPDATED: (
        "the routers have a selection bias, and transformers never updates it",
        "update it after every step, if your training code does not do so already",
    ),
    Reason.ROUTER_FROZEN: (
        "at least one router is not trained: it was frozen, or LoRA leaves it out",
        "nothing, if this is intended; otherwise add the router to the trained modules",
    ),
    Reason.BIAS_LOST: (
        "the selection bias is 0 since the restart at step {at:,.0f}, before it spanned "
        "{before:.2g}: the checkpoint does not hold it",
        f"load the bias with the weights (it is a buffer, not a parameter), and {BACK}",
    ),
    Reason.BIAS_STANDS: (
        "the selection bias did not change in {steps:,.0f} steps although the rate is {rate:g}: "
        "the update is not called, or overwritten",
        "call the bias update after the optimizer's step",
    ),
    Reason.BY_CONSTRUCTION: (
        "the method makes every load even, whatever the router learns: load shows nothing here",
        "watch drops, entropy and gradients",
    ),
    Reason.WRONG_SIGN: (
        "the bias of busy experts rises and that of idle ones falls, step after step: the update "
        "has the wrong sign",
        "flip the sign of the bias update{in}: busy experts must lose bias and idle ones gain it "
        "(a higher rate makes it worse)",
    ),
    Reason.MISSING_TARGETS: (
        "an adapter configuration names modules that the model does not have: {missing}",
        "set target_modules, and target_parameters for experts, to names of the model",
    ),
    Reason.ADAPTERS_MISS_EXPERTS: (
        "adapters train other modules, and all experts are frozen",
        "nothing, if this is intended; otherwise target the parameters of the experts",
    ),
    Reason.AUX_IGNORED: (
        "{trainer_aux_weight} is {coefficient:g} in the arguments of the trainer, but the model "
        "adds no auxiliary loss: it reads {aux_weight} and {output_router_logits} of its own "
        "configuration",
        "set {aux_weight}, and {output_router_logits} to true, in the configuration of the model; "
        "if they are set, the forward of the model ignores them",
    ),
    Reason.BIAS_MOVES: (
        "every router is frozen, but its selection bias changes, and with it the choice of "
        "experts; a saved adapter does not hold the bias",
        "stop the bias update, or save the bias too",
    ),
    Reason.FEW_TOKENS: (
        "an expert can expect less than one token a step: single steps show nothing",
        "log sums over more steps, or read the trend only",
    ),
    Reason.ONE_RANK: (
        "the counts are those of one rank, not of the whole batch",
        "sum tokens_per_expert over all ranks before it is written",
    ),
}
_NO_AUX = (
    "{trainer_aux_weight} is {coefficient:g} in the arguments of the trainer, but the model has no "
    "auxiliary loss",
    "set it to 0, or add an auxiliary loss in the training code",
)
_LOST_AGAIN = (
    "the restart at step {at:,.0f} lost the selection bias again, as the one at {first:,.0f} did",
    "save the bias with the model, and load it: it is a buffer, not a parameter",
)
_INFO = (
    Reason.ADAPTERS_MISS_EXPERTS,
    Reason.BIAS_NOT_UPDATED,
    Reason.BY_CONSTRUCTION,
    Reason.FEW_TOKENS,
    Reason.LAYERS_POOLED,
    Reason.ONE_RANK,
    Reason.ROUTER_FROZEN,
)
_FROM_STEPS = (
    Reason.AUX_POOLED, Reason.BIAS_LOST, Reason.BIAS_MOVES, Reason.BIAS_STANDS, Reason.WRONG_SIGN
)  # fmt: skip
_OF_TRANSFORMERS = "output_router_logits"
_OF_TRAINER = "trainer_aux_weight"
_AUX = ("aux", "aux_loss", "router_aux")

_STILL = 5  # lines without any gradient, after which the routers are frozen


class LintLimits(RuleLimits, frozen=True):
    """Settings that are known to damage a run, read from its header or visible in its steps."""

    floor: float = 0.05
    """An auxiliary loss within this share of its floor k indicates even load …"""
    uneven: float = 0.5
    """… while a layer uses less than this share of its experts …"""
    persistence: int = 25
    """… for this many steps: a loss that is summed layer by layer only passes through k."""
    cancelled: float = 0.1
    """Layers cancel out where the load of their sum varies by less than this share of what layers
    that know nothing of each other leave (chance 0.002 with 8 experts, less with more)."""
    aux_weight: float = 0.5
    """gpt-oss ships with 0.9, made for its own training; public recipes fine-tune at 1e-5."""
    sign_uneven: float = 0.85
    """c below which the change of the bias is compared with the load …"""
    sign_changes: int = 100
    """… for this many changes (or steps, where none changes: with an even load, the rate may be 0
    by now); a critically collapsed router needs a third of them …"""
    sign_agreement: float = 0.9
    """… and this much of the load agrees with the change: 1 if every busy expert gains bias."""

    relations = (AtMost("floor", 1), AtMost("sign_agreement", 1), AtMost("uneven", 1))


_Held = tuple[int, Reading]


class Memory(msgspec.Struct):
    looked: bool = False
    """Whether the header was read and is unchanged."""
    settings: list[_Held] = []
    """Faults of the header, which hold until it changes."""
    causes: list[_Held] | None = None
    """As last reported."""
    lines: int = 0
    """Lines so far."""
    still: int = 0
    """First lines without any gradient; −1 once there was one."""
    pooled_for: int = 0
    """Steps in a row; it stops where they are enough."""
    sign: SignMemory = msgspec.field(default_factory=SignMemory)
    lost: LostBias = msgspec.field(default_factory=LostBias)
    standing: StandingBias = msgspec.field(default_factory=StandingBias)
    frozen: FrozenBias = msgspec.field(default_factory=FrozenBias)


class Lint(Rule[LintLimits, Memory]):
    name = "LINT"
    subject = "A setting to check"
    means = "A setting that is known to damage routers, even if the load still looks healthy."
    formula = (
        f"from the header: {'; '.join(cause for cause in _TEXTS if cause not in _FROM_STEPS)}; "
        f"from the steps: {'; '.join(_FROM_STEPS)} (the bias of busy experts rises)"
    )
    in_warm_up = True
    judges_one_step = True
    turn = 20
    cause_rank = 130
    judges_settings = True
    remedy_by_cause = True

    def set_up(self) -> None:
        limits, run = self.limits, self.context.run
        critical = self.context.limits.of(CollapseLimits).critical
        several = len(self.routers) > 1
        self.sign = BiasSign(
            limits.sign_uneven, limits.sign_changes, limits.sign_agreement, critical, several
        )
        self.bias_moves = (
            self.context.trains
            and run.balance.get("method") not in ("aux", "none")
            and run.balance.get("bias_update_rate") != 0
        )
        """Whether there is a bias with an update rate."""
        held = "force_collapse" in run.balance  # the bias of one router
        self.has_rate = not held and isinstance(run.balance.get("bias_update_rate"), int | float)
        choices, method = {router.top_k for router in self.routers}, run.balance.get("method")
        self.pools = method == "aux" and len(choices) == 1 and choices != {0}
        """Whether the auxiliary loss may pool all layers. It has one floor in Transformers."""
        self.frozen = 0
        """How many routers do not train."""
        if self.context.trains:
            trained, _ = run.training.get("routers", (1, 1))
            self.frozen = run.balance.get("frozen_routers") or 0
            if not trained:
                self.frozen = len(self.routers)

    def restart(self, step: int) -> None:
        memory = self.memory
        memory.looked = False
        memory.causes = None
        memory.still = max(0, memory.still)
        memory.sign = memory.sign.resumed(step)
        memory.lost.restart(step)
        memory.frozen.restart()
        if memory.pooled_for < self.limits.persistence:
            memory.pooled_for = 0

    def change(self, context: Context) -> None:
        super().change(context)
        memory = self.memory
        memory.looked = False
        memory.frozen.restart()
        memory.sign = SignMemory(wrong=memory.sign.wrong)

    def events(self, view: StepView) -> Sequence[tuple[int, Reading]]:
        """A bias that was lost: an event, since the text needs what it was before."""
        memory = self.memory
        memory.lines += 1
        due = memory.lines % LOOKS == 20
        if not self.bias_moves or not (due or memory.lost.is_due(view.step)):
            return ()
        rows = view.all_biases()
        if not rows:
            return ()
        if due:
            memory.standing.look(view.step, rows)
        facts = memory.lost.see(view.step, rows)
        if not facts:
            return ()
        return [(WHOLE_RUN, Reading(Severity.WARN, facts=facts, since=memory.lost.lost))]

    def doubted(self) -> Sequence[int]:
        if not self.bias_moves:
            return ()
        return self.memory.sign.suspects(self.sign.agreement)

    def held_causes(self, view: StepView) -> Sequence[_Held] | None:
        memory = self.memory
        self._see_gradients(view)
        if self._all_frozen:
            memory.frozen.see(view)
        if self.bias_moves:
            self.sign.observe(view, memory.sign)
        if memory.pooled_for < self.limits.persistence:
            pooled = self.pools and self._hides_a_layer(view)
            memory.pooled_for += 1
            if not pooled:
                memory.pooled_for = 0
        if not memory.looked:
            memory.looked = True
            memory.settings = [self._of_run(cause) for cause in self._settings(view)]
        causes = [*memory.settings, *self._seen_in_steps(view)]
        if causes == memory.causes:
            return None
        memory.causes = causes
        return causes

    def _of_run(self, cause: Reason) -> _Held:
        severity = Severity.WARN
        if cause in _INFO or (cause == Reason.AUX_NOT_APPLIED and not self._trains_routers):
            severity = Severity.INFO
        return WHOLE_RUN, Reading(severity, facts={"cause": cause})

    def _seen_in_steps(self, view: StepView) -> Iterator[_Held]:
        memory = self.memory
        if self.pools and memory.pooled_for >= self.limits.persistence:
            yield self._of_run(Reason.AUX_POOLED)
        if self.bias_moves and memory.sign.wrong:
            routers = tuple(sorted(memory.sign.wrong))
            facts: Facts = {"cause": Reason.WRONG_SIGN, "routers": routers}
            yield from ((router, Reading(Severity.WARN, facts=facts)) for router in routers)
        if self.bias_moves and self.has_rate:
            yield from self._standing(view)
        if memory.lost.lost is not None:
            yield self._of_run(Reason.BIAS_LOST)
        if memory.frozen.moves and self._all_frozen:
            yield self._of_run(Reason.BIAS_MOVES)

    def _standing(self, view: StepView) -> Iterator[_Held]:
        limits = self.limits
        found = self.memory.standing.see(view, view.collapse_index, limits.sign_uneven)
        for router, bias in found.items():
            severity = Severity.INFO
            if bias.uneven >= self.lines(limits.sign_changes):
                severity = Severity.WARN
            facts: Facts = {
                "cause": Reason.BIAS_STANDS,
                "routers": tuple(found),
                "steps": float(bias.until - bias.since),
                "moved": float(bias.moved),
            }
            yield router, Reading(severity, facts=facts, since=bias.since)

    def _hides_a_layer(self, view: StepView) -> bool:
        """Whether the loss is near its floor k while a layer by itself is far from even."""
        losses, effective = view.record.losses or {}, view.signal("effective_experts")
        loss = next((losses[name] for name in _AUX if name in losses), None)
        if effective is None or view.step <= self.context.warm_up:
            return False
        limits, floor = self.limits, self.routers[0].top_k
        pools = self.context.run.balance.get(_OF_TRANSFORMERS) is not None
        at_floor = pools and loss is not None and abs(loss - floor) <= limits.floor * floor
        due = self.memory.pooled_for > 0 or self.memory.lines % limits.persistence == 0
        if not (at_floor or due):
            return False
        pairs = zip(effective.values, self.routers, strict=True)
        uneven = any(used < limits.uneven * router.num_experts for used, router in pairs)
        return uneven and (at_floor or cancel_out(view, self.routers, limits.cancelled))

    def _see_gradients(self, view: StepView) -> None:
        """In a fine-tuning, routers without any gradient from the first line are frozen."""
        memory, run = self.memory, self.context.run
        tuned = run.profile == "finetune" and "routers" not in run.training
        if not tuned or memory.still < 0:
            return
        gradients = view.signal("grad_norm")
        if gradients is None:
            return
        before = memory.still
        memory.still += 1
        if not gradients.known or any(gradients.values):
            memory.still = -1
        if memory.still == _STILL or memory.still < 0 < before:
            memory.looked = False  # routers that seemed to train are frozen, or the reverse

    def _settings(self, view: StepView) -> Iterator[Reason]:
        run = self.context.run
        if self.context.trains:  # the settings of a finished model no longer matter
            # The top_k of top-1 counts describes the counting, not the routing.
            chooses_one = any(r.top_k == 1 < r.num_experts for r in self.routers)
            normalised = run.norm_top_k and chooses_one and run.counts != "top1"
            if normalised:
                yield Reason.TOP1_NORMALISED
            yield from self._balancing()
            if self.frozen or (self.memory.still >= _STILL and not normalised):
                yield Reason.ROUTER_FROZEN
            yield from self._adapters()
            yield from self._auxiliary_weights()
        if run.counts == "local_rank":
            yield Reason.ONE_RANK
        tokens = view.tokens
        if tokens is not None and any(
            r.top_k and tokens * r.top_k < r.num_experts for r in self.routers
        ):
            yield Reason.FEW_TOKENS

    @property
    def _all_frozen(self) -> bool:
        return self.frozen >= len(self.routers)

    @property
    def _trains_routers(self) -> bool:
        return not self._all_frozen and self.memory.still <= 0

    def _balancing(self) -> Iterator[Reason]:
        balance = self.context.run.balance
        method = balance.get("method")
        unbalanced = method == "none" or (method == "aux" and balance.get("aux_weight") == 0)
        if unbalanced and self._trains_routers:
            yield Reason.NO_BALANCING
        if method in CONSTRUCTED:
            yield Reason.BY_CONSTRUCTION
        if method == "aux" and balance.get(_OF_TRANSFORMERS) == 0 and not _is_ignored(balance):
            yield Reason.AUX_NOT_APPLIED
        if balance.get("pools_layers"):
            yield Reason.LAYERS_POOLED
        if balance.get("updates_bias") == 0:
            yield Reason.BIAS_NOT_UPDATED

    def _adapters(self) -> Iterator[Reason]:
        training = self.context.run.training
        adapters = training.get("adapters", {})
        tuned, experts = training.get("experts", (0, 0))
        if any(adapters.values()) and adapters.get("experts") == tuned == 0 < experts:
            yield Reason.ADAPTERS_MISS_EXPERTS
        if training.get("missing_targets"):
            yield Reason.MISSING_TARGETS

    def _auxiliary_weights(self) -> Iterator[Reason]:
        run = self.context.run
        if _is_ignored(run.balance):
            yield Reason.AUX_IGNORED
        is_gpt_oss = "gpt-oss" in run.model_name.lower().replace("_", "-")
        weight = run.balance.get("aux_weight")
        if is_gpt_oss and isinstance(weight, int | float) and weight >= self.limits.aux_weight:
            yield Reason.AUX_TOO_STRONG

    @staticmethod
    def words(worst: Episode, run: RunRecord) -> tuple[str, str]:
        cause = Reason(str(worst.reason))
        own = setting(run, "aux_weight")
        no_setting = cause == Reason.AUX_IGNORED and own == "aux_weight"
        why, remedy = _TEXTS[cause]
        if no_setting:
            why, remedy = _NO_AUX
        elif cause == Reason.AUX_NOT_APPLIED and worst.severity is Severity.INFO:
            why += "; no router trains: it could act only through the adapters before the router"
            remedy = f"nothing, if this is intended; otherwise {remedy}"
        elif number(worst, "ago"):
            why, remedy = _LOST_AGAIN
        elif number(worst, "moved"):
            why += ", or it is held in bf16, where {rate:g} is lost, or the rate is 0 by now"
            remedy += ", and hold the bias in fp32, not in bf16"
        known: dict[str, Any] = {name: number(worst, name) for name in ("at", "before", "steps")}
        known["first"] = known["at"] - number(worst, "ago")
        known["in"] = place(worst, run)
        known["rate"] = run.balance.get("bias_update_rate")
        for name in (_OF_TRANSFORMERS, _OF_TRAINER, "aux_weight"):
            known[name] = setting(run, name)
        known["missing"] = listed(run.training.get("missing_targets", ()))
        known["coefficient"] = run.balance.get(_OF_TRAINER, 0.0)
        return why.format(**known), remedy.format(**known)


def _is_ignored(balance: Mapping[str, Any]) -> bool:
    return (balance.get(_OF_TRAINER) or 0) > 0
