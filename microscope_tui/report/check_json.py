"""The judgement as JSON, by the versioned schema of ``docs/check-json.md``; keys are only added."""

import math
from collections.abc import Sequence
from typing import Any

from microscope_tui.diagnosis import Advice, Episode, Facts, Finding
from microscope_tui.report.check import Judgement
from microscope_tui.report.news import News
from microscope_tui.runlog import RunFile, safe_text

SCHEMA_VERSION = 1


def verdict_json(judgements: Sequence[Judgement]) -> dict[str, Any]:
    """The report on all judged runs."""
    return {
        "schema_version": SCHEMA_VERSION,
        "runs": [
            {
                "run": judgement.run,
                "path": judgement.path,
                "state": judgement.state,
                "judged": judgement.judged,
                "last_step": judgement.last_step,
                "profile": judgement.profile or None,
                "exit_code": judgement.exit_code,
                "problem": judgement.problem,
                "notes": list(judgement.notes),
                "findings": [finding_json(found, advice) for found, advice in judgement.findings],
            }
            for judgement in judgements
        ],
    }


def news_json(file: RunFile, alert: News) -> dict[str, Any]:
    """A piece of news of a followed run: a finding, and what happened to it."""
    return {
        "schema_version": SCHEMA_VERSION,
        "event": alert.event,
        "run": file.name,
        "path": safe_text(file.path, 1000),
        "step": alert.step,
        **finding_json(alert.finding, alert.advice),
    }


def finding_json(finding: Finding, advice: Advice) -> dict[str, Any]:
    """A finding and its texts."""
    worst = finding.worst
    return {
        "rule": finding.rule,
        "severity": finding.severity.label,
        "layers": list(finding.layers),
        "experts": _experts(worst.facts),
        "onset": finding.onset,
        "alarm": min(episode.alarm for episode in finding.episodes),
        "last": finding.last,
        "state": "active" if finding.active else "recovered",
        "value": _number(worst.value),
        "limit": _number(worst.limit),
        "worst_at": worst.worst_at,
        "now": _present(worst),
        "confidence": worst.confidence,
        "recurrence": worst.recurrence,
        "evidence": {"window": [finding.onset, finding.last]},
        "grades": [
            {"step": grade.step, "severity": grade.severity.label, "value": _number(grade.value)}
            for grade in worst.grades
        ],
        "short": advice.short,
        "verdict": advice.verdict,
        "why": advice.why,
        "next": advice.next,
    }


def _present(worst: Episode) -> dict[str, Any] | None:
    """The latest evaluation of the worst layer."""
    if worst.now is None:
        return None
    return {
        "step": worst.now.step,
        "value": None if worst.now.inside and not worst.now.facts else _number(worst.now.value),
        "experts": _experts(worst.now.facts),
    }


def _experts(facts: Facts) -> list[int]:
    experts = facts.get("experts", ())
    return list(experts) if isinstance(experts, tuple) else []


def _number(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None
