"""LINT: settings that are known to damage a run, reported at the first step of each header.

Some show in the steps: a bias that a restart has lost, one that is still or moves while the routers
are frozen, an update with the wrong sign (``bias_sign``), an auxiliary loss that pools all layers.
"""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import msgspec
from msgspec.structs import replace

from microscope_tui.diagnosis.bias_sign import BiasSign, SignMemory
from microscope_tui.diagnosis.context import Context, Relation, RuleLimits
from microscope_tui.diagnosis.episodes import (
    WHOLE_RUN,
    Episode,
    Facts,
    Reading,
    Reason,
    Severity,
)
from microscope_tui.diagnosis.rules.base import (
    BACK,
    Rule,
    listed,
    number,
    place,
    setting,
)
from microscope_tui.diagnosis.rules.collapse import CollapseLimits
from microscope_tui.diagnosis.rules.meter import CONSTRUCTED
from microscope_tui.diagnosis.signals import StepView, Trail
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

_LOOKS = 100  # lines from one look at the bias to the next, which decodes a whole line
_EARLY = 40  # lines in which a bias is compared that may not move, or that of frozen routers
_LOST, _BACK = 0.1, 0.5  # of its span before
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

    relations = (
        Relation("floor", "<=", 1),
        Relation("sign_agreement", "<=", 1),
        Relation("uneven", "<=", 1),
    )


_Held = tuple[int, Reading]


class Bias(msgspec.Struct):
    """Of one router, the same from one line to another."""

    mark: int
    """Hash of the row."""
    since: int
    """Step of the first look that shows it …"""
    until: int
    """… and the last."""
    moved: bool
    """Whether it differs between experts."""
    same: int = 0
    """Lines in a row that show it; −1 if one does not."""
    uneven: int = 0
    """Lines in a row with an uneven load."""


class Memory(msgspec.Struct):
    looked: bool = False
    """Whether the header was read and is unchanged."""
    settings: list[_Held] = []
    """Faults of the header, which hold until it changes."""
    causes: list[_Held] | None = None
    """As last reported."""
    pooled_for: int = 0
    """Steps in a row; it stops where they are enough."""
    sign: SignMemory = msgspec.field(default_factory=SignMemory)
    still: int = 0
    """First lines without any gradient; −1 once there was one."""
    lines: int = 0
    """Lines so far."""
    spans: Trail = msgspec.field(default_factory=lambda: Trail(size=40))
    """Largest minus smallest bias, the mean of all routers."""
    resumed: int | None = None
    """Step of a restart after which no bias was seen yet."""
    lost: int | None = None
    """Step of the restart at which the bias was lost."""
    first_lost: int | None = None
    """The first of these steps."""
    biases: dict[int, Bias] = {}
    """Router → its bias at the latest looks."""
    held: dict[int, list[float]] = {}
    """Of frozen routers: the first bias of each, whether one has changed, and lines with counts."""
    moving: bool = False
    """Whether a bias moves although all routers are frozen."""
    counted: int = 0
    """Lines with counts, where all routers are frozen."""

    @property
    def standing(self) -> list[int]:
        """Routers whose bias did not move from look to look, or from the start."""
        return [r for r, b in self.biases.items() if b.until > b.since or not b.moved]


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
        trained, _ = run.training.get("routers", (1, 1))
        frozen = run.balance.get("frozen_routers") or 0 if trained else len(self.routers)
        self.frozen = frozen if self.context.trains else 0

    def restart(self, step: int) -> None:
        old = self.memory
        old.spans.forget_from(step)
        self.memory = replace(
            old,
            looked=False,
            causes=None,
            held={},
            counted=0,
            pooled_for=old.pooled_for if old.pooled_for >= self.limits.persistence else 0,
            sign=old.sign.resumed(step),
            still=max(0, old.still),
            resumed=step if old.spans.rows else None,
            lost=old.lost if old.lost is not None and old.lost < step else None,
        )

    def change(self, context: Context) -> None:
        super().change(context)
        memory = self.memory
        memory.looked = False
        memory.held = {}
        memory.counted = 0
        memory.sign = SignMemory(wrong=memory.sign.wrong)

    def events(self, view: StepView) -> Sequence[tuple[int, Reading]]:
        """A bias that was lost: an event, since the text needs what it was before."""
        memory, at = self.memory, self.memory.resumed
        memory.lines += 1
        due = memory.lines % _LOOKS == 20 or (at is not None and view.step < at + _LOOKS)
        rows = self._biases(view) if due and self.bias_moves else {}
        if not rows:
            return ()
        if memory.lines % _LOOKS == 20:
            self._compare(view.step, rows)
        span = sum(max(row) - min(row) for row in rows.values()) / len(rows)
        usual = memory.spans.rows[-1][0] if memory.spans.rows else 0.0
        memory.resumed = None
        if memory.lost is not None:
            once = memory.lost == memory.first_lost
            if span >= _BACK * usual and (once or at is not None):  # a restart has kept it
                memory.lost = None
        elif at is not None and span <= _LOST * usual > 0:
            memory.lost = at
            memory.first_lost = memory.first_lost or at
            ago = at - memory.first_lost
            facts: Facts = {"cause": Reason.BIAS_LOST, "at": at, "before": usual, "ago": ago}
            return [(WHOLE_RUN, Reading(Severity.WARN, facts=facts, since=at))]
        else:
            memory.spans.add(view.step, [span])
        return ()

    def _biases(self, view: StepView) -> dict[int, list[float]]:
        return {i: row for i in range(len(self.routers)) if (row := view.biases(i))}

    def _compare(self, step: int, rows: Mapping[int, list[float]]) -> None:
        biases = self.memory.biases
        for index, row in rows.items():
            last = biases.get(index)
            if last is not None and last.mark == hash(tuple(row)):
                last.until = step
            else:
                biases[index] = Bias(hash(tuple(row)), step, step, max(row) > min(row))

    def doubted(self) -> Sequence[int]:
        return self.memory.sign.suspects(self.sign.agreement) if self.bias_moves else ()

    def held_causes(self, view: StepView) -> Sequence[_Held] | None:
        memory = self.memory
        self._see_gradients(view)
        self._see_bias(view)
        if self.bias_moves:
            self.sign.observe(view, memory.sign)
        if memory.pooled_for < self.limits.persistence:
            pooled = self.pools and self._hides_a_layer(view)
            memory.pooled_for = memory.pooled_for + 1 if pooled else 0
        if not memory.looked:
            memory.looked = True
            memory.settings = [self._of_run(cause) for cause in self._settings(view)]
        causes = [*memory.settings, *self._seen_in_steps(view)]
        if causes == memory.causes:
            return None
        memory.causes = causes
        return causes

    def _of_run(self, cause: Reason) -> _Held:
        useless = cause == Reason.AUX_NOT_APPLIED and not self._trains_routers
        severity = Severity.INFO if useless or cause in _INFO else Severity.WARN
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
        if memory.lost is not None:
            yield self._of_run(Reason.BIAS_LOST)
        if memory.moving and self.frozen >= len(self.routers):
            yield self._of_run(Reason.BIAS_MOVES)

    def _standing(self, view: StepView) -> Iterator[_Held]:
        """A bias that moves to and fro can be the same at two looks: the next lines decide."""
        memory, index = self.memory, view.collapse_index
        standing = memory.standing
        for router in standing:
            bias = memory.biases[router]
            uneven = index is not None and index.values[router] < self.limits.sign_uneven
            bias.uneven = bias.uneven + 1 if uneven else 0
            if 0 <= bias.same < _EARLY and (row := view.biases(router)):
                bias.same = bias.same + 1 if hash(tuple(row)) == bias.mark else -1
                bias.until = view.step
        found = tuple(r for r in standing if memory.biases[r].same >= _EARLY)
        for router in found:
            bias = memory.biases[router]
            warns = bias.uneven >= self.lines(self.limits.sign_changes)
            severity = Severity.WARN if warns else Severity.INFO
            facts: Facts = {"cause": Reason.BIAS_STANDS, "routers": found}
            steps = float(bias.until - bias.since)
            facts = {**facts, "steps": steps, "moved": float(bias.moved)}
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
        return uneven and (at_floor or self._cancels_out(view))

    def _cancels_out(self, view: StepView) -> bool:
        """The sum of all layers is far more even than independent layers make it."""
        rows = [view.full_counts(index) or [] for index in range(len(self.routers))]
        if not all(map(any, rows)) or len(set(map(len, rows))) > 1:
            return False
        total = [sum(column) for column in zip(*rows, strict=True)]
        squares = [len(row) * sum(n * n for n in row) / sum(row) ** 2 for row in (total, *rows)]
        by_chance = (fmean(squares[1:]) - 1.0) / len(rows)
        return len(total) >= 8 and squares[0] - 1.0 < self.limits.cancelled * by_chance

    def _see_gradients(self, view: StepView) -> None:
        """In a fine-tuning, routers without any gradient from the first line are frozen."""
        memory, run = self.memory, self.context.run
        tuned = run.profile == "finetune" and "routers" not in run.training
        gradients = view.signal("grad_norm") if tuned and memory.still >= 0 else None
        if gradients is None:
            return
        still = memory.still + 1 if gradients.known and not any(gradients.values) else -1
        memory.looked = memory.looked and still != _STILL and not (still < 0 < memory.still)
        memory.still = still

    def _see_bias(self, view: StepView) -> None:
        """Whether it moves with frozen routers; the first lines since a start decide."""
        memory = self.memory
        if self.frozen < len(self.routers) or not view.has_counts:
            return
        memory.counted += 1
        if memory.counted <= _EARLY or memory.counted % _LOOKS == 0:
            moved = [memory.held.setdefault(i, r) != r for i, r in self._biases(view).items()]
            memory.moving = any(moved) or (memory.moving and memory.counted < _EARLY)

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
    def _trains_routers(self) -> bool:
        return self.frozen < len(self.routers) and self.memory.still <= 0

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
        why, remedy = _NO_AUX if no_setting else _TEXTS[cause]
        if cause == Reason.AUX_NOT_APPLIED and worst.severity is Severity.INFO:
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
