"""A baseline: the state of another run's routers, to judge a run against.

A fine-tuning on narrow data starves experts that the original model starved too. What matters is
the change, so the last steps of the other run are summed up as a ``RouterBaseline``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from microscope_tui import measures
from microscope_tui.diagnosis import Context, Criteria, RouterBaseline, StepView, median
from microscope_tui.runlog import (
    Course,
    RouterInfo,
    RunFile,
    RunRecord,
    StepEntry,
    UnknownFormat,
    drop_from,
    entries_of,
)

MOST_STEPS = 200


class BadBaseline(ValueError):
    """The run cannot be a baseline; the message says why and what to do."""


class AgainstBaseline(Criteria):
    """Criteria with a baseline: training on from another model is a fine-tuning.

    A header that says nothing of a profile says ``pretrain``, and who names a baseline wants to
    know what changed; ``finetune`` and ``eval`` stand as they are.
    """

    __slots__ = ()

    def context(self, run: RunRecord) -> Context:
        """The context of ``run``."""
        found = Criteria.context(self, run)
        if self.profile or found.relative:
            return found
        return Context(run, "finetune", found.limits, found.baseline)


@dataclass(frozen=True, slots=True)
class Baseline:
    """State of the routers in the last steps of a run."""

    run: str
    routers: tuple[RouterInfo, ...]
    first_step: int
    last_step: int
    steps: int
    reference: RouterBaseline

    def mismatch(self, run: RunRecord) -> str | None:
        """How the routers of ``run`` differ from those of the baseline, in words; ``None`` if they
        match.
        """
        mine, theirs = _shape(self.routers), _shape(run.routers)
        return None if mine == theirs else f"the baseline has {mine}, the run has {theirs}"


def read_baseline(file: RunFile) -> Baseline:
    """Sum up the last steps of ``file`` that have counts.

    Raises:
        BadBaseline: it cannot be read, or holds no step with counts.
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
                steps, course = [], Course()  # another model from here on
            run = entry
        drop_from(steps, course.take(entry))
        if isinstance(entry, StepEntry) and entry.has_counts and not course.repeats:
            steps = [*steps[1 - MOST_STEPS :], (entry.record.step, entry)]
    return run, [entry for _, entry in steps]


def _reference(routers: Sequence[RouterInfo], steps: Sequence[StepEntry]) -> RouterBaseline:
    starved: list[float | None] = []
    dead: list[frozenset[int] | None] = []
    violation: list[float | None] = []
    collapse: list[float | None] = []
    views = [StepView(step.record, routers, step.counts) for step in steps]
    for index, router in enumerate(routers):
        rows = [row for view in views if (row := view.full_counts(index)) is not None and any(row)]
        if not rows:
            starved, dead = [*starved, None], [*dead, None]
            violation, collapse = [*violation, None], [*collapse, None]
            continue
        totals = [sum(column) for column in zip(*rows, strict=True)]
        starved.append(measures.starved_experts(totals) / len(totals))
        dead.append(frozenset(e for e, total in enumerate(totals) if total == 0))
        violation.append(median([(measures.max_load(row) or 1.0) - 1.0 for row in rows]))
        found = (measures.balance(row, router.top_k).collapse_index for row in rows)
        known = [value for value in found if value is not None]
        collapse.append(median(known) if known else None)
    return RouterBaseline(tuple(starved), tuple(dead), tuple(violation), tuple(collapse))


def _shape(routers: Sequence[RouterInfo]) -> str:
    kinds = list(dict.fromkeys((r.num_experts, r.top_k) for r in routers))
    if len(kinds) == 1:
        noun = "router" if len(routers) == 1 else "routers"
        return f"{len(routers)} {noun} of {kinds[0][0]} experts, top-{kinds[0][1] or 'k unknown'}"
    each = ", ".join(f"{r.num_experts} (top-{r.top_k or 'k unknown'})" for r in routers[:8])
    more = f" and {len(routers) - 8} more" if len(routers) > 8 else ""
    return f"{len(routers)} routers of {each}{more} experts"
