"""A baseline: the state of another run's routers, to judge a run against.

A fine-tuning on narrow data starves experts that the original model starved too; what matters is
the change.
"""

from collections import Counter
from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from microscope_tui import measures
from microscope_tui.diagnosis import Criteria, RouterBaseline, StepView
from microscope_tui.diagnosis.context import Context
from microscope_tui.diagnosis.signals import median
from microscope_tui.runlog import (
    Course,
    RouterInfo,
    RunFile,
    RunRecord,
    StepEntry,
    UnknownFormat,
    drop_from,
    entries_of,
    plural,
)

MOST_STEPS = 200


class BadBaseline(ValueError):
    """The message says why, and what to do."""


class AgainstBaseline(Criteria, frozen=True):
    """Training on from another model is a fine-tuning, also where the header has no profile, which
    means ``pretrain``."""

    def context(self, run: RunRecord) -> Context:
        """The same, but as a fine-tuning where nothing else is known."""
        found = Criteria.context(self, run)
        if self.profile or found.relative:
            return found
        return replace(found, run=replace(found.run, profile="finetune"))


class Baseline(msgspec.Struct, frozen=True):
    """The state of another run's routers over its last steps with counts."""

    run: str
    """Name of the run, for messages."""
    routers: tuple[RouterInfo, ...]
    first_step: int
    """The steps that were summed up reach from here …"""
    last_step: int
    """… to here."""
    steps: int
    """How many of them have counts; at most ``MOST_STEPS``."""
    reference: RouterBaseline

    def mismatch(self, run: RunRecord) -> str | None:
        """How the routers of ``run`` differ from these, in words."""
        mine, theirs = _shape(self.routers), _shape(run.routers)
        return None if mine == theirs else f"the baseline has {mine}, the run has {theirs}"


def read_baseline(file: RunFile) -> Baseline:
    """Sum up the last steps of ``file`` that have counts.

    ``BadBaseline``: it cannot be read, has another format version, or holds no step with counts.
    """
    try:
        run, steps = _last_steps(file)
    except UnknownFormat as error:
        raise BadBaseline(f"{file.path}: {error}; name another run") from error
    except OSError as error:
        reason = error.strerror or error
        raise BadBaseline(f"{file.path}: cannot be read: {reason}; name another run") from error
    if run is None or not steps:
        raise BadBaseline(
            f"{file.path}: holds no step with tokens_per_expert; "
            "a baseline needs counts, name a run that logs them"
        )
    return Baseline(
        run=file.name,
        routers=run.routers,
        first_step=steps[0].record.step,
        last_step=steps[-1].record.step,
        steps=len(steps),
        reference=_reference(run.routers, steps),
    )


def _last_steps(file: RunFile) -> tuple[RunRecord | None, Sequence[StepEntry]]:
    run: RunRecord | None = None
    steps: list[tuple[int, StepEntry]] = []
    course = Course()
    for entry in entries_of(file):
        if isinstance(entry, RunRecord):
            if run is not None and run.routers != entry.routers:
                steps = []  # another model from here on
                course = Course()
            run = entry
        drop_from(steps, course.take(entry))
        if isinstance(entry, StepEntry) and entry.has_counts and not course.repeats:
            steps = [*steps[1 - MOST_STEPS :], (entry.record.step, entry)]
    return run, [entry for _, entry in steps]


def _reference(routers: Sequence[RouterInfo], steps: Sequence[StepEntry]) -> RouterBaseline:
    views = [StepView(step.record, routers, step.counts) for step in steps]
    return RouterBaseline(*zip(*(_state(views, *pair) for pair in enumerate(routers)), strict=True))


def _state(
    views: Sequence[StepView], index: int, router: RouterInfo
) -> tuple[float | None, frozenset[int] | None, float | None, float | None]:
    """Starved share, dead experts, MaxVio and collapse index of one router; ``None`` if unknown."""
    rows = [row for view in views if (row := view.full_counts(index)) is not None and any(row)]
    if not rows:
        return None, None, None, None
    totals = [sum(column) for column in zip(*rows, strict=True)]
    effective = map(measures.effective_experts, rows)
    found = [measures.collapse_index(e, router.num_experts, router.top_k) for e in effective]
    known = [value for value in found if value is not None]
    return (
        measures.starved_experts(totals) / len(totals),
        frozenset(e for e, total in enumerate(totals) if total == 0),
        median([(measures.max_load(row) or 1.0) - 1.0 for row in rows]),
        median(known) if known else None,
    )


def _shape(routers: Sequence[RouterInfo]) -> str:
    kinds = Counter((r.num_experts, r.top_k or "k unknown") for r in routers)
    return ", ".join(
        f"{plural(n, 'router')} of {experts} experts, top-{top_k}"
        for (experts, top_k), n in list(kinds.items())[:8]
    )
