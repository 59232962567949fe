"""A finding as data, the same in ``check --json``, exports and JSON of a screen."""

import math
from typing import Any

from microscope_tui.diagnosis import Advice, Episode, Finding
from microscope_tui.diagnosis.rules.base import ids_of


def finding_json(finding: Finding, advice: Advice) -> dict[str, Any]:
    """One finding, with its cause and the next step; ``None`` for numbers that are not finite."""
    worst = finding.worst
    return {
        "rule": finding.rule,
        "severity": finding.severity.label,
        "layers": list(finding.layers),
        "experts": list(ids_of(worst, "experts")),
        "onset": finding.onset,
        "alarm": min(episode.alarm for episode in finding.episodes),
        "last": finding.last,
        "state": "active" if finding.active else "recovered",
        "value": finite(worst.value),
        "limit": finite(worst.limit),
        "worst_at": worst.worst_at,
        "now": _present(worst),
        "confidence": worst.confidence,
        "recurrence": worst.recurrence,
        "evidence": {"window": [finding.onset, finding.last]},
        "grades": [
            {"step": grade.step, "severity": grade.severity.label, "value": finite(grade.value)}
            for grade in worst.grades
        ],
        "cause": advice.cause,
        "explains": list(advice.explains),
        "onsets": {e.router.name: e.onset for e in finding.episodes if e.router is not None},
        "short": advice.short,
        "verdict": advice.verdict,
        "why": advice.why,
        "next": advice.next,
    }


def _present(worst: Episode) -> dict[str, Any] | None:
    if worst.now is None:
        return None
    return {
        "step": worst.now.step,
        "value": None if worst.now.inside and not worst.now.facts else finite(worst.now.value),
        "experts": list(ids_of(worst.now, "experts")),
    }


def finite(value: float) -> float | None:
    """The value, or ``None`` for infinities and NaN, which JSON does not have."""
    return value if math.isfinite(value) else None
