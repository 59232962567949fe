"""STILL: weights that are meant to train get no gradient, or do not change."""

from microscope_tui.diagnosis.context import RuleLimits
from microscope_tui.diagnosis.episodes import Episode, Fact, Reading, Readings, Reason, Severity
from microscope_tui.diagnosis.rules.base import Nothing, Rule, number
from microscope_tui.diagnosis.signals import NAN, StepView
from microscope_tui.runlog import RunRecord

_APART = 100
"""Logged steps between two looks whose values are compared."""
_ROUNDS = ("bf16", "bfloat16")
"""Weights of so few digits lose small updates."""


class StillLimits(RuleLimits, frozen=True):
    """Zero needs no tolerance: gradients reached 0 of 192 tensors of expert adapters, and the loss
    fell all the same (unslothai/unsloth-zoo#606). A single look may meet a skipped step.
    """

    looks: int = 3
    """Looked-at steps in a row; those between them are not counted."""


class Still(Rule[StillLimits, Nothing]):
    """Reads only steps in which the writer looked at gradients."""

    name = "STILL"
    subject = "Weights do not train"
    means = (
        "Experts or routers that should train stay as they are. Tokens with a loss use them, and "
        "the loss can fall all the same, because other weights learn."
    )
    formula = (
        "router.still_tensors above 0 in three looked-at steps in a row (critical: all of "
        "looked_tensors but at most one), or unchanged_tensors above 0 once (critical: as many, "
        "twice, where layer_changed is 1; information where it is 0, unless in all layers twice, "
        "or the dtype is bf16)"
    )
    trains_only = True
    in_warm_up = True
    turn = 15
    cause_rank = 15

    def set_up(self) -> None:
        self.window = self.needed = self.limits.looks
        self.leave = 1

    def read(self, view: StepView) -> Readings | None:
        looked, still = view.signal("looked_tensors"), view.signal("still_tensors")
        if looked is None or still is None:
            return None
        columns = [looked.values, still.values]
        for name in ("unchanged_tensors", "layer_changed"):
            found = view.signal(name)
            columns.append(found.values if found is not None else [NAN] * len(still.values))
        if all(layer == 0 and self._before(at) for at, layer in enumerate(columns[-1])):
            columns[-1] = [NAN] * len(still.values)  # not on purpose
        rows = enumerate(zip(*columns, strict=True))
        return {index: self._judge(index, view.step, *row) for index, row in rows}

    def _judge(
        self, index: int, step: int, looked: float, still: float, same: float, layer: float
    ) -> Reading | None:
        if not 0 <= still <= looked or not looked:
            return None
        facts: dict[str, Fact] = {"looked": looked, "looks": self.limits.looks}
        if still:
            whole = still >= max(min(2, looked), looked - 1)  # the router may train alone
            severity = Severity.CRITICAL if whole else Severity.WARN
            return Reading(severity, value=still, facts=facts)
        if not 0 < same <= looked:
            return Reading(None, clear=True)
        rounds = self.context.run.dtype in _ROUNDS
        severity = Severity.INFO if layer == 0 or (rounds and layer != 1) else Severity.WARN
        again = self._before(index) > Severity.INFO
        if layer == 1 and not rounds and same >= max(2, looked - 1) and again:
            severity = Severity.CRITICAL
        return Reading(
            severity,
            value=same,
            certain=True,
            facts=facts | {"cause": Reason.RESTS if layer == 0 else Reason.UNCHANGED},
            since=max(1, step - _APART),
        )

    def _before(self, index: int) -> int:
        track = self.tracks.get(index)
        return track.recent[-1][1] if track is not None and track.recent else 0

    @staticmethod
    def words(worst: Episode, run: RunRecord) -> tuple[str, str]:
        looked, still = number(worst, "looked"), worst.value
        tensors = f"{still:.0f} of {looked:.0f} tensors"
        if "cause" not in worst.facts:
            none = "some weights get no" if still < looked else "no weight gets a"
            return (
                f"{none} gradient: {tensors} (experts and router) in {number(worst, 'looks'):.0f} "
                "looked-at steps in a row",
                "check that the forward of the experts uses these weights (a kernel that replaces "
                "it may ignore adapters), and that nothing detaches the output of the layer",
            )
        why = f"{tensors} are what they were {_APART} logged steps before"
        held = "check that the optimizer holds these weights, and at which rate"
        if worst.reason == Reason.RESTS:
            return (
                f"{why}, and so are the router and attention of the layer",
                f"nothing if the layer rests on purpose (LISA, gradual unfreezing); else {held}",
            )
        if worst.severity is Severity.INFO:
            return (
                f"{why}: updates are lost in rounding",
                "keep the weights, or the optimizer's copy of them, in fp32",
            )
        return f"{why}, although the learning rate is not zero", held
