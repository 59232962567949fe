"""How many real tokens every expert has seen, in a probe, a run or an importance matrix.

A training run changes its routers, so its last counted steps describe it; an evaluation does not,
and all of it counts.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from microscope_tui.report.further_tokens import Need, further
from microscope_tui.report.long_table import surviving_steps
from microscope_tui.runlog import RouterInfo, RunFile, RunRecord, StepEntry, Values

LAST_STEPS = 200
"""Counted steps at the end of a training run that describe it."""
_SHARES = 1_000_000
_LIMITS = {
    "top1": "only first choices are known: the real counts are higher",
    "local_rank": "these are the counts of one rank",
    "shares": "the counts are computed from shares and tokens",
}


@dataclass(slots=True)
class ExpertCoverage:
    """One expert in the steps that were counted."""

    index: int
    tokens: int = 0
    share: float = 0.0
    """Of the tokens, not of the pairs."""
    mean_weight: float | None = None
    mean_output_norm: float | None = None
    need: Need | None = None
    """What is missing; ``None`` if it has enough."""

    @property
    def saliency(self) -> float | None:
        """Product of both means."""
        if self.mean_weight is None or self.mean_output_norm is None:
            return None
        return self.mean_weight * self.mean_output_norm


@dataclass(slots=True)
class LayerCoverage:
    """All experts of one router."""

    router: RouterInfo
    tokens: int
    experts: list[ExpertCoverage]

    @property
    def short(self) -> list[ExpertCoverage]:
        """The experts with too few tokens, the fewest first."""
        return sorted((one for one in self.experts if one.need), key=lambda one: one.tokens)


@dataclass(frozen=True, slots=True)
class Coverage:
    """The coverage of a run."""

    run: str
    wanted: int
    first_step: int
    last_step: int
    steps: int
    """Counted steps between them."""
    sequence_length: int | None
    layers: Sequence[LayerCoverage]
    notes: Sequence[str]

    @property
    def short(self) -> list[tuple[LayerCoverage, ExpertCoverage]]:
        """All experts with too few tokens, the fewest first."""
        found = [(layer, expert) for layer in self.layers for expert in layer.short]
        return sorted(found, key=lambda pair: pair[1].tokens)


class NoCounts(ValueError):
    """The run has nothing to count; the message says why."""


@dataclass(slots=True)
class _Sums:
    """Sums over steps of one router."""

    router: RouterInfo
    counts: list[int]
    tokens: float = 0.0
    means: list[tuple[list[float], list[float]]] = field(default_factory=list)
    """Mean weight, then mean output norm: per expert the sum over pairs, and the pairs."""

    def add(self, row: Sequence[int], tokens: float, means: Sequence[Values | None]) -> None:
        self.counts = [have + new for have, new in zip(self.counts, row, strict=True)]
        self.tokens += tokens
        for (sums, pairs), values in zip(self.means, means, strict=True):
            for expert, value in enumerate(values if values and len(values) == len(row) else ()):
                if value is not None:
                    sums[expert] += value * row[expert]
                    pairs[expert] += row[expert]


def coverage_of(
    file: RunFile, wanted: int, first: int | None = None, last: int | None = None
) -> Coverage:
    """Count the tokens of every expert from step ``first`` to step ``last``.

    Without either, a training run is covered by its last ``LAST_STEPS`` counted steps.

    Raises:
        NoCounts: no step there has counts.
        OSError, UnknownFormat: as ``long_table.rows_of``.
    """
    chosen, run = _chosen(file, first, last)
    if not chosen or run is None:
        raise NoCounts("no step with counts" if first is last is None else "no counts in --steps")
    sums: list[_Sums] = []
    for now, entry in surviving_steps(file):
        if entry.record.step in chosen and entry.has_counts and now.routers == run.routers:
            sums = sums or [_empty(router) for router in now.routers]
            _add(sums, now, entry)
    layers = [_layer(one, wanted) for one in sums if one.tokens]
    if not layers:
        missing = "" if all(one.top_k for one in run.routers) else " or top_k (use --top-k)"
        raise NoCounts(f"counts without the number of tokens they belong to{missing}")
    notes = [_LIMITS[run.counts]] if run.counts in _LIMITS else []
    if len(layers) < len(run.routers):
        notes.append(f"{len(run.routers) - len(layers)} layers have no counts")
    return Coverage(
        run.run or file.name,
        wanted,
        min(chosen),
        max(chosen),
        len(chosen),
        run.sequence_length,
        layers,
        notes,
    )


def _chosen(
    file: RunFile, first: int | None, last: int | None
) -> tuple[frozenset[int], RunRecord | None]:
    """The steps to count, and the header of the last one."""
    steps: deque[int] = deque()
    run: RunRecord | None = None
    for now, entry in surviving_steps(file):
        step = entry.record.step
        if (first or 0) <= step and (last is None or step <= last) and entry.has_counts:
            if run is not None and now.routers != run.routers:
                steps.clear()  # another model from here on
            run = now
            steps.append(step)
            if first is last is None and now.profile != "eval" and len(steps) > LAST_STEPS:
                steps.popleft()
    return frozenset(steps), run


def _empty(router: RouterInfo) -> _Sums:
    zeros = [0.0] * router.num_experts
    return _Sums(router, [0] * router.num_experts, means=[(zeros[:], zeros[:]) for _ in range(2)])


def _add(sums: Sequence[_Sums], run: RunRecord, entry: StepEntry) -> None:
    means, record = entry.means(), entry.record
    for index, (one, row) in enumerate(zip(sums, entry.matrices().tokens_per_expert, strict=True)):
        if row is None or len(row) != one.router.num_experts:
            continue
        of_router = record.router.tokens[index] if record.router.tokens else None
        tokens = of_router if of_router is not None else record.tokens
        top_k = one.router.top_k  # 0: unknown
        if run.counts == "shares":
            pairs = (tokens or 0) * top_k
            row = [round(count / _SHARES * pairs) for count in row]
            tokens = tokens if top_k else None
        elif tokens is None and top_k:
            tokens = sum(row) / top_k
        if tokens is not None and 0 < tokens < 2**53:
            one.add(row, tokens, [values[index] for values in means])


def _layer(sums: _Sums, wanted: int) -> LayerCoverage:
    tokens = round(sums.tokens)
    experts = []
    for index, count in enumerate(sums.counts):
        weight, norm = (
            total[index] / pairs[index] if pairs[index] else None for total, pairs in sums.means
        )
        need = further(min(count, tokens), tokens, wanted)
        experts.append(ExpertCoverage(index, count, count / tokens, weight, norm, need))
    return LayerCoverage(sums.router, tokens, experts)
