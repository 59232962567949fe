"""The diagnosis of a run while it trains, step by step.

Every line goes through the code of the log's readers, so that numbers are rounded as in the file,
and counts exist only if the line has them: ``check`` gives the same alerts at the same step. Its
state is bytes for a checkpoint; with them a resumed run is judged as if it had never stopped.
"""

from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec.structs import replace

from microscope_tui.diagnosis import (
    BadState,
    Diagnosis,
    Episode,
    Finding,
    Severity,
    causes,
    no_verdict,
    overall,
    report,
    restore,
    save,
    unknown,
)
from microscope_tui.diagnosis.signals import BiasSource, CountSource
from microscope_tui.runlog import EventRecord, RunReader, RunRecord, StepEntry

STATE_VERSION = 1
MOST_LINES = 5
"""Findings that the verdict names; ``check`` prints all."""
_COLLAPSES = ("COLLAPSE", "DIVERGED")
"""What ``on_collapse`` acts on."""
_WORDS = {Severity.WARN: "WARNING", Severity.CRITICAL: "CRITICAL", Severity.ERROR: "NO VERDICT"}


@dataclass(frozen=True, slots=True)
class Alert:
    """Trouble of one rule that began or grew worse at a step, in one or more routers."""

    step: int
    rule: str
    severity: str
    """``info``, ``warn``, ``crit`` or ``error`` (a fault of the measurement)."""
    layers: tuple[str, ...]
    """Names of the routers in forward order; empty if it is about the whole run."""
    onset: int
    """First step of the evidence."""
    verdict: str
    why: str
    next: str
    cause: str = ""
    """What explains it, with the findings of other rules; empty where that is unknown."""

    def __str__(self) -> str:
        """One line as ``check`` prints it: ``CRIT COLLAPSE: Router collapse in L3 since …``."""
        return f"{self.severity.upper()} {self.rule}: {self.verdict}"

    @property
    def is_collapse(self) -> bool:
        """A router has collapsed, or the loss is lost: critical, not only a warning."""
        return self.rule in _COLLAPSES and self.severity == "crit"

    def as_values(self) -> dict[str, Any]:
        """The ``values`` of its event in the log; readers derive ``why`` and ``next``."""
        names = ("rule", "severity", "layers", "onset", "verdict")
        return {name: getattr(self, name) for name in names}


class _Saved(msgspec.Struct):
    version: int
    run: RunRecord
    since: int
    diagnosis: bytes


class RunJudge:
    """Runs the rules of the monitor over a run that is being trained, step by step.

    Only one thread may use it.
    """

    def __init__(self, header: bytes, state: bytes | None = None) -> None:
        """Judge from the first step on, or continue from ``state``.

        Args:
            header: The line of the run record.
            state: What ``save`` returned after the step before the next one.

        Raises:
            BadState: ``state`` is damaged, or has another version or another model.
            ValueError: the header is not a run record.
        """
        self._reader = RunReader("run")
        run = next(iter(self._reader.feed(header)), None)
        if not isinstance(run, RunRecord):
            reasons = "; ".join(self._reader.defects.first)
            raise ValueError(f"the header cannot be judged ({reasons}): fix the run record")
        self._settings = _settings(run)
        self.since = max(1, run.resumed_at_step or 1)
        """First step that was judged; later than 1 if a run was resumed without its state."""
        if state is None:
            self._diagnosis = Diagnosis(run)
            if self.since > 1:
                self._diagnosis.restart(self.since)
        else:
            self._diagnosis, self.since = _resumed(run, state)

    def observe(self, line: bytes, counts: CountSource, biases: BiasSource) -> list[Alert]:
        """Judge one step; return what began or grew worse at it.

        Args:
            line: The step's line, with or without its matrices.
            counts: Gives the counts of the router at an index, as a reader reads them; ``None``
                if the log has none.
            biases: The same for its selection bias.
        """
        diagnosis, alerts = self._diagnosis, list[Alert]()
        for entry in self._reader.feed(line):
            if not isinstance(entry, StepEntry):
                continue
            step = entry.record.step
            if step == diagnosis.last_step:
                continue  # a repeated step: readers take the first one
            # Our own lines have all summaries: none has to be derived from the counts.
            diagnosis.observe(entry.record, counts, biases)
            if any(episode.grades[-1].step == step for episode in diagnosis.episodes):
                alerts += self._alerts(step)
        return alerts

    def observe_event(self, event: EventRecord) -> None:
        """Take an event of the run: advice names a checkpoint to return to."""
        self._diagnosis.observe_event(event)

    def save(self) -> bytes:
        """The state after the last step, for a checkpoint; alerts that were not fetched are not
        in it.
        """
        diagnosis = save(self._diagnosis)
        return msgspec.msgpack.encode(_Saved(STATE_VERSION, self._settings, self.since, diagnosis))

    def collapsed(self) -> tuple[str, ...]:
        """Names of the routers that are collapsed now, critically; ``DIVERGED`` for the run."""
        return tuple(
            getattr(e.router, "name", e.rule) for e in self._diagnosis.episodes if _is_collapse(e)
        )

    def collapse_onset(self) -> int | None:
        """The step at which the trouble behind the present collapses began; resume before it."""
        found = [
            cause.onset
            for cause in causes(self._diagnosis.episodes, self._diagnosis.known)
            if any(map(_is_collapse, cause.findings))
        ]
        return min(found, default=None)

    def verdict(self) -> str:
        """One line per finding, the worst first; else ``healthy``, or ``not judged yet``."""
        diagnosis = self._diagnosis
        if not diagnosis.last_step:
            return "NO VERDICT: no step was judged"
        diagnosis.conclude()
        since = f" (judged from step {self.since:,} on)" if self.since > 1 else ""
        found = [pair for pair in report(diagnosis) if pair[0].severity > Severity.INFO]
        why = no_verdict(diagnosis, self._why_not_measured).why
        if why or not found:
            return f"{why or 'healthy'}{since}"
        word = _WORDS[overall(finding for finding, _ in found)]
        found.sort(key=lambda pair: _word(pair[0]) != word)
        lines = list[str]()
        for finding, advice in found[:MOST_LINES]:
            if advice.explains:
                lines.append(f"{_word(finding)} cause: {advice.explanation}")
            lines.append(f"{_word(finding)} {finding.rule}: {advice.verdict}")
        lines[0] += since
        if len(found) > MOST_LINES:
            lines.append(f"and {len(found) - MOST_LINES} more")
        return "\n".join(lines)

    def _why_not_measured(self) -> str:
        run = self._diagnosis.run
        if all(router.num_experts <= router.top_k for router in run.routers):
            return "NO VERDICT: no router has more experts than a token chooses"
        if unknown(run, "top_k"):
            return "NO VERDICT: top_k is unknown, write it in the header"
        return ""

    def _alerts(self, step: int) -> list[Alert]:
        found = report(self._diagnosis, shown=lambda e: e.grades[-1].step == step)
        return [
            Alert(
                step, f.rule, f.severity.label, f.layers, f.onset, a.verdict, a.why, a.next, a.cause
            )
            for f, a in found
        ]


def _is_collapse(found: Episode | Finding) -> bool:
    """It lasts, and is critical."""
    return found.active and found.rule in _COLLAPSES and found.severity is Severity.CRITICAL


def _word(finding: Finding) -> str:
    is_over = finding.severity is Severity.ERROR and not finding.active
    return "WARNING" if is_over else _WORDS[finding.severity]


def _settings(run: RunRecord) -> RunRecord:
    return replace(run, run="", time=None, resumed_at_step=None)


def _resumed(run: RunRecord, state: bytes) -> tuple[Diagnosis, int]:
    """The judgement of ``state``, and since when it judges, under the header ``run``."""
    try:
        kept = msgspec.msgpack.decode(state, type=_Saved)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadState(f"not the state of a judge: {error}") from None
    if kept.version != STATE_VERSION:
        raise BadState(f"the state has version {kept.version}, expected {STATE_VERSION}")
    if kept.run.routers != run.routers:
        raise BadState(
            f"the state has {len(kept.run.routers)} other routers than the {len(run.routers)} of "
            "this run"
        )
    diagnosis = restore(kept.diagnosis, kept.run)
    first = run.resumed_at_step
    if first is not None and first <= diagnosis.last_step:
        diagnosis.restart(first)  # the state is of a later step than the weights
    if first is not None and first > 1 and first - 1 not in diagnosis.checkpoints:
        # The state is part of that checkpoint, so it is older than the checkpoint's event.
        diagnosis.observe_event(EventRecord("checkpoint", step=first - 1))
    if _settings(run) != kept.run:
        diagnosis.change_header(run)
    return diagnosis, kept.since
