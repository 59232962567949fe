"""HOT_EXPERT: an expert takes nearly every token in an otherwise healthy layer."""

from operator import mul

from microscope_tui import measures
from microscope_tui.diagnosis.context import AtMost, RuleLimits
from microscope_tui.diagnosis.episodes import Episode, Found, Reading, Readings, Severity
from microscope_tui.diagnosis.rules.base import Nothing, Rule, experts_of, ids_of, number
from microscope_tui.diagnosis.rules.collapse import CollapseLimits
from microscope_tui.diagnosis.signals import BALANCE, StepView
from microscope_tui.runlog import RunRecord


class HotExpertLimits(RuleLimits, frozen=True):
    """OLMoE routes 98 % of arXiv tokens to one expert of layer 0 at c = 0.76: a good model."""

    share: float = 0.8
    """Of the tokens, in the busiest expert."""
    leave: float = 0.7
    persistence: int = 25

    relations = (AtMost("leave", "share"), AtMost("share", 1))


class HotExpert(Rule[HotExpertLimits, Nothing]):
    """A learned shared expert: only where tokens choose more than one."""

    name = "HOT_EXPERT"
    subject = "A hot expert"
    means = (
        "Nearly every token chooses the same expert, or few, and the others share the rest evenly: "
        "it acts as a shared expert. This is not a collapse: good models have such experts."
    )
    formula = "max_load × k ÷ E above 0.8 of the tokens while c ≥ 0.35 and k > 1, for 25 steps"
    muted_by = ("COLLAPSE",)
    turn = 100
    cause_rank = 140
    judges_one_step = True
    needs = ("max_load", *BALANCE)

    def set_up(self) -> None:
        self.scales = [0.0] * len(self.routers)
        for index, router in enumerate(self.routers):
            if router.num_experts > router.top_k > 1:
                self.scales[index] = router.top_k / router.num_experts
        self.collapse = self.context.limits.of(CollapseLimits)

    def read(self, view: StepView) -> Readings | None:
        loads, collapse = view.signal("max_load"), view.collapse_index
        if loads is None or collapse is None:
            return None
        found: Found = {}
        leave = self.limits.leave
        for index, share in enumerate(map(mul, loads.values, self.scales)):
            if share >= leave:
                reading = self._judge(view, index, share, collapse.values[index])
                if reading.severity is not None or index in self.tracks:
                    found[index] = reading
            elif share != share:
                found[index] = None
        return found

    def _judge(self, view: StepView, index: int, share: float, c: float) -> Reading:
        counts, top_k = view.full_counts(index) or (), self.routers[index].top_k
        if counts:  # with several hot experts the summaries do not suffice
            c = measures.balance(counts, top_k).collapse_index or 0.0
        balanced = c >= self.collapse.warn
        hot = share > self.limits.share and balanced
        hot = hot and self.suffices(view, index, self.collapse.evidence)
        least = self.limits.share * sum(counts) / top_k
        return Reading(
            severity=Severity.INFO if hot else None,
            clear=not balanced,  # COLLAPSE reports its current state
            value=min(1.0, share),
            limit=self.limits.share,
            facts={"c": c, "experts": tuple(e for e, n in enumerate(counts) if n > least)},
        )

    @staticmethod
    def words(worst: Episode, run: RunRecord) -> tuple[str, str]:
        several = len(ids_of(worst, "experts")) > 1
        noun = "experts" if several else "expert"
        who = f"{noun} {experts_of(worst)}" if experts_of(worst) else "one expert"
        are, it = ("are each", "them") if several else ("is", "it")
        return (
            f"{who} {are} chosen by up to {worst.value:.0%} of the tokens while the others share "
            f"the rest: c {number(worst, 'c'):.2f}",
            f"leave {it}; with expert parallelism watch the rank that holds {it} for stragglers",
        )
