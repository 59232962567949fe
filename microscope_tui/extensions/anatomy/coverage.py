"""How many real tokens every expert has seen, in a probe, a run or an importance matrix.

A training run changes its routers, so its last counted steps describe it.

How many more tokens an expert needs comes with a 95 % interval: its n hits in T tokens measure the
share T / (T + M) of N − 1 hits that are spread over the T + M tokens that it takes to reach N (see
docs/coverage-and-mismatch.md). It is the score interval of Wilson (1927) with continuity correction
(Newcombe 1998, Stat. Med. 17:857-872, method 4). Without a hit there is only a lower limit: the
rule of three.
"""

import math
import textwrap
from collections import defaultdict, deque
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import msgspec

from microscope_tui.diagnosis import value_at
from microscope_tui.draw.export import surviving_steps
from microscope_tui.draw.words import aligned, short_number
from microscope_tui.runlog import (
    RouterInfo,
    RunFile,
    RunRecord,
    StepEntry,
    Values,
    has_grown,
    plural,
)
from microscope_tui.watch.counted import NoCounts

LAST_STEPS = 200
"""Counted steps that describe a training run."""
_SHARES = 1_000_000
_LIMITS = {
    "top1": "only first choices are known: the real counts are higher",
    "local_rank": "these are the counts of one rank",
    "shares": "the counts are computed from shares and tokens",
}
_Z = 1.959963984540054
_Z2 = _Z * _Z
_NEVER_SEEN = 0.05
"""Chance of no hit at the limit: ln 20 ≈ 3 gives the rule of three."""
_WIDTH = 79
_MOST_ROWS = 20
_CAUTION = (
    "Rarely used does not mean useless: the rarest experts of a model can matter more for each of "
    "their tokens than the others."
)
_INTERVAL = (
    "In brackets: 95 % interval, if more text is like this text and its tokens are independent. "
    "Text in long passages of one subject needs more."
)


class Need(msgspec.Struct, frozen=True):
    """How many more tokens an expert needs: an estimate, and its interval of 95 %."""

    tokens: float | None
    """Estimate; ``None`` without a hit."""
    low: float
    """Without a hit, a one-sided limit of 95 %."""
    high: float | None
    """``None`` without a hit: it may never be reached."""


def further(hits: int, tokens: int, wanted: int) -> Need | None:
    """What is needed after ``hits`` in ``tokens`` tokens; ``None`` if ``wanted`` is reached."""
    missing = wanted - hits
    if missing <= 0:
        return None
    if hits == 0:
        limit = 1 - _NEVER_SEEN ** (1 / (wanted - 1)) if wanted > 1 else 1.0
        return Need(None, max(float(missing), tokens * (1 - limit) / limit), None)
    least, most = score_interval(hits, wanted - 1)
    low, high = (tokens * (1 - share) / share for share in (most, least))
    return Need(missing * tokens / hits, max(float(missing), low), max(float(missing), high))


def score_interval(hits: int, of: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion of 1 or more, with continuity correction."""
    share = hits / of
    scale = 2 * (of + _Z2)
    middle = 2 * hits + _Z2
    low, high = 0.0, 1.0
    if hits:
        root = _Z2 - 2 - 1 / of + 4 * share * (of * (1 - share) + 1)
        low = max(0.0, (middle - 1 - _Z * math.sqrt(root)) / scale)
    if hits < of:
        root = _Z2 + 2 - 1 / of + 4 * share * (of * (1 - share) - 1)
        high = min(1.0, (middle + 1 + _Z * math.sqrt(max(0.0, root))) / scale)
    return low, high


class ExpertCoverage(msgspec.Struct, frozen=True):
    """What one expert got, and how much more it needs; ``None`` where it is not known."""

    expert: int
    tokens: int
    share: float
    """Of the tokens, not of the pairs."""
    mean_weight: float | None
    mean_output_norm: float | None
    saliency: float | None
    more_tokens: float | None
    """As in ``Need``; 0 if it has enough."""
    more_tokens_low: float
    more_tokens_high: float | None
    more_sequences: float | None


class LayerCoverage(msgspec.Struct, frozen=True):
    """What the experts of one layer got; ``depth`` is the place of the layer in the model."""

    layer: str
    depth: int
    top_k: int
    tokens: int
    experts: list[ExpertCoverage]


class Coverage(msgspec.Struct, frozen=True):
    """Its JSON has the same keys."""

    run: str
    min_tokens: int
    first_step: int
    last_step: int
    steps: int
    """Counted steps between them."""
    sequence_length: int | None
    short: int
    notes: list[str]
    layers: list[LayerCoverage]

    def behind(self) -> list[tuple[LayerCoverage, ExpertCoverage]]:
        """Experts that need more tokens, with their layer; the fewest tokens first."""
        found = [(layer, e) for layer in self.layers for e in layer.experts if e.more_tokens_low]
        return sorted(found, key=lambda one: one[1].tokens)


class _Sums:
    def __init__(self, router: RouterInfo) -> None:
        self.router = router
        self.counts = [0] * router.num_experts
        self.tokens = 0.0
        self.means = [
            (defaultdict[int, float](float), defaultdict[int, float](float)) for _ in range(2)
        ]
        """Weight, then output norm: per expert the sum over pairs, and the pairs."""

    def add(
        self, counts: str, row: Sequence[int], tokens: float | None, means: Sequence[Values | None]
    ) -> None:
        """Add a step; ``counts``: their kind."""
        top_k = self.router.top_k
        spent = float(tokens or 0)  # 0: unknown
        if counts == "shares":
            if not top_k:
                return
            row = [round(count / _SHARES * spent * top_k) for count in row]
        elif tokens is None and top_k:
            spent = sum(row) / top_k
        if not 0 < spent < 2**53:
            return
        self.tokens += spent
        self.counts = list(map(sum, zip_longest(self.counts, row, fillvalue=0)))
        for (sums, pairs), values in zip(self.means, means, strict=True):
            if values is None or len(values) != len(row):
                continue
            for expert, value in enumerate(values):
                if value is not None:
                    sums[expert] += value * row[expert]
                    pairs[expert] += row[expert]


def coverage_of(
    file: RunFile,
    wanted: int,
    first: int | None = None,
    last: int | None = None,
) -> Coverage:
    """Count the tokens of every expert from step ``first`` to step ``last``, both included.

    Without either, a training run is covered by its last ``LAST_STEPS`` counted steps, another
    run by all.

    Args:
        file: The run.
        wanted: Tokens that every expert should have.
        first: ``None``: from the beginning.
        last: ``None``: to the end.

    Raises:
        NoCounts: no step there has counts.
        OSError: as ``export.rows_of``.
        UnknownFormat: as ``export.rows_of``.
    """
    whole_run = first is last is None
    low = first or 0
    high = math.inf if last is None else last
    counted: _Counted | None = None
    window: deque[tuple[RunRecord, StepEntry]] = deque(maxlen=LAST_STEPS)
    for run, entry in surviving_steps(file):
        if not entry.has_counts or not low <= entry.record.step <= high:
            continue
        if counted is None or not has_grown(counted.run.routers, run.routers):  # another model
            counted = _Counted(run)
            window.clear()
        counted.run = run
        if whole_run and run.profile != "eval":
            window.append((run, entry))
        else:
            counted.add(run, entry)
    if counted is None:
        raise NoCounts("no step with counts" if whole_run else "no counts in --steps")
    for run, entry in window:
        counted.add(run, entry)
    return counted.coverage(file, wanted)


class _Counted:
    def __init__(self, run: RunRecord) -> None:
        self.run = run
        self._sums = [_Sums(router) for router in run.routers]
        self._steps: list[int] = []

    def add(self, run: RunRecord, entry: StepEntry) -> None:
        self._steps.append(entry.record.step)
        record = entry.record
        means = entry.means()
        rows = entry.matrices().tokens_per_expert
        for index, (one, row) in enumerate(zip(self._sums, rows, strict=True)):
            if row is not None and len(row) == run.routers[index].num_experts:
                tokens = value_at(record.router.tokens, index)
                if tokens is None:
                    tokens = record.tokens
                one.add(run.counts, row, tokens, [values[index] for values in means])

    def coverage(self, file: RunFile, wanted: int) -> Coverage:
        run = self.run
        sums = [one for one in self._sums if one.tokens]
        if not sums:
            missing = "" if all(one.top_k for one in run.routers) else " or top_k (use --top-k)"
            raise NoCounts(f"counts without the number of tokens they belong to{missing}")
        notes = []
        if run.counts in _LIMITS:
            notes.append(_LIMITS[run.counts])
        if len(sums) < len(run.routers):
            notes.append(f"{len(run.routers) - len(sums)} layers have no counts")
        layers = [_layer(one, wanted, run.sequence_length) for one in sums]
        return Coverage(
            run=run.run or file.name,
            min_tokens=wanted,
            first_step=min(self._steps),
            last_step=max(self._steps),
            steps=len(self._steps),
            sequence_length=run.sequence_length,
            short=sum(e.more_tokens_low > 0 for layer in layers for e in layer.experts),
            notes=notes,
            layers=layers,
        )


def _layer(sums: _Sums, wanted: int, length: int | None) -> LayerCoverage:
    tokens = round(sums.tokens)
    experts = []
    for index, count in enumerate(sums.counts):
        weight, norm = (_mean(total[index], pairs[index]) for total, pairs in sums.means)
        saliency = None
        if weight is not None and norm is not None:
            saliency = weight * norm
        need = further(min(count, tokens), tokens, wanted) or Need(0, 0, 0)
        expert = ExpertCoverage(
            expert=index,
            tokens=count,
            share=count / tokens,
            mean_weight=weight,
            mean_output_norm=norm,
            saliency=saliency,
            more_tokens=need.tokens,
            more_tokens_low=need.low,
            more_tokens_high=need.high,
            more_sequences=need.tokens / length if need.tokens and length else None,
        )
        experts.append(expert)
    router = sums.router
    return LayerCoverage(router.name, router.depth, router.top_k, tokens, experts)


def _mean(total: float, pairs: float) -> float | None:
    return total / pairs if pairs else None


def coverage_text(coverage: Coverage) -> str:
    """What `coverage` prints: a verdict, and a table of the experts with the fewest tokens."""
    short = coverage.behind()
    experts = sum(len(layer.experts) for layer in coverage.layers)
    tokens = max(layer.tokens for layer in coverage.layers)
    steps = (
        f"{coverage.steps:,} counted steps ({coverage.first_step:,} to {coverage.last_step:,})"
        if coverage.steps > 1
        else f"step {coverage.last_step:,}"
    )
    head = [f"{coverage.run}: {tokens:,} tokens in {steps}"]
    head += [f"note: {note}" for note in coverage.notes]
    wanted = plural(coverage.min_tokens, "token")
    if not short:
        head += [f"All {experts:,} experts have at least {wanted}.", _CAUTION]
        return "\n".join(_wrapped(*head))
    layers = len({id(layer) for layer, _ in short})
    head.append(
        f"{len(short):,} of {experts:,} experts have fewer than {wanted}, in {layers:,} of "
        f"{len(coverage.layers):,} layers."
    )
    table = _table(short[:_MOST_ROWS], coverage.sequence_length)
    if len(short) > _MOST_ROWS:
        table.append(f"… {len(short) - _MOST_ROWS:,} more; --json lists all of them")
    total = _total([one for _, one in short], coverage.sequence_length)
    return "\n".join([*_wrapped(*head), "", *table, "", *_wrapped(total, _INTERVAL, _CAUTION)])


def _table(short: Sequence[tuple[LayerCoverage, ExpertCoverage]], length: int | None) -> list[str]:
    """The first experts in aligned columns: the first to the left, the others to the right."""
    experts = [one for _, one in short]
    columns = {
        "layer": [layer.layer for layer, _ in short],
        "expert": [str(one.expert) for one in experts],
        "tokens": [f"{one.tokens:,}" for one in experts],
        "share": [_percent(one.share) for one in experts],
        "more tokens": [_need_words(one) for one in experts],
    }
    if length:
        columns["sequences"] = [_sequences(one, length) for one in experts]
    if any(one.saliency is not None for one in experts):
        columns["weight"] = [_value(one.mean_weight) for one in experts]
        columns["norm"] = [_value(one.mean_output_norm) for one in experts]
        columns["product"] = [_value(one.saliency) for one in experts]
        if length:
            del columns["share"]
    table = [(head, *cells) for head, cells in columns.items()]
    return aligned(list(zip(*table, strict=True)))


def _need_words(expert: ExpertCoverage) -> str:
    if expert.more_tokens is None:
        return f"more than {short_number(expert.more_tokens_low)}"
    low, high = short_number(expert.more_tokens_low), short_number(expert.more_tokens_high)
    return f"{short_number(expert.more_tokens)} ({low} to {high})"


def _sequences(expert: ExpertCoverage, length: int) -> str:
    if expert.more_tokens is None:
        return f"> {short_number(expert.more_tokens_low // length)}"
    return short_number(-(-expert.more_tokens // length))


def _value(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _percent(share: float) -> str:
    return f"{share:.2%}" if share >= 1e-4 or not share else f"{share * 100:.1g}%"


def _total(short: Sequence[ExpertCoverage], length: int | None) -> str:
    if unseen := [one.more_tokens_low for one in short if one.more_tokens is None]:
        tokens, amount = max(unseen), f"more than {short_number(max(unseen))}"
        experts = plural(len(unseen), "expert was", "experts were")
        head, tail = f"{experts} never chosen: to reach all of them takes", ", if it is possible."
    else:
        slowest = max(short, key=lambda one: one.more_tokens or 0.0)
        tokens, amount = slowest.more_tokens or 0.0, _need_words(slowest)
        head, tail = "The expert that is farthest behind needs", "."
    sequences = f", {short_number(-(-tokens // length))} sequences of {length:,}" if length else ""
    return f"{head} {amount} further tokens{sequences}{tail}"


def _wrapped(*paragraphs: str) -> list[str]:
    return [
        line for text in paragraphs for line in textwrap.wrap(text, _WIDTH, break_on_hyphens=False)
    ]


def coverage_json(coverage: Coverage) -> dict[str, Any]:
    return {"schema_version": 1, **msgspec.to_builtins(coverage)}
