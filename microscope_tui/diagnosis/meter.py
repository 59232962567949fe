"""Check the meter before the patient: faults of the measurement imitate disease.

Counts that do not sum to tokens × k, counts that are a multiple of it (hooks that fire again in
recomputed activations), counts that are equal to ±1 (a forced-balance debug flag), and NaN, whose
argmax is expert 0. While the meter of a router is faulty, no other rule speaks about it.
"""

from microscope_tui.diagnosis import thresholds
from microscope_tui.diagnosis.episodes import Facts, Reading, Severity
from microscope_tui.diagnosis.evidence import StepView, value_at
from microscope_tui.runlog.records import RouterInfo

_MAX_TOKENS = 2.0**53  # beyond it a float is no exact count


class Meter:
    """Is what the log says about this router a measurement at all?"""

    name = "METER"
    enter = thresholds.METER.persistence
    leave = thresholds.METER.persistence

    def __init__(self, index: int, router: RouterInfo, counts_source: str = "exact") -> None:
        self._index, self._router = index, router
        self._exact = counts_source == "exact"
        self._evaluations = 0
        self._non_finite = False  # what was wrong last was a NaN, not the counts
        self._alert = 0  # evaluations still to be made in a row because something was wrong

    def read(self, view: StepView) -> Reading | None:
        broken = view.has_non_finite(self._index)
        if broken:
            self._alert, self._non_finite = self.leave, True
            return _fault(cause="non-finite", reading=broken)
        self._evaluations += 1
        limits = thresholds.METER
        scheduled = (
            self._evaluations <= limits.first_steps
            or self._evaluations % limits.every < limits.persistence
        )
        if not (scheduled or self._alert):
            return None
        counts = view.counts(self._index)
        facts = None if counts is None else self._fault_in(counts, self._tokens(view))
        if facts is not None:
            self._alert = self.leave
            return _fault(**facts)
        watched, self._alert = self._alert, max(0, self._alert - 1)
        # Without counts only a recovery from non-finite readings can be said.
        known = counts is not None or (watched > 0 and self._non_finite)
        self._non_finite = self._non_finite and self._alert > 0
        return Reading(severity=None, clear=True) if known else None

    def reset(self) -> None:
        self._evaluations = self._alert = 0

    def _tokens(self, view: StepView) -> float | None:
        own = value_at(view.record.router.tokens, self._index)
        return own if own is not None else view.record.tokens

    def _fault_in(self, counts: list[int], tokens: float | None) -> Facts | None:
        total, router = sum(counts), self._router
        if router.num_experts and len(counts) != router.num_experts:
            return {"cause": "width", "total": len(counts), "expected": router.num_experts}
        if self._exact and tokens is not None and 1 <= tokens < _MAX_TOKENS:
            expected = round(tokens * router.top_k)
            if total != expected:
                doubled = expected > 0 and total % expected == 0 and total > 0
                cause = "multiple" if doubled else "sum"
                return {"cause": cause, "total": total, "expected": expected}
        fair = total / max(1, len(counts))
        forced = max(counts) - min(counts) <= 1 and router.num_experts > router.top_k
        if forced and fair >= thresholds.METER.forced_balance_evidence:
            return {"cause": "forced", "total": total, "expected": total}
        return None


def _fault(**facts: float | str | tuple[int, ...]) -> Reading:
    return Reading(severity=Severity.ERROR, clear=False, value=1.0, limit=0.0, facts=facts)
