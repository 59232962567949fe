"""MISMATCH: the trainer and the engine that generates its data route differently."""

from microscope_tui.diagnosis.context import AtMost, Below, RuleLimits
from microscope_tui.diagnosis.episodes import WHOLE_RUN, Episode, Found, Reading, Readings, graded
from microscope_tui.diagnosis.rules.base import Rule, number
from microscope_tui.diagnosis.signals import NAN, FirstValues, StepView
from microscope_tui.runlog import RunRecord

_CLEAR = 0.75
_WORDS = {"mismatch_kl": "KL divergence", "logprob_diff": "mean difference"}


class MismatchLimits(RuleLimits, frozen=True):
    """R3 (arXiv 2510.11370): trainer and rollout engine chose differently in about 10 % of the
    routers of a forward pass, and for 94 % of the tokens in some layer. Three of three runs
    collapsed, none with routing replay. slime's own tests fail at a ``logprob_diff`` of 0.1.
    """

    warn: float = 0.10
    ratio: float = 2.0
    """Or this many times the median of its first logged steps …"""
    least: float = 0.02
    """… and at least this share: rounding alone changes the closest choices."""
    mismatch_kl: float = 0.01
    logprob_diff: float = 0.1
    """Of the log-probabilities, in nats a token."""
    reference_steps: int = 50
    persistence: int = 10

    relations = (Below(0, "least"), Below(1, "ratio"), AtMost("least", "warn"), Below("warn", 1))


class Mismatch(Rule[MismatchLimits, FirstValues]):
    name = "MISMATCH"
    subject = "Routing mismatch"
    means = (
        "Another engine or precision chooses other experts for the same tokens. In reinforcement "
        "learning the trainer then corrects other experts than those that wrote the text."
    )
    formula = (
        "router.disagreement above 0.1, or above 2 × the median of its first 50 logged steps and "
        "above 0.02, in 90 % of 10 steps; losses.mismatch_kl above 0.01, or losses.logprob_diff "
        "above 0.1"
    )
    trains_only = True
    in_warm_up = True
    ends_below = _CLEAR
    turn = 130
    cause_rank = 115

    def start(self) -> None:
        self.memory = FirstValues(self.limits.reference_steps)

    def restart(self, step: int) -> None:
        """What is usual stays usual."""

    def read(self, view: StepView) -> Readings | None:
        found: Found = {}
        losses = view.record.losses or {}
        for name in _WORDS.keys() & losses.keys():
            value, limit = losses[name] or 0.0, getattr(self.limits, name)
            clear = value < _CLEAR * limit
            severity = graded(value, limit)
            found[WHOLE_RUN] = Reading(severity, clear, value, limit, facts={"of": name})
        if (signal := view.signal("disagreement")) is not None:
            shares = list(map(_valid, signal.values))
            self.memory.add(view.step, shares)
            found |= {index: self._judge(index, share) for index, share in enumerate(shares)}
        return found or None

    def _judge(self, index: int, share: float) -> Reading | None:
        if share != share:
            return None
        limits = self.limits
        limit = self.limits.warn
        facts = {}
        usual = self.memory.medians[index] if self.memory.medians else NAN
        if usual == usual:
            limit = min(limit, max(limits.least, limits.ratio * usual))
            facts = {"usual": usual}
        return Reading(
            severity=graded(share, limit),
            clear=share < _CLEAR * limit,
            value=share,
            limit=limit,
            facts=facts,
        )

    @staticmethod
    def words(worst: Episode, run: RunRecord) -> tuple[str, str]:
        usually = f", usually {number(worst, 'usual'):.1%}" if "usual" in worst.facts else ""
        why = (
            f"up to {worst.value:.1%} of the choices differ between trainer and engine "
            f"(limit {worst.limit:.1%}{usually})"
        )
        if of := worst.facts.get("of"):
            why = (
                f"the log-probabilities of trainer and engine differ: {_WORDS[str(of)]} "
                f"{worst.value:.3g} nats a token (limit {worst.limit:g})"
            )
        return (
            why,
            "enable routing replay, so that the trainer uses the experts that the engine chose; "
            "else run the router of both in fp32, and compare two probes with "
            "`moe-microscope mismatch` to see which layers differ",
        )


def _valid(share: float) -> float:
    """NaN where it is not a share."""
    if 0.0 <= share <= 1.0:
        return share
    return NAN
