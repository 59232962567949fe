"""``moe-microscope check``: judge runs without a terminal. The exit code is an API.

It is the worst severity of any episode that began in range, recovered or not, or is active. 2 takes
precedence over 3 if the measurement of the critical layer is sound. The JSON follows the versioned
schema of ``docs/check-json.md``; keys are only added.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from microscope_tui.commands.console import CRITICAL, HEALTHY, NO_VERDICT, WARNING
from microscope_tui.diagnosis import (
    ANYTHING,
    Advice,
    Criteria,
    Diagnosis,
    Episode,
    Finding,
    NoVerdict,
    Severity,
    group,
    is_one_step,
    overall,
    report,
)
from microscope_tui.draw.cost import model_cost
from microscope_tui.draw.findings import finding_json
from microscope_tui.draw.words import listed
from microscope_tui.runlog import RunFile, RunRecord, glance, plural, safe_text
from microscope_tui.watch import RunState, RunWatch, why_no_verdict
from microscope_tui.watch.cost import OF_HEADER, Cost, CostRequest, cost_of
from microscope_tui.watch.verdict import evidence

_CODES = {Severity.WARN: WARNING, Severity.CRITICAL: CRITICAL, Severity.ERROR: NO_VERDICT}
_WORDS = {HEALTHY: "healthy", WARNING: "WARNING", CRITICAL: "CRITICAL", NO_VERDICT: "NO VERDICT"}
SCHEMA_VERSION = 2
_KEYS = ("run", "path", "state", "judged", "last_step", "profile", "exit_code", "problem", "notes")
_MOST_NAMED = 3
Event = Literal["opened", "worse", "recovered"]
_Key = tuple[str, int, int, int]
_Known = dict[_Key, tuple[Severity, bool]]
_COUNTS = {
    "top1": "only first choices are counted: they are more uneven than all k choices",
    "shares": "the log has shares, not counts: whether all choices were counted cannot be checked",
    "local_rank": "the counts are those of one rank: the whole batch may look different",
    "none": "the log has summaries per step and no counts per expert",
}
"""What each kind of counts except exact ones means for the verdict."""


class CheckRequest(msgspec.Struct, frozen=True):
    """What ``check`` judges a run by, and which findings count."""

    criteria: Criteria = ANYTHING
    since_step: int = 0
    """Only episodes that began at this step or later count, or are active …"""
    new_only: bool = False
    """… unless this is set."""
    fail_on: str = "warn"
    """With ``crit`` a warning exits with 0."""
    remarks: tuple[str, ...] = ()
    """Printed with the verdict: a baseline, limits of a config file."""
    cost: CostRequest = OF_HEADER
    source_notes: Callable[[], Iterable[str]] = tuple
    """The same on a run of another tool."""

    def counts(self, episode: Episode) -> bool:
        """Whether an episode counts for the exit code, see ``since_step`` and ``new_only``."""
        return episode.onset >= self.since_step or (episode.active and not self.new_only)


class Judgement(msgspec.Struct, frozen=True):
    """The verdict on one run, as it is printed."""

    run: str
    path: str
    state: str
    last_step: int
    profile: str | None
    """``None`` without a run."""
    exit_code: int
    findings: Sequence[tuple[Finding, Advice]]
    problem: str | None
    waits_until: int | None
    """If a run is not judged before this step."""
    notes: Sequence[str]
    """Limitations, and the options that changed it."""
    cost: Cost | None = None

    @property
    def judged(self) -> bool:
        """Whether there is a verdict, or a fault of the measurement forbids one.

        Else ``problem`` has the reason why the run was not judged.
        """
        return self.problem is None


def judge(
    file: RunFile, request: CheckRequest | None = None, *, watch: RunWatch | None = None
) -> Judgement:
    """Read the whole run and judge it, unless ``watch`` has read it by the same criteria."""
    request = request or CheckRequest()
    if watch is None:
        watch = RunWatch(file, request.criteria, patient=True)
        watch.read_all()
    watch.conclude_if_over()
    state, _ = watch.state()
    diagnosis = watch.diagnosis
    no_verdict = why_no_verdict(watch)
    findings: list[tuple[Finding, Advice]] = []
    profile = None
    if diagnosis is not None:
        profile = diagnosis.run.profile
        findings = findings_with_advice(
            diagnosis, [e for e in diagnosis.episodes if request.counts(e)]
        )
    code = exit_code([f for f, _ in findings], request.fail_on)
    if code != CRITICAL and not no_verdict.why:
        no_verdict = NoVerdict(_read_to(watch))
    if no_verdict.why:
        code = NO_VERDICT
    return Judgement(
        run=file.name,
        path=safe_text(file.path, 1000),
        state=state,
        last_step=_last_step(watch),
        profile=profile,
        exit_code=code,
        findings=findings,
        problem=no_verdict.why,
        waits_until=no_verdict.until,
        notes=[*_notes_on_the_log(watch), *_notes_on_the_request(request, watch)],
        cost=cost_of(watch, None, request.cost),
    )


def no_run(path: Path, problem: str) -> Judgement:
    """The judgement of a path without a run that can be read; ``problem`` has the reason."""
    where = safe_text(path, 1000)
    return Judgement(path.name, where, RunState.ERROR, 0, None, NO_VERDICT, (), problem, None, ())


def _last_step(watch: RunWatch) -> int:
    return watch.latest.record.step if watch.latest else 0


def _read_to(watch: RunWatch) -> str | None:
    if watch.complete or watch.latest is None:
        return None
    read = f"read to step {watch.latest.record.step:,}"
    last = glance(watch.path).last
    if last is not None:
        read += f" of {last.step:,}"
    return read


def findings_with_advice(
    diagnosis: Diagnosis, episodes: Sequence[Episode]
) -> list[tuple[Finding, Advice]]:
    """The findings of ``episodes`` with their advice, those of one cause together.

    The other episodes of ``diagnosis`` help to find causes, but are not shown.
    """
    wanted = set(map(id, episodes))
    return report(diagnosis, shown=lambda episode: id(episode) in wanted)


def exit_code(findings: Sequence[Finding], fail_on: str = "warn") -> int:
    """The code of the worst finding; ``fail_on="crit"`` lets warnings pass."""
    worst = overall(findings)
    if worst is Severity.WARN and fail_on != "warn":
        return HEALTHY
    return _CODES.get(worst, HEALTHY)


def worst_code(judgements: Sequence[Judgement]) -> int:
    """Of several runs: critical, no verdict, a warning, not judged yet, healthy, in this order."""

    def rank(one: Judgement) -> float:
        if one.waits_until is not None:
            return 0.5  # it has no finding: a warning matters more
        return (HEALTHY, WARNING, NO_VERDICT, CRITICAL).index(one.exit_code)

    if not judgements:
        return NO_VERDICT
    return max(judgements, key=rank).exit_code


def counts_text(judgements: Sequence[Judgement]) -> str:
    """How many runs have which verdict, in one line: ``3 runs: 2 healthy, 1 CRITICAL``."""
    words = list(map(_word, judgements))
    every = dict.fromkeys([*_WORDS.values(), *words])
    counts = [f"{words.count(word):,} {word}" for word in every if word in words]
    return f"{plural(len(words), 'run')}: {', '.join(counts)}"


def _word(judgement: Judgement) -> str:
    forgiven = any(f.severity >= Severity.WARN for f, _ in judgement.findings)
    if judgement.exit_code == HEALTHY and forgiven:
        return "WARNING (ignored by --fail-on crit)"
    return _WORDS[judgement.exit_code]


def _notes_on_the_reading(watch: RunWatch) -> Iterator[str]:
    if busy := watch.busy():
        yield f"{busy}: the verdict covers what was read before"
    if watch.judged_again:
        yield f"{watch.judged_again} while it judged the run, which was judged again"


def _notes_on_the_log(watch: RunWatch) -> Iterator[str]:
    yield from _notes_on_the_reading(watch)
    if watch.defects.count:
        skipped = f"{plural(watch.defects.count, 'unreadable part')} skipped"
        note = f"{skipped}: {'; '.join(watch.defects.first)}"
        if not watch.file.foreign:
            note += "; repair: `moe-microscope check --format-only`"
        yield note
    if watch.scan.repeated:
        step, times = watch.scan.repeated
        yield f"step {step:,} written {times} times: only the first counts; log one line per step"
    state, _ = watch.state()
    last = _last_step(watch)
    over = not state.live and state not in (RunState.FINISHED, RunState.WAITING)
    if watch.latest and over:
        yield f"the run is {state}: the verdict covers its routers up to step {last:,} only"
    if watch.scan.end is not None and (watch.scan.end.step or 0) > last:
        yield f"the run ended at step {watch.scan.end.step:,}: the steps after {last:,} are missing"
    if watch.scan.lost_records:
        yield f"{watch.scan.lost_records:,} records were lost by the writer (disk full?)"
    if watch.run is not None:
        yield from _notes_on_the_header(watch.run, watch.source.missing)
    if watch.diagnosis is not None:
        if building_up := evidence(watch):
            yield building_up
        yield from _notes_on_blind_spots(watch.diagnosis)


def _notes_on_the_header(run: RunRecord, missing: str) -> Iterator[str]:
    if run.inferred:
        yield "the log has no run record: layers and top-k are inferred from the counts"
    if missing:
        yield missing
    if run.unconfirmed:
        yield f"taken for loads of experts without asking; confirm with {run.unconfirmed}"
    if run.counts != "exact":
        other = f"source.counts is {run.counts!r}, which is unknown: the sums are not checked"
        yield _COUNTS.get(run.counts, other)


def _notes_on_blind_spots(diagnosis: Diagnosis) -> Iterator[str]:
    if is_one_step(diagnosis.run):
        yield "a single dump: rules about changes over time do not apply"
    if not diagnosis.run.routers:
        return
    blind = diagnosis.blind_spots()
    for reason in dict.fromkeys(blind.values()):
        rules = [rule for rule, why in blind.items() if why == reason]
        verb = "is" if len(rules) == 1 else "are"
        yield f"{', '.join(rules)} {verb} not observable in this log: {reason}"


def _notes_on_the_request(request: CheckRequest, watch: RunWatch) -> Iterator[str]:
    criteria, diagnosis = request.criteria, watch.diagnosis
    if criteria.ignore:
        yield f"ignored rules: {', '.join(sorted(criteria.ignore))}"
    header = watch.run.profile if watch.run is not None else ""
    if criteria.profile and header in ("", criteria.profile):
        yield f"judged as {criteria.profile} (--profile)"
    elif criteria.profile:
        yield f"judged as {criteria.profile} (--profile, the header has {header})"
    elif header and diagnosis is not None and diagnosis.run.profile != header:
        judged = f"judged as {diagnosis.run.profile}, the header has {header}"
        yield f"{judged}; --profile chooses another"
    yield from request.remarks
    if watch.file.foreign:
        yield from request.source_notes()
    if not request.since_step:
        return
    note = f"only findings that began at step {request.since_step:,} or later"
    if not request.new_only:
        note += " or are active"
    last = _last_step(watch)
    if last < request.since_step:
        note += f"; the newest step is {last:,}"
    yield note
    if request.new_only and diagnosis is not None:
        yield from _still_active(diagnosis, request.since_step)


def _still_active(diagnosis: Diagnosis, since_step: int) -> Iterator[str]:
    older = group(e for e in diagnosis.episodes if e.active and e.onset < since_step)
    found = []
    for f in older:
        if f.severity >= Severity.WARN:
            where = f" in {listed(f.layers)}" if f.layers else ""
            found.append(f"{f.rule}{where} since step {f.onset:,}")
    if not found:
        return
    named = found[:_MOST_NAMED]
    if len(found) > _MOST_NAMED:
        named.append(f"and {len(found) - _MOST_NAMED} more")
    what = "an older finding is" if len(found) == 1 else "older findings are"
    yield f"{what} still active: {'; '.join(named)}"


def verdict_text(judgement: Judgement) -> str:
    """The report on one run: one line if it is healthy, else the causes, each with its findings."""
    word = _word(judgement)
    if judgement.exit_code == HEALTHY and any(" still active: " in n for n in judgement.notes):
        word = "nothing new"
    if judgement.waits_until is not None:
        word = f"{judgement.problem},"
    lines = [f"{judgement.run}: {word} at step {judgement.last_step:,} ({judgement.state})"]
    if judgement.problem and judgement.waits_until is None:
        lines.append(f"  {judgement.path}: {judgement.problem}")
    if judgement.cost is not None:
        lines.append(f"  cost: {model_cost(judgement.cost)}")
    for finding, advice in judgement.findings:
        text = _finding_text(finding, advice)
        if advice.cause:
            del text[2:]
        if advice.explains:  # the findings that follow
            label = finding.severity.label.upper()
            text[:0] = [f"{label} cause: {advice.explanation}", f"  next  {advice.next}"]
        lines += [f"  {line}" for line in text]
    lines += [f"  note: {note}" for note in judgement.notes]
    return "\n".join(lines)


def _finding_text(finding: Finding, advice: Advice) -> list[str]:
    label = f"{finding.severity.label.upper()} {finding.rule}"
    if finding.severity is Severity.INFO:
        return [f"{label}: {advice.short}"]
    return [f"{label}: {advice.verdict}", f"  why   {advice.why}", f"  next  {advice.next}"]


def verdict_json(judgements: Sequence[Judgement]) -> dict[str, Any]:
    """What ``check --json`` prints; the keys are documented and only change with the version."""
    runs = [
        {key: getattr(judgement, key) for key in _KEYS}
        | {"cost": msgspec.to_builtins(judgement.cost)}
        | {"findings": [finding_json(found, advice) for found, advice in judgement.findings]}
        for judgement in judgements
    ]
    return {"schema_version": SCHEMA_VERSION, "runs": runs}


class News(msgspec.Struct, frozen=True):
    """What happened to a finding of a followed run."""

    event: Event
    step: int
    """The last judged step at that time."""
    finding: Finding
    advice: Advice


class Alerts:
    """Each look compares the episodes with those of the previous one.

    Those of one rule that start between two looks are one piece of news. The first look reports
    what is active, and nothing that was already over.
    """

    def __init__(self, request: CheckRequest) -> None:
        """Only what counts by ``request`` is reported, and how it ends."""
        self._request = request
        self._known: _Known | None = None

    def news(self, diagnosis: Diagnosis | None) -> Sequence[News]:
        """Changes since the last look; an episode that is already over is ``opened`` only."""
        changed: dict[Event, list[Episode]] = {"opened": [], "worse": [], "recovered": []}
        # An episode withdrawn by a restart may return, and is reported again.
        before = self._known
        self._known = {}
        if diagnosis is None:
            return ()
        for episode in diagnosis.episodes:
            key = (episode.rule, episode.router_index, episode.recurrence, episode.onset)
            if self._request.counts(episode) or key in (before or ()):
                self._known[key] = (episode.severity, episode.active)
                if event := _event(before, key, episode):
                    changed[event].append(episode)
        return [
            News(event, diagnosis.last_step, finding, advice)
            for event, episodes in changed.items()
            for finding, advice in findings_with_advice(diagnosis, episodes)
        ]


def _event(before: _Known | None, key: _Key, episode: Episode) -> Event | None:
    """What happened to the episode since the last look; ``None``: nothing."""
    if before is None:
        return "opened" if episode.active else None
    if key not in before:
        return "opened"
    severity, active = before[key]
    if episode.severity > severity:
        return "worse"
    if episode.active == active:
        return None
    return "opened" if episode.active else "recovered"


def news_text(alert: News) -> str:
    """What ``check --follow`` prints of one alert; only the first line once it has recovered."""
    first, *rest = _finding_text(alert.finding, alert.advice)
    if alert.event != "opened":
        first = f"{alert.event}: {first}"
    if alert.event == "recovered":
        rest = []
    elif alert.advice.cause:
        rest.insert(-1, f"  cause {alert.advice.cause}")
    return "\n".join([f"step {alert.step:,}: {first}", *(f"  {line}" for line in rest)])


def news_json(file: RunFile, alert: News) -> dict[str, Any]:
    """One line of ``check --follow --json``, also what ``--notify-command`` gets."""
    return {
        "schema_version": SCHEMA_VERSION,
        "event": alert.event,
        "run": file.name,
        "path": safe_text(file.path, 1000),
        "step": alert.step,
        **finding_json(alert.finding, alert.advice),
    }
