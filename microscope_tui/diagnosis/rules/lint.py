"""LINT: settings that are known to damage a run, reported at the first step of each header.

Some show in the steps: a bias that a restart has lost, and one whose update has the wrong sign. A
busy expert must lose bias, an idle one gain it. Where the load of a router is uneven, the change of
every expert's bias from line to line is compared with its load: a trial. Writers log the bias that
a step was routed with or the one after its update, so the change must agree with the load at both
of its ends; where the load swings, it disagrees with one of them. A bias that moves back and forth
is not evidence: counts that are logged only sometimes can show a swing in reverse. Each router has
one trial per start of a run.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from microscope_tui.diagnosis.context import Context, RuleLimits
from microscope_tui.diagnosis.episodes import WHOLE_RUN, Episode, Facts, Reading, Severity
from microscope_tui.diagnosis.rules.base import BACK, RIGHT_SIGN, WRONG_SIGN, Rule, number, setting
from microscope_tui.diagnosis.rules.collapse import CollapseLimits
from microscope_tui.diagnosis.rules.meter import CONSTRUCTED
from microscope_tui.diagnosis.signals import StepView, Trail
from microscope_tui.runlog import RunRecord

BIAS_LOST, BY_CONSTRUCTION = "bias lost", "balanced by construction"
MOVING = "bias moves, router frozen"
_TEXTS = {
    "top-1 normalised": (
        "with top_k 1 the normalised weight is always 1, so the loss sends the router no gradient",
        "set norm_top_k (norm_topk_prob) to false",
    ),
    "no balancing": (
        "the header names no load balancing: no bias update, no auxiliary loss",
        "switch on load balancing: bias updates, or an auxiliary loss per layer",
    ),
    "aux not applied": (
        "an auxiliary loss is configured, but {output_router_logits} is off or ignored: the model "
        "adds none",
        "set {output_router_logits} to true; if it is, the forward of the model ignores it",
    ),
    "aux pooled": (
        "the auxiliary loss is at its floor while layers are uneven: it pools all layers first",
        "compute the auxiliary loss per layer",
    ),
    "aux too strong": (
        "gpt-oss ships with an auxiliary weight of 0.9, made for its own training",
        "lower router_aux_loss_coef to 1e-5 or so",
    ),
    "layers pooled": (
        "transformers computes one auxiliary loss over all layers: layers that are uneven in "
        "different ways cancel out",
        "add an auxiliary loss per layer",
    ),
    "bias not updated": (
        "the routers have a selection bias, and transformers never updates it",
        "update it after every step, if your training code does not do so already",
    ),
    "router frozen": (
        "at least one router is not trained: it was frozen, or LoRA leaves it out",
        "nothing, if this is intended; otherwise add the router to the trained modules",
    ),
    BIAS_LOST: (
        "the selection bias is 0 since the restart at step {at:,.0f}, before it spanned "
        "{before:.2g}: the checkpoint does not hold it",
        f"load the bias with the weights (it is a buffer, not a parameter), and {BACK}",
    ),
    BY_CONSTRUCTION: (
        "the method makes every load even, whatever the router learns: load shows nothing here",
        "watch drops, entropy and gradients",
    ),
    WRONG_SIGN: (
        "the bias of busy experts rises and that of idle ones falls, step after step: the update "
        "has the wrong sign",
        RIGHT_SIGN,
    ),
    "missing targets": (
        "an adapter configuration names modules that the model does not have: {missing}",
        "set target_modules, and target_parameters for experts, to names of the model",
    ),
    "adapters miss experts": (
        "adapters train other modules, and all experts are frozen",
        "nothing, if this is intended; otherwise target the parameters of the experts",
    ),
    "trainer aux ignored": (
        "{trainer_aux_weight} is {coefficient:g} in the arguments of the trainer, but the model "
        "adds no auxiliary loss: it reads {aux_weight} and {output_router_logits} of its own "
        "configuration",
        "set {aux_weight}, and {output_router_logits} to true, in the configuration of the model; "
        "if they are set, the forward of the model ignores them",
    ),
    MOVING: (
        "every router is frozen, but its selection bias changes, and with it the choice of "
        "experts; a saved adapter does not hold the bias",
        "stop the bias update, or save the bias too",
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
_NO_AUX = (
    "{trainer_aux_weight} is {coefficient:g} in the arguments of the trainer, but the model has no "
    "auxiliary loss",
    "set it to 0, or add an auxiliary loss in the training code",
)
_INFO = (
    "few tokens", "one rank", "layers pooled", "bias not updated", "router frozen", BY_CONSTRUCTION,
    "adapters miss experts",
)  # fmt: skip
_FROM_STEPS = ("aux pooled", BIAS_LOST, MOVING, WRONG_SIGN)
_OF_TRANSFORMERS, _OF_TRAINER = "output_router_logits", "trainer_aux_weight"

_MOST = 8  # routers on trial at the same time
_BLIND = 64  # lines with counts and without a bias, after which none is expected
_FIRST = 16  # changes whose load is compared with the latest
_GROWN = 1.2  # a wrong sign makes the load less even: its variance grows by this factor
_WEAK = 0.5  # agreement with the load at the other end of the change, which is noisier
_DIRECTED = 0.6  # share of the path of the bias that leads away from its start
_FEW = 32  # changes that are enough where the router is critically collapsed
_RIGHT_AFTER = 40  # changes that show that the sign is right
_LOOKS = 100  # lines from one look at the span of the bias to the next, which decodes a whole line
_EARLY = 40  # first lines with counts, in each of which the bias of frozen routers is compared
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
    aux_weight: float = 0.5
    """gpt-oss ships with 0.9, made for its own training; public recipes fine-tune at 1e-5."""
    sign_uneven: float = 0.85
    """c below which the change of the bias is compared with the load …"""
    sign_changes: int = 100
    """… for this many changes; a critically collapsed router needs a third of them …"""
    sign_agreement: float = 0.9
    """… and this much of the load agrees with the change: 1 if every busy expert gains bias."""

    relations = "floor <= 1, sign_agreement <= 1, uneven <= 1"


class Trial(msgspec.Struct):
    """One router whose bias is compared with its load."""

    first: list[float]
    """Bias at the start of the trial."""
    bias: list[float]
    load: list[float]
    """Counts minus their mean, of the latest line."""
    changes: int = 0
    agreed: list[float] = msgspec.field(default_factory=lambda: [0.0, 0.0])
    """Load of the experts whose bias rose minus that of those whose bias fell, at both ends …"""
    total: list[float] = msgspec.field(default_factory=lambda: [0.0, 0.0])
    """… and the sum of the absolute loads."""
    path: float = 0.0
    early: float = 0.0
    lately: float = 0.0
    """Relative variance of the load, at the beginning and now."""


class SignMemory(msgspec.Struct):
    """Routers on trial, and the outcomes: 1 wrong, 0 undecided, −1 right."""

    trials: dict[int, Trial] = {}
    outcomes: dict[int, int] = {}
    blind: int = 0
    wrong_at: int | None = None
    """Step from which the sign counts as wrong."""


class Memory(msgspec.Struct):
    """The causes so far, and how long the auxiliary loss has looked pooled."""

    looked: bool = False
    """Whether the header was read and is unchanged."""
    settings: list[str] = []
    causes: list[str] | None = None
    """As last reported."""
    pooled_for: int = 0
    """Steps in a row; it stops where they are enough."""
    sign: SignMemory = msgspec.field(default_factory=SignMemory)
    still: int = 0
    """Lines without a gradient of any router, from the first; −1 once there was one."""
    lines: int = 0
    spans: Trail = msgspec.field(default_factory=lambda: Trail(size=40))
    """Largest minus smallest bias, the mean of all routers: every hundred lines."""
    resumed: int | None = None
    """Step of a restart after which no bias was seen yet."""
    lost: int | None = None
    """Step of the restart at which the bias was lost."""
    held: dict[int, list[float]] = {}
    """Of frozen routers: the first bias of each, whether one has changed, and lines with counts."""
    moving: bool = False
    counted: int = 0


class Lint(Rule[LintLimits, Memory]):
    """Reads the header; some settings show only in the steps."""

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
        self.sign = BiasSign(self.context)
        top_k, balance = {r.top_k for r in self.routers}, self.context.run.balance
        # Only Transformers is known to pool; elsewhere the floor is 1 per layer.
        pools = balance.get("method") == "aux" and balance.get(_OF_TRANSFORMERS) is not None
        self.floor = float(max(top_k)) if pools and len(top_k) == 1 else 0.0
        """Of an auxiliary loss that pools all layers; 0: it does not."""
        trained, _ = self.context.run.training.get("routers", (1, 1))
        frozen = balance.get("frozen_routers") or 0 if trained else len(self.routers)
        self.frozen = frozen if self.context.trains else 0

    def restart(self, step: int) -> None:
        old = self.memory
        old.spans.forget_from(step)
        self.memory = Memory(
            pooled_for=old.pooled_for if old.pooled_for >= self.limits.persistence else 0,
            sign=again(old.sign, step),
            still=max(0, old.still),
            lines=old.lines,
            spans=old.spans,
            resumed=step if old.spans.rows else None,
            lost=_before(step, old.lost),
            moving=old.moving,
        )

    def change(self, context: Context) -> None:
        super().change(context)
        self.memory.looked, self.memory.held, self.memory.counted = False, {}, 0
        self.memory.sign = SignMemory(wrong_at=self.memory.sign.wrong_at)

    def events(self, view: StepView) -> Sequence[tuple[int, Reading]]:
        """The bias is zero since a restart: an event, since the text needs what it was before."""
        memory, at = self.memory, self.memory.resumed
        memory.lines += 1
        due = memory.lines % _LOOKS == 20 or (at is not None and view.step < at + _LOOKS)
        rows = map(view.biases, range(len(self.routers)))
        spans = [max(r) - min(r) for r in rows if r] if due and self.sign.moves else []
        if not spans:
            return ()
        span = sum(spans) / len(spans)
        before = memory.spans.rows[-1][0] if memory.spans.rows else 0.0
        memory.resumed = None
        if memory.lost is not None:
            memory.lost = memory.lost if span < _BACK * before else None
        elif at is not None and span <= _LOST * before > 0:
            memory.lost = at
            facts: Facts = {"cause": BIAS_LOST, "at": at, "before": before}
            return [(WHOLE_RUN, Reading(Severity.WARN, facts=facts, since=at))]
        else:
            memory.spans.add(view.step, [span])
        return ()

    def whole_run_causes(self, view: StepView) -> Mapping[str, Severity] | None:
        memory = self.memory
        self._see_gradients(view)
        self._see_bias(view)
        self.sign.observe(view, memory.sign)
        if memory.pooled_for < self.limits.persistence:
            pooled = self.floor and self._looks_pooled(view)
            memory.pooled_for = memory.pooled_for + 1 if pooled else 0
        if not memory.looked:
            memory.looked, memory.settings = True, list(self._settings(view))
        of_steps = (
            "aux pooled" if self.floor and memory.pooled_for >= self.limits.persistence else "",
            WRONG_SIGN if self.sign.moves and memory.sign.wrong_at is not None else "",
            BIAS_LOST if memory.lost is not None else "",
            MOVING if memory.moving and self.frozen >= len(self.routers) else "",
        )
        causes = [*memory.settings, *filter(None, of_steps)]
        if causes == memory.causes:
            return None
        memory.causes = causes
        return {cause: Severity.INFO if cause in _INFO else Severity.WARN for cause in causes}

    def _see_gradients(self, view: StepView) -> None:
        """In a fine-tuning, routers whose gradient is exactly 0 from the first line are frozen."""
        memory, run = self.memory, self.context.run
        tuned = run.profile == "finetune" and "routers" not in run.training
        gradients = view.signal("grad_norm") if tuned and memory.still >= 0 else None
        if gradients is None:
            return
        still = memory.still + 1 if gradients.known and not any(gradients.values) else -1
        memory.looked = memory.looked and still != _STILL and not (still < 0 < memory.still)
        memory.still = still

    def _see_bias(self, view: StepView) -> None:
        """Whether it moves while every router is frozen; the first lines since a start decide."""
        memory = self.memory
        if self.frozen < len(self.routers) or not view.has_counts:
            return
        memory.counted += 1
        if memory.counted <= _EARLY or memory.counted % _LOOKS == 0:
            rows = {i: row for i in range(len(self.routers)) if (row := view.biases(i))}
            moved = [memory.held.setdefault(i, row) != row for i, row in rows.items()]
            memory.moving = any(moved) or (memory.moving and memory.counted < _EARLY)

    def _settings(self, view: StepView) -> Iterator[str]:
        if self.context.trains:  # the settings of a finished model no longer matter
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
        normalised = run.norm_top_k and chooses_one and run.counts != "top1"
        if normalised:
            yield "top-1 normalised"
        method, weight = balance.get("method"), balance.get("aux_weight")
        frozen, training = self.frozen, run.training
        unbalanced = method == "none" or (method == "aux" and weight == 0)
        if unbalanced and frozen < len(self.routers) and self.memory.still <= 0:
            yield "no balancing"
        if method in CONSTRUCTED:
            yield BY_CONSTRUCTION
        ignored = (balance.get(_OF_TRAINER) or 0) > 0
        if method == "aux" and balance.get(_OF_TRANSFORMERS) == 0 and not ignored:
            yield "aux not applied"
        if balance.get("pools_layers"):
            yield "layers pooled"
        if balance.get("updates_bias") == 0:
            yield "bias not updated"
        if frozen or (self.memory.still >= _STILL and not normalised):
            yield "router frozen"
        adapters, (tuned, experts) = training.get("adapters", {}), training.get("experts", (0, 0))
        if any(adapters.values()) and adapters.get("experts") == tuned == 0 < experts:
            yield "adapters miss experts"
        if training.get("missing_targets"):
            yield "missing targets"
        if ignored:
            yield "trainer aux ignored"
        is_gpt_oss = "gpt-oss" in run.model_name.lower().replace("_", "-")
        if is_gpt_oss and isinstance(weight, int | float) and weight >= self.limits.aux_weight:
            yield "aux too strong"

    def _looks_pooled(self, view: StepView) -> bool:
        """Near its floor k, pooled over layers, while a layer by itself is far from even."""
        losses, effective = view.record.losses or {}, view.signal("effective_experts")
        loss = next((losses[n] for n in ("aux", "aux_loss", "router_aux") if n in losses), None)
        if loss is None or effective is None or view.step <= self.context.warm_up:
            return False
        return abs(loss - self.floor) <= self.limits.floor * self.floor and any(
            value < self.limits.uneven * router.num_experts
            for value, router in zip(effective.values, self.routers, strict=True)
        )

    @staticmethod
    def words(worst: Episode, run: RunRecord) -> tuple[str, str]:
        cause, own = str(worst.facts.get("cause")), setting(run, "aux_weight")
        no_setting = cause == "trainer aux ignored" and own == "aux_weight"
        why, remedy = _NO_AUX if no_setting else _TEXTS[cause]
        known: dict[str, Any] = {name: number(worst, name) for name in ("at", "before")}
        for name in (_OF_TRANSFORMERS, _OF_TRAINER, "aux_weight"):
            known[name] = setting(run, name)
        names = run.training.get("missing_targets", ())
        known["missing"] = ", ".join(names[:6]) + f" and {len(names) - 6} more" * (len(names) > 6)
        known["coefficient"] = run.balance.get(_OF_TRAINER, 0.0)
        return why.format(**known), remedy.format(**known)


class BiasSign:
    """The trials of one run."""

    def __init__(self, context: Context) -> None:
        self._limits = context.limits.of(LintLimits)
        self._critical = context.limits.of(CollapseLimits).critical
        balance = context.run.balance
        self.moves = (
            context.trains
            and balance.get("method") not in ("aux", "none")
            and balance.get("bias_update_rate") != 0
        )
        """Whether there is a bias with an update rate."""

    def observe(self, view: StepView, memory: SignMemory) -> None:
        """Add one step, and judge the sign."""
        if not self.moves or memory.blind >= _BLIND or (index := view.collapse_index) is None:
            return
        known, uneven = memory.outcomes.keys() | memory.trials.keys(), self._limits.sign_uneven
        low = enumerate(index.values if index.low < uneven else ())
        new = [r for r, value in low if value < uneven and r not in known]
        if not (memory.trials or new) or not view.has_counts:
            return
        new.sort(key=index.values.__getitem__)
        seen = False
        for router in [*memory.trials, *new[: _MOST - len(memory.trials)]]:
            seen = self._look(view, router, index.values[router], memory) or seen
        memory.blind = 0 if seen else memory.blind + 1
        outcomes = list(memory.outcomes.values())
        wrong, right = outcomes.count(1), outcomes.count(-1)
        if memory.wrong_at is None and wrong and wrong >= 2 * right:
            memory.wrong_at = view.step
        elif right > wrong:
            memory.wrong_at = None  # it was corrected

    def _look(self, view: StepView, router: int, c: float, memory: SignMemory) -> bool:
        """Add one line of a router on trial; false if it has no bias or no counts."""
        counts, bias = view.full_counts(router), view.biases(router)
        if counts is None or bias is None or len(bias) != len(counts):
            return False
        load = _centred(counts)
        trial = memory.trials.get(router)
        if trial is None or len(trial.bias) != len(bias):
            memory.trials[router] = Trial(bias, bias, load)
            return True
        change = _centred([b - a for a, b in zip(trial.bias, bias, strict=True)])
        moved = sum(map(abs, change))
        if moved > 1e-9 * (1.0 + max(map(abs, bias))):
            for end, loads in enumerate((trial.load, load)):
                signs = zip(loads, change, strict=True)
                trial.agreed[end] += sum(abs(n) if n * m > 0 else -abs(n) for n, m in signs)
                trial.total[end] += sum(map(abs, loads))
            trial.path += moved
            variance = sum(n * n for n in load) / max(1, sum(counts)) ** 2
            trial.changes += 1
            if trial.changes <= _FIRST:
                trial.early += variance / _FIRST
            trial.lately += (variance - trial.lately) / min(trial.changes, _FIRST)
        trial.bias, trial.load = bias, load
        outcome = self._outcome(trial, c)
        if outcome is not None:
            memory.outcomes[router] = outcome
            del memory.trials[router]
        return True

    def _outcome(self, trial: Trial, c: float) -> int | None:
        """The outcome of the trial; ``None`` while it is running."""
        changes, limits = trial.changes, self._limits
        low, high = sorted(
            a / t if t else 0.0 for a, t in zip(trial.agreed, trial.total, strict=True)
        )
        if changes >= _RIGHT_AFTER and low < -_WEAK:
            return -1
        net = sum(map(abs, _centred([b - a for a, b in zip(trial.first, trial.bias, strict=True)])))
        most = 2.5 * limits.sign_changes
        agrees = low >= _WEAK and high >= limits.sign_agreement and net >= _DIRECTED * trial.path
        enough = (
            changes >= most
            or (changes >= limits.sign_changes and trial.lately >= _GROWN * trial.early)
            or (changes >= _FEW and c < self._critical)
        )
        if agrees and enough:
            return 1
        return 0 if changes >= most else None


def again(memory: SignMemory, step: int) -> SignMemory:
    """The state of a run that resumes at ``step``: new trials decide whether the sign is right."""
    return SignMemory(wrong_at=_before(step, memory.wrong_at))


def _before(step: int, at: int | None) -> int | None:
    return at if at is not None and at < step else None


def _centred(values: Sequence[float]) -> list[float]:
    """Minus their mean: only differences between biases matter."""
    mean = sum(values) / len(values)
    return [value - mean for value in values]
