"""One run in the list: from a glance at its log, or from following it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from microscope_tui.runlog import Glance, RunFile
from microscope_tui.watch.run_watch import RunWatch
from microscope_tui.watch.state import CRASHED_S, STALE_S, RunState, age_of, state_of
from microscope_tui.watch.verdict import Trouble, Verdict, verdict_on


@dataclass(frozen=True, slots=True)
class RunCard:
    """One run in the list."""

    file: RunFile
    state: RunState
    age_s: float | None
    step: int
    planned_steps: int | None
    loss: float | None
    verdict: Verdict | None
    """Its verdict; ``None`` if not known yet."""
    error: str | None
    end_reason: str | None = None
    """Why the run ended, if logged."""
    judged: float = 0.0
    """Share of the log that the diagnosis has seen."""
    queued: bool = False
    """Whether it will be judged in the background."""
    open: bool = False
    pinned: bool = False
    """Whether the open run is compared with it."""
    selected: bool = False

    @property
    def findings(self) -> Sequence[Trouble] | None:
        """Active alerts, worst first; ``None`` where the run is not judged."""
        return None if self.verdict is None else [t for t in self.verdict.troubles if t.active]

    @property
    def recovered(self) -> Sequence[Trouble]:
        """Recovered alerts."""
        return [] if self.verdict is None else [t for t in self.verdict.troubles if not t.active]


@dataclass(frozen=True, slots=True)
class Seen:
    """The result of a glance, and when the file was seen to change (``None``: not yet)."""

    file: RunFile
    ends: Glance
    changed_at: float | None

    @property
    def may_be_judged(self) -> bool:
        """Whether it can be read and has ended."""
        if self.ends.error or self.ends.identity is None:
            return False
        age = age_of(self.file.modified, changed_at=self.changed_at)
        if self.file.is_read_whole:  # while it grows it would be read again and again
            return self.file.origin is None or (age is not None and age >= STALE_S)
        over = self.ends.end is not None or (age is not None and age >= CRASHED_S)
        return over and self.ends.last is not None


def card_of(
    run: RunFile,
    seen: Seen | None,
    watch: RunWatch | None,
    verdict: Verdict | None,
    now: float | None,
) -> RunCard:
    """The card of ``run``.

    Args:
        seen: the last glance at it.
        watch: the run where it is followed.
        verdict: what is known of it where it is not.
        now: the time, in Unix seconds; by default that of the clock.
    """
    found = seen.ends if seen else Glance()
    last, end, plan = found.last, found.end, found.run
    age = age_of(run.modified, now, seen.changed_at if seen else None)
    state = state_of(
        age,
        deleted=False,
        has_steps=last is not None,
        end=end,
        step_times_s=[found.step_time_s] if found.step_time_s else [],
    )
    if run.is_read_whole and watch is None:
        state = RunState.ARCHIVED  # an archive's end is unknown before it is unpacked
    if verdict is not None and plan is not None and verdict.last_step:
        plan = replace(plan, planned_steps=verdict.planned_steps)  # of all run records the newest
    error = found.error or (watch.error if watch else None)
    if watch is not None:
        with watch.lock:
            verdict = verdict_on(watch) if watch.diagnosis is not None else None
            if watch.latest is not None and (watch.complete or last is None):
                # The watch has read more than a glance, and the header is the same.
                last, end, plan = watch.latest.record, watch.shown.end, watch.run
                state, age = watch.state(now)
    if error and last is None:
        state = RunState.ERROR
    elif seen is None and watch is None:
        state = RunState.UNKNOWN  # not read yet
    return RunCard(
        file=run,
        state=state,
        age_s=age,
        step=last.step if last else verdict.last_step if verdict else 0,
        planned_steps=plan.planned_steps if plan else None,
        loss=last.loss if last else None,
        verdict=verdict,
        error=error,
        end_reason=end.reason if end else None,
    )
