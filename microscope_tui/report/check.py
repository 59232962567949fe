"""``moe-microscope check``: judge runs without a terminal. The exit code is an API.

0 healthy (or info only), 1 warning, 2 critical, 3 no data, unreadable, or a meter fault that
forbids a verdict. It is the worst severity of any episode in range, recovered or not: who was
asleep wants to know. 2 wins over 3 where the critical layer's own meter is sound.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from microscope_tui.diagnosis.advice import Advice, advise
from microscope_tui.diagnosis.criteria import Criteria
from microscope_tui.diagnosis.episodes import Episode, Finding, group
from microscope_tui.diagnosis.reading import Severity
from microscope_tui.runlog.discover import RunFile
from microscope_tui.runlog.safe_text import safe_text
from microscope_tui.watch.run_watch import RunWatch

SCHEMA_VERSION = 1
HEALTHY, WARNING, CRITICAL, NO_VERDICT = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict on one run."""

    run: str
    path: str
    state: str
    last_step: int
    exit_code: int
    findings: Sequence[tuple[Finding, Advice]]
    problem: str | None
    """Why there is no verdict, where there is none."""
    notes: Sequence[str]
    """What the verdict could not take into account."""


def judge(
    file: RunFile,
    *,
    since_step: int = 0,
    fail_on: str = "warn",
    ignore: Sequence[str] = (),
    watch: RunWatch | None = None,
) -> Judgement:
    """Read the whole run and judge it.

    Args:
        watch: the run where somebody has read it already, with the same rules ignored.
        since_step: only episodes with evidence from this step on count.
        fail_on: ``warn`` or ``crit``: with ``crit`` a warning does not fail (exit code 0).
        ignore: names of rules that are left out; said in the notes.
    """
    if watch is None:
        watch = RunWatch(file, Criteria(frozenset(name.upper() for name in ignore)), patient=True)
        watch.read_all()
    state, _ = watch.state()
    last_step = watch.latest.record.step if watch.latest else 0
    problem = watch.error
    findings: list[tuple[Finding, Advice]] = []
    if problem is None and (watch.diagnosis is None or watch.latest is None):
        first = f" ({watch.defects.first[0]})" if watch.defects.first else ""
        problem = f"no steps in the log yet{first}"
    elif watch.diagnosis is not None:
        diagnosis = watch.diagnosis
        episodes = [episode for episode in diagnosis.episodes if episode.last >= since_step]
        findings = [(f, advise(f, diagnosis.run, diagnosis.checkpoints)) for f in group(episodes)]
    if problem is None and not findings and not _measured(watch):
        problem = "no load of any router was measured: log tokens_per_expert or effective_experts"
    code = NO_VERDICT if problem else exit_code([f for f, _ in findings], fail_on)
    return Judgement(
        run=file.name,
        path=safe_text(file.path, 1000),
        state=state,
        last_step=last_step,
        exit_code=code,
        findings=findings,
        problem=problem,
        notes=_notes(watch, ignore, since_step),
    )


def exit_code(findings: Sequence[Finding], fail_on: str = "warn") -> int:
    """The exit code that these findings amount to."""
    episodes = [episode for finding in findings for episode in finding.episodes]
    broken = {e.router_index for e in episodes if e.severity is Severity.ERROR and e.active}
    if any(_sound(e, broken) and e.severity is Severity.CRITICAL for e in episodes):
        return CRITICAL
    if any(e.severity is Severity.ERROR for e in episodes):
        return NO_VERDICT
    if any(e.severity is Severity.CRITICAL for e in episodes):
        return CRITICAL
    if any(e.severity is Severity.WARN for e in episodes):
        return WARNING if fail_on == "warn" else HEALTHY
    return HEALTHY


def worst_code(codes: Sequence[int]) -> int:
    """Of several runs: critical before no verdict before warning before healthy."""
    return max(codes, key=[HEALTHY, WARNING, NO_VERDICT, CRITICAL].index, default=NO_VERDICT)


def as_json(judgements: Sequence[Judgement]) -> dict[str, Any]:
    """The machine-readable report; the schema is versioned."""
    return {
        "schema_version": SCHEMA_VERSION,
        "runs": [
            {
                "run": judgement.run,
                "path": judgement.path,
                "state": judgement.state,
                "last_step": judgement.last_step,
                "exit_code": judgement.exit_code,
                "problem": judgement.problem,
                "notes": list(judgement.notes),
                "findings": [_finding(found, advice) for found, advice in judgement.findings],
            }
            for judgement in judgements
        ],
    }


def as_text(judgement: Judgement) -> str:
    """The report for a person: one line when all is well, three a finding otherwise."""
    words = {0: "healthy", 1: "WARNING", 2: "CRITICAL", 3: "NO VERDICT"}
    word = words[judgement.exit_code]
    if judgement.exit_code == HEALTHY and any(
        f.severity >= Severity.WARN for f, _ in judgement.findings
    ):
        word = "warnings, forgiven by --fail-on crit,"
    head = f"{judgement.run}: {word} at step {judgement.last_step:,} ({judgement.state})"
    lines = [head]
    if judgement.problem:
        lines.append(f"  {judgement.path}: {judgement.problem}")
    for finding, advice in judgement.findings:
        lines.append(f"  {finding.severity.label.upper()} {finding.rule}: {advice.verdict}")
        lines.append(f"    why   {advice.why}")
        lines.append(f"    next  {advice.next}")
    lines += [f"  note: {note}" for note in judgement.notes]
    return "\n".join(lines)


def _measured(watch: RunWatch) -> bool:
    """At least one router has a balance somewhere in the history."""
    if watch.history is None or watch.run is None:
        return False
    indices = [i for i, r in enumerate(watch.run.routers) if r.num_experts > r.top_k]
    columns = [c for i in indices for c in watch.history.columns("effective_experts", i, 1)]
    return any(column.low == column.low for column in columns)


def _sound(episode: Episode, broken: set[int]) -> bool:
    return episode.router_index not in broken


def _finding(finding: Finding, advice: Advice) -> dict[str, Any]:
    worst = finding.worst
    experts = worst.facts.get("experts", ())
    return {
        "rule": finding.rule,
        "severity": finding.severity.label,
        "layers": list(finding.layers),
        "experts": list(experts) if isinstance(experts, tuple) else [],
        "onset": finding.onset,
        "alarm": min(episode.alarm for episode in finding.episodes),
        "last": finding.last,
        "state": "active" if finding.active else "recovered",
        "value": worst.value,
        "limit": worst.limit,
        "confidence": worst.confidence,
        "verdict": advice.verdict,
        "why": advice.why,
        "next": advice.next,
    }


def _notes(watch: RunWatch, ignore: Sequence[str], since_step: int) -> list[str]:
    notes = []
    if watch.defects.count:
        notes.append(
            f"{watch.defects.count:,} unreadable parts skipped: {'; '.join(watch.defects.first)}"
        )
    if ignore:
        notes.append(f"ignored rules: {', '.join(name.upper() for name in ignore)}")
    if since_step:
        notes.append(f"only episodes with evidence from step {since_step:,} on")
    state, _ = watch.state()
    last = watch.latest.record.step if watch.latest else 0
    if state not in ("live", "slow", "finished", "waiting"):
        notes.append(f"the run is {state}: the verdict covers its routers up to step {last:,} only")
    if watch.scan.end is not None and (watch.scan.end.step or 0) > last:
        notes.append(
            f"the run ended at step {watch.scan.end.step:,}: the steps after {last:,} are missing"
        )
    if watch.scan.lost_records:
        notes.append(f"{watch.scan.lost_records:,} records were lost by the writer (disk full?)")
    if watch.run is not None and watch.run.inferred:
        notes.append("the log has no run record: layers and top-k are inferred from the counts")
    if watch.run is not None and watch.run.counts != "exact":
        notes.append(f"the counts are {watch.run.counts!r}, not exact")
    return notes
