"""The judgement as text: one line for a healthy run, three per finding otherwise."""

from microscope_tui.diagnosis import Advice, Finding, Severity
from microscope_tui.report.check import HEALTHY, Judgement
from microscope_tui.report.news import News

_WORDS = {0: "healthy", 1: "WARNING", 2: "CRITICAL", 3: "NO VERDICT"}


def verdict_text(judgement: Judgement) -> str:
    """The report on one run."""
    word = _WORDS[judgement.exit_code]
    forgiven = any(f.severity >= Severity.WARN for f, _ in judgement.findings)
    if judgement.exit_code == HEALTHY and forgiven:
        word = "warnings, ignored by --fail-on crit,"
    if judgement.waits_until is not None:
        word = f"{judgement.problem},"
    lines = [f"{judgement.run}: {word} at step {judgement.last_step:,} ({judgement.state})"]
    if judgement.problem and judgement.waits_until is None:
        lines.append(f"  {judgement.path}: {judgement.problem}")
    for finding, advice in judgement.findings:
        lines += [f"  {line}" for line in _finding(finding, advice)]
    lines += [f"  note: {note}" for note in judgement.notes]
    return "\n".join(lines)


def news_text(alert: News) -> str:
    """A piece of news of a followed run."""
    first, *rest = _finding(alert.finding, alert.advice)
    event = "" if alert.event == "opened" else f"{alert.event}: "
    if alert.event == "recovered":
        rest = []
    return "\n".join([f"step {alert.step:,}: {event}{first}", *(f"  {line}" for line in rest)])


def _finding(finding: Finding, advice: Advice) -> list[str]:
    label = f"{finding.severity.label.upper()} {finding.rule}"
    if finding.severity is Severity.INFO:
        return [f"{label}: {advice.short}"]
    return [f"{label}: {advice.verdict}", f"  why   {advice.why}", f"  next  {advice.next}"]
