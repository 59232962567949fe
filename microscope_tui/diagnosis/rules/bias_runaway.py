"""BIAS_RUNAWAY: the selection bias grows without bound and the load does not follow."""

from statistics import correlation, fmean, linear_regression

import msgspec

from microscope_tui.diagnosis.context import AtMost, Below, RuleLimits
from microscope_tui.diagnosis.episodes import Episode, Found, Reading, Readings, Severity
from microscope_tui.diagnosis.rules.base import Rule, number, stronger_balance
from microscope_tui.diagnosis.signals import BALANCE, NAN, StepView
from microscope_tui.runlog import RunRecord


class BiasRunawayLimits(RuleLimits, frozen=True):
    """The bias grows without bound and the load does not follow."""

    every: int = 25
    points: int = 21
    """500 steps."""
    straightness: float = 0.98
    """R² of the straight line through max − min of the bias."""
    rate: float = 0.5
    """Slope relative to the fastest that the update rate allows (two rates per step)."""
    collapse_index: float = 0.8
    rise: float = 0.03
    """c rises by less than this in the same time …"""
    stalled: float = 0.02
    """… and where it moves by less than this, three times the rate does not help either."""
    persistence: int = 4

    relations = (
        AtMost(3, "points"),
        Below("straightness", 1),
        AtMost("rate", 1),
        AtMost("collapse_index", 1),
    )


class Memory(msgspec.Struct):
    """What is kept of every 25th line: max − min of the bias and c, per router."""

    steps: list[int] = []
    spreads: list[list[float]] = []
    """Max − min of the bias, one row per step."""
    indices: list[list[float]] = []
    """c, one row per step."""
    due: int = 0
    """Lines until the next one that is kept."""


class BiasRunaway(Rule[BiasRunawayLimits, Memory]):
    name = "BIAS_RUNAWAY"
    subject = "Runaway bias"
    means = (
        "Bias updates push the same experts up and the same ones down, step after step, and the "
        "load stays uneven. The update rate is too small for the scale of the scores."
    )
    formula = (
        "max − min of expert_bias grows in a straight line (R² > 0.98) over 500 steps at half "
        "the fastest rate or more while c stays below 0.8 and does not rise"
    )
    trains_only = True
    turn = 160
    cause_rank = 80
    ends_after = 4
    wants_balance = True

    def set_up(self) -> None:
        self.balances = self.context.run.balance.get("method") == "bias"
        self.needs = BALANCE if self.balances else ()

    def read(self, view: StepView) -> Readings | None:
        memory, limits, indices = self.memory, self.limits, view.collapse_index
        if not self.balances:
            return {}  # the bias no longer grows
        if indices is None:
            return None
        memory.due -= 1
        if memory.due > 0:
            return None
        rows = view.all_biases()
        if not rows:
            return None  # due in the next line with biases
        spreads = [NAN] * len(self.routers)
        for index, biases in rows.items():
            spreads[index] = max(biases) - min(biases)
        memory.due = limits.every
        memory.steps.append(view.step)
        memory.spreads.append(spreads)
        memory.indices.append(list(indices.values))
        for past in (memory.steps, memory.spreads, memory.indices):
            del past[: -limits.points]
        if len(memory.steps) < limits.points:
            return None
        return self._judge()

    def _judge(self) -> Readings:
        memory, limits, found = self.memory, self.limits, Found()
        rate = self.context.run.balance.get("bias_update_rate")
        for index in range(len(self.routers)):
            spreads = [row[index] for row in memory.spreads]
            indices = [row[index] for row in memory.indices]
            if spreads[-1] <= spreads[0] or indices[-1] >= limits.collapse_index:
                continue
            if any(spread != spread for spread in spreads):
                found[index] = None
                continue
            slope = linear_regression(memory.steps, spreads).slope
            straight = correlation(memory.steps, spreads) ** 2  # R² of the line
            fast = not isinstance(rate, int | float) or slope >= limits.rate * 2 * rate
            third = max(1, limits.points // 3)
            before, after = fmean(indices[:third]), fmean(indices[-third:])
            even = [at for at, c in enumerate(indices) if c >= limits.collapse_index]
            rise = after - before
            if straight > limits.straightness and fast and rise < limits.rise:
                found[index] = Reading(
                    severity=Severity.WARN,
                    value=spreads[-1],
                    limit=spreads[0],
                    facts={"slope": slope, "c": after, "stalled": abs(rise) < limits.stalled},
                    since=memory.steps[max(even, default=-1) + 1],  # uneven from there on
                )
        return found

    @staticmethod
    def words(worst: Episode, run: RunRecord) -> tuple[str, str]:
        remedy = stronger_balance(run, worst)
        if run.score_function not in ("sigmoid", "softmax"):
            remedy += "; a bias on softmax logits needs far more than one on sigmoid scores"
        return (
            f"max − min of the bias grew to {worst.value:.3g}, {number(worst, 'slope'):.2g} a "
            f"step in a straight line, while c is {number(worst, 'c'):.2f}",
            remedy,
        )
