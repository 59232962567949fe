"""UNIFORM: the router still gives every expert the same probability late in training."""

import math
from operator import mul

import msgspec

from microscope_tui.diagnosis.context import AtMost, RuleLimits
from microscope_tui.diagnosis.episodes import Episode, Found, Reading, Readings, Severity
from microscope_tui.diagnosis.rules.base import Rule, number
from microscope_tui.diagnosis.signals import NAN, StepView
from microscope_tui.runlog import RunRecord


class UniformLimits(RuleLimits, frozen=True):
    """A router whose gradient was 7e-10 kept 97 % of the entropy; so does soft routing."""

    entropy_share: float = 0.97
    """Of ln E."""
    after_steps: int = 500
    after_share: float = 0.3
    gradient: float = 1e-6
    """Router gradient norm relative to the global one, below which nothing is learned …"""
    learning: float = 1e-4
    """… and above which it learns, however soft its choices are. Healthy: 1e-2."""
    lift: float = 1.2
    """Mass on the chosen k relative to k ÷ E, above which the router prefers experts: 1.1 at the
    start of a balanced sigmoid router with 8 experts, 1.3 after 600 steps, at 98.6 % of ln E."""
    strong: float = 50.0
    """An auxiliary or z-loss this many times the usual: a gradient shows nothing then."""
    persistence: int = 100

    relations = (
        AtMost("entropy_share", 1),
        AtMost("after_share", 1),
        AtMost("gradient", "learning"),
    )


class Memory(msgspec.Struct):
    """Router → first step since which it is uniform."""

    since: dict[int, int] = {}


class Uniform(Rule[UniformLimits, Memory]):
    """Perfect balance can be a fault; soft but consistent routing is not."""

    name = "UNIFORM"
    subject = "An unlearned router"
    means = (
        "Every token gets nearly the same probability for every expert. A router without a "
        "gradient learns nothing; with one, its routing is soft, which also works."
    )
    formula = (
        "token entropy above 0.97 ln E after max(500, 30 % of the plan) steps, for 100 steps; a "
        "warning only where the router's gradient is below 1e-6 of the whole"
    )
    trains_only = True
    muted_by = ("COLLAPSE",)
    turn = 140
    cause_rank = 120

    def set_up(self) -> None:
        limits, planned = self.limits, min(self.context.run.planned_steps or 0, 10**7)
        weights = self.context.run.balance
        auxiliary, z_loss = weights.get("aux_weight", 0), weights.get("z_loss_weight", 0)
        self.strong = max(auxiliary / 0.01, z_loss / 0.001) >= limits.strong
        self.after = max(limits.after_steps, int(limits.after_share * planned))
        self.scales = [0.0] * len(self.routers)
        for index, router in enumerate(self.routers):
            if router.num_experts > max(1, router.top_k):
                self.scales[index] = 1 / math.log(router.num_experts)

    def read(self, view: StepView) -> Readings | None:
        entropy = view.signal("entropy")
        if entropy is None:
            return None
        most, since = self.limits.entropy_share, self.memory.since
        found: Found = {}
        for index, share in enumerate(map(mul, entropy.values, self.scales)):
            if share > most:
                since.setdefault(index, view.step)
            else:
                since.pop(index, None)
            if share != share:
                found[index] = None
            elif share > most - 0.01 and view.step > self.after:
                found[index] = self._judge(view, index, share)
        if view.step <= self.after:
            return None
        return found

    def _judge(self, view: StepView, index: int, share: float) -> Reading:
        limits = self.limits
        router = self.routers[index]
        gradient = NAN
        lift = NAN
        norms, mass = view.signal("grad_norm"), view.signal("selected_mass")
        if norms is not None and 0 < (whole := view.record.grad_norm or NAN) < math.inf:
            gradient = norms.values[index] / whole
        if mass is not None and router.top_k:
            lift = mass.values[index] * router.num_experts / router.top_k
        learns = (gradient >= limits.learning and not self.strong) or lift > limits.lift
        severity = None if learns else Severity.INFO
        facts = {"entropy": share}
        if self.strong and lift == lift:
            facts = facts | {"lift": lift}
        if gradient < limits.gradient:
            severity = Severity.WARN
            facts = facts | {"gradient": gradient}
        return Reading(
            severity=severity if share > limits.entropy_share else None,
            clear=severity is None,
            value=min(1.0, share),
            limit=limits.entropy_share,
            facts=facts,
            since=self.memory.since.get(index),
        )

    @staticmethod
    def words(worst: Episode, run: RunRecord) -> tuple[str, str]:
        learns = "; soft but consistent routing reads the same and is fine"
        if "gradient" in worst.facts:
            share = number(worst, "gradient")
            learns = f" and its share of the gradient norm is {share:.1g}: it learns nothing"
        if "lift" in worst.facts:
            learns = f", no preference left: selected mass {number(worst, 'lift'):.2f} k/E"
        remedy = "check that the router is not frozen and that the balancing is not too strong"
        if worst.router is not None and worst.router.top_k == 1 and run.norm_top_k:
            remedy = "turn off the normalisation of the single weight: it is always 1"
        return f"token entropy is {worst.value:.1%} of its maximum{learns}", remedy
