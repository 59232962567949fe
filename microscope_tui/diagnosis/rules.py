"""The rules: each looks at one router, step by step, and says what the step alone amounts to.

A rule keeps only what its own window needs. Persistence, warm-up and muting are the engine's.
"""

import math
from collections import deque
from typing import Protocol

from microscope_tui import measures
from microscope_tui.diagnosis import thresholds
from microscope_tui.diagnosis.episodes import Reading, Severity
from microscope_tui.diagnosis.evidence import StepView, SummedCounts, value_at
from microscope_tui.runlog.records import RouterInfo


class Rule(Protocol):
    """One rule on one router."""

    name: str
    enter: int
    """Evaluations that the persistence window holds."""
    leave: int
    """Clear evaluations in a row that end an episode."""

    def read(self, view: StepView) -> Reading | None:
        """Judge one step; ``None`` where this step says nothing (no value, window not full)."""

    def reset(self) -> None:
        """Forget the windows: the time axis jumped."""


class Collapse:
    """c of the counts summed over a window falls below its limits."""

    name = "COLLAPSE"
    enter = thresholds.COLLAPSE.window
    leave = 2 * thresholds.COLLAPSE.window

    def __init__(self, index: int, router: RouterInfo) -> None:
        self._index, self._router = index, router
        self._window: SummedCounts | None = None
        self._calm = 0
        self._low_since: int | None = None  # start of a stretch that is low step by step
        self._usual: deque[float] = deque(maxlen=64)  # effective experts while all was well

    def read(self, view: StepView) -> Reading | None:
        limits, router = thresholds.COLLAPSE, self._router
        effective = value_at(view.record.router.effective_experts, self._index)
        index = measures.collapse_index(effective, router.num_experts, router.top_k)
        if index is None or effective is None:
            return None
        # The summary finds suspects; only their counts are read and summed.
        suspect = index <= limits.leave
        self._calm = 0 if suspect else self._calm + 1
        if not suspect:
            self._low_since = None
        elif self._low_since is None and index < limits.warn:
            self._low_since = view.step
        if self._window is not None and self._calm > self.leave:
            self._window = None
        if self._window is None and not suspect:
            self._usual.append(effective)
            return Reading(severity=None, clear=True, value=index, limit=limits.warn)
        return self._look_closer(view, index, effective, suspect)

    def reset(self) -> None:
        self._window, self._calm, self._low_since = None, 0, None
        self._usual.clear()

    def _look_closer(
        self, view: StepView, index: float, effective: float, suspect: bool
    ) -> Reading:
        limits, router = thresholds.COLLAPSE, self._router
        counts = view.counts(self._index)
        facts: dict[str, float | str | tuple[int, ...]] = {}
        confidence = "exact counts"
        if counts is None:
            confidence = "per-step summaries only"
        else:
            if self._window is None:
                self._window = SummedCounts(_window_steps(counts))
            self._window.add(counts)
            totals = self._window.totals
            effective = measures.effective_experts(totals) or 0.0
            index = measures.collapse_index(effective, len(totals), router.top_k) or 0.0
            busiest = sorted(range(len(totals)), key=lambda e: -totals[e])[: router.top_k]
            facts["experts"] = tuple(sorted(busiest))
            facts["share"] = sum(totals[e] for e in busiest) / max(1, sum(totals))
        facts["effective"] = effective
        if self._usual:  # the median is not moved by a slide that ends in the collapse
            facts["usual"] = sorted(self._usual)[len(self._usual) // 2]
        severity = None
        if suspect:  # a sum still holds the past: alone it says nothing about this step
            severity = (
                Severity.CRITICAL
                if index < limits.critical
                else Severity.WARN
                if index < limits.warn
                else None
            )
        return Reading(
            severity=severity,
            clear=index > limits.leave,
            value=index,
            limit=limits.critical if severity is Severity.CRITICAL else limits.warn,
            urgent=suspect and index < limits.urgent,
            facts=facts,
            confidence=confidence,
            since=self._low_since,
        )


class Dead:
    """The same experts receive nothing in three windows in which they should have."""

    name = "DEAD"
    enter = thresholds.DEAD.windows
    leave = thresholds.DEAD.windows

    def __init__(self, index: int, router: RouterInfo) -> None:
        self._index, self._router = index, router
        self._before: frozenset[int] | None = None
        self._start_window()

    def read(self, view: StepView) -> Reading | None:
        router, tokens = self._router, view.record.tokens
        dead = value_at(view.record.router.dead_experts, self._index)
        if dead is None or not tokens or not math.isfinite(tokens) or not router.num_experts:
            return None
        self._steps += 1
        if dead:
            self._add(view)
        else:
            self._alive = True  # whoever is dead in the window, nobody was in this step
        expected = tokens * router.top_k / router.num_experts
        if self._steps < _dead_window(expected):
            return None
        return self._end_window(expected * self._steps)

    def reset(self) -> None:
        self._before = None
        self._start_window()

    def _start_window(self) -> None:
        self._steps, self._alive, self._unknown = 0, False, False
        self._totals: list[int] | None = None

    def _add(self, view: StepView) -> None:
        if self._alive:
            return
        counts = view.counts(self._index)
        if counts is None or len(counts) != self._router.num_experts:
            self._unknown = True  # the summary says how many, not that they are the same ones
        elif self._totals is None:
            self._totals = counts
        else:
            self._totals = [t + n for t, n in zip(self._totals, counts, strict=True)]

    def _end_window(self, evidence: float) -> Reading | None:
        totals, alive, unknown = self._totals, self._alive, self._unknown
        self._start_window()
        if not alive and (unknown or totals is None or evidence < thresholds.DEAD.evidence):
            return None
        dead = frozenset() if alive else frozenset(e for e, n in enumerate(totals or ()) if n == 0)
        lasting = dead if self._before is None else dead & self._before
        self._before = lasting or dead or None
        if not lasting:
            return Reading(severity=None, clear=True)
        share = len(lasting) / self._router.num_experts
        critical = share > thresholds.DEAD.critical_share
        return Reading(
            severity=Severity.CRITICAL if critical else Severity.WARN,
            clear=False,
            value=float(len(lasting)),
            limit=0.0,
            facts={"experts": tuple(sorted(lasting)), "share": share},
        )


class Drops:
    """Tokens are dropped because experts are full."""

    name = "DROPS"
    enter = thresholds.DROPS.persistence
    leave = 2 * thresholds.DROPS.persistence

    def __init__(self, index: int, router: RouterInfo) -> None:
        self._index = index

    def read(self, view: StepView) -> Reading | None:
        limits = thresholds.DROPS
        rate = value_at(view.record.router.drop_rate, self._index)
        if rate is None or not 0.0 <= rate <= 1.0:
            return None
        severity = (
            Severity.CRITICAL
            if rate > limits.critical
            else Severity.WARN
            if rate > limits.warn
            else None
        )
        return Reading(
            severity=severity,
            clear=rate < limits.warn / 2,
            value=rate,
            limit=limits.critical if severity is Severity.CRITICAL else limits.warn,
            facts={"rate": rate},
        )

    def reset(self) -> None:
        """Nothing is kept between steps."""


def _window_steps(counts: list[int]) -> int:
    expected = sum(counts) / max(1, len(counts))
    needed = math.ceil(thresholds.COLLAPSE.evidence / expected) if expected else 0
    return min(thresholds.COLLAPSE.max_window, max(thresholds.COLLAPSE.window, needed))


def _dead_window(expected: float) -> int:
    limits = thresholds.DEAD
    needed = math.ceil(limits.evidence / expected) if expected > 0 else limits.max_window
    return min(limits.max_window, max(limits.min_window, needed))
