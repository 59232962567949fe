"""One step's sums of all routers as one vector: summed over ranks at once, copied to the host
once, and turned into a line of the log.

The ranks agree on the rows at the first logged step: a rank that does not contribute to one (it has
not this router, its probe failed, or it sees the tokens of another rank) adds zeros.
"""

import functools
import math
import resource
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from microscope_tui.probe.sites import Site

Key = tuple[int, int]
"""Place of a router, and number of the pass through it, as it may run several times."""
Values = list[float | None]
SUMS = ("entropy", "z_loss", "selected_mass", "margin")
"""Sums over the real tokens that had logits."""
MEANS = (*SUMS, "mean_entropy", "max_logit")
EXTRA = ("failed", "passes", "stop", "loss", "losses", "aux", "auxes", "unlisted", "unlooked")
"""Further numbers in the vector of a probe: failed ranks, forward passes, whether rank 0 requests
the training to stop, sums of losses and how many, passes through routers that the log has no row
for, ranks that did not look at their gradients; then the squared gradient norm of every row, what
``Shares.vector`` and ``Looks.vector`` return."""
_OWN_KEYS = ("kind", "time", "expert_bias", "mean_weight", "mean_output_norm", "incomplete")
"""Keys of a line that no further number may replace."""


@dataclass(frozen=True, slots=True)
class Row:
    """A router in the log, and which pass through it if there are several."""

    place: int
    number: int
    name: str
    num_experts: int
    top_k: int
    kind: str | None = None
    """Of its ``Scores``; what follows of its ``Site``."""
    drops: bool = False
    optional: bool = False


@dataclass(slots=True)
class StepSums:
    """What all ranks saw in a step; a list entry per row."""

    extra: list[float]
    """The further numbers, see ``EXTRA``."""
    tokens: list[int] = field(default_factory=list)
    counts: list[list[int]] = field(default_factory=list)
    unrouted: list[int] = field(default_factory=list)
    dropped: list[float] = field(default_factory=list)
    router: dict[str, Values] = field(default_factory=lambda: defaultdict(list))
    """Summaries by their name in the log; ``None`` without logits."""
    weights: list[list[float]] = field(default_factory=list)
    norms: list[list[float]] = field(default_factory=list)
    biases: list[list[float]] = field(default_factory=list)

    @property
    def named(self) -> dict[str, float]:
        """The further numbers that ``EXTRA`` names."""
        return dict(zip(EXTRA, self.extra, strict=False))

    def add(self, row: Row, numbers: Sequence[float], E: int) -> None:
        """Append the numbers of ``row``, which is the next one in the log.

        ``numbers``: as ``Layout`` orders them, with room for ``E`` experts each.
        """
        size = row.num_experts
        self.counts.append([int(n) for n in numbers[:size]])
        self.weights.append(list(numbers[E : E + size]))
        self.norms.append(list(numbers[2 * E : 2 * E + size]))
        unrouted, tokens, dropped, scored, *means = numbers[3 * E :]
        self.unrouted.append(int(unrouted))
        self.tokens.append(int(tokens))
        self.dropped.append(dropped)
        read: dict[str, float | None] = dict(zip(MEANS, means, strict=True))
        if row.kind == "probabilities":  # there are no logits
            read["z_loss"] = read["max_logit"] = None
        margin = means[SUMS.index("margin")]
        if margin <= 0 or margin == math.inf:  # unknown, or no expert to compare with
            read["margin"] = None
        for name, value in read.items():
            self.router[name].append(value if scored else None)


def rows_of(sites: Sequence[Site], passes: Sequence[int], top_k: Sequence[int]) -> list[Row]:
    """The rows of the log, one per router and pass; the names of several passes end in ``#n``.

    Args:
        sites: The routers.
        passes: How often each was called in a forward pass; 0 counts as one.
        top_k: Of each.
    """
    rows: list[Row] = []
    for place, (site, number, k) in enumerate(zip(sites, passes, top_k, strict=True)):
        kind = site.scores.kind if site.scores else None
        for n in range(max(1, number)):
            name = f"{site.name}#{n + 1}" if number > 1 else site.name
            rows.append(Row(place, n, name, site.num_experts, k, kind, site.drops, site.optional))
    return rows


class Layout:
    """The rows of the log, and their places in the vector.

    Of every row: four numbers per expert (count, and sums of probability, weight and norm), pairs
    that went to no expert, tokens, dropped pairs, tokens with logits, ``SUMS``. Then the largest
    logits of every rank, and further numbers.
    """

    def __init__(self, rows: Sequence[Row], dtype: torch.dtype = torch.float64) -> None:
        """``dtype``: of the means."""
        self.rows, self._dtype = list(rows), dtype
        self.num_experts = max((row.num_experts for row in rows), default=0)
        """Of the largest router: smaller ones have zeros at the end."""
        self._width = 4 * self.num_experts + 4 + len(SUMS)

    def vector(
        self, parts: Iterable[tuple[Key, Tensor, Tensor]], extra: Tensor, rank: int, ranks: int
    ) -> Tensor:
        """This rank's share of the step, fp64; nothing in it waits for the device.

        Args:
            parts: Sums and largest logit of every router that was counted, some in pieces.
            extra: Further numbers, fp64, appended as they are.
            rank: Of this process; its largest logits have a place of their own.
            ranks: All of them: the vectors of all ranks are added.
        """
        found: defaultdict[Key, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for key, flat_N, peak in parts:
            found[key].append((flat_N.to(extra.device), peak.to(extra.device)))
        nothing_N = extra.new_zeros(self._width)
        sums, peaks = [], []
        for row in self.rows:
            pieces = found[row.place, row.number] or [(nothing_N, nothing_N[0])]
            flats_N, some = zip(*pieces, strict=True)
            sums.append(functools.reduce(torch.add, flats_N))
            peaks.append(functools.reduce(torch.maximum, some))
        # A sum cannot compute a maximum, but it can gather the maximum of every rank.
        maxima_RL = extra.new_zeros(ranks, len(self.rows))
        if peaks:
            maxima_RL[rank] = torch.stack(peaks)
        return torch.cat([*sums, maxima_RL.reshape(-1), extra])

    def table(self, vector: Tensor) -> Tensor:
        """The rows of a vector, ``[L, width]``; each begins with the counts of its experts."""
        return vector[: len(self.rows) * self._width].view(-1, self._width)

    def is_stopped(self, vector: Tensor, ranks: int) -> bool:
        """Whether rank 0 requests to end the training; ``vector`` is summed over ``ranks``
        ranks.
        """
        before = len(self.rows) * (self._width + ranks)
        return bool(vector[before + EXTRA.index("stop")] > 0)

    def read(
        self, vector: Tensor, ranks: int, biases: Sequence[Any], meanwhile: Any = lambda: None
    ) -> StepSums:
        """The numbers of a vector that is summed over ranks, in one copy to the host.

        Args:
            vector: Of ``vector``, summed.
            ranks: How many were summed.
            biases: Selection bias of every row, copied along.
            meanwhile: Called before the host waits for the device.
        """
        E, table_LN = self.num_experts, self.table(vector)
        maxima_RL, extra = vector[table_LN.numel() :].tensor_split([ranks * len(self.rows)])
        summed_LN = table_LN.to(self._dtype)
        scored_L1 = summed_LN[:, 4 * E + 3 : 4 * E + 4]
        shares_LE = summed_LN[:, E : 2 * E] / scored_L1
        parts = [
            table_LN[:, :E],
            table_LN[:, 2 * E : 4 * E + 4],
            summed_LN[:, 4 * E + 4 :] / scored_L1,
            torch.special.entr(shares_LE).sum(dim=-1, keepdim=True),
            maxima_RL.view(ranks, -1).amax(dim=0)[:, None],
        ]
        numbers_LM = torch.cat(parts, dim=1)
        there = [bias.to(vector.device) for bias in biases if bias is not None]
        whole = torch.cat([numbers_LM.reshape(-1), extra, *there])
        copy = whole.to("cpu", non_blocking=whole.is_cuda)
        done = torch.cuda.current_stream(whole.device).record_event() if whole.is_cuda else None
        meanwhile()
        if done:
            done.synchronize()
        flat = copy.tolist()
        width = numbers_LM.shape[1]
        at = numbers_LM.numel() + len(extra)
        found = StepSums(flat[numbers_LM.numel() : at])
        for index, row in enumerate(self.rows):
            found.add(row, flat[index * width : (index + 1) * width], E)
        for bias in biases:
            size = 0 if bias is None else len(bias)
            found.biases.append(flat[at : at + size])
            at += size
        return found


def summaries(
    sums: StepSums, rows: Sequence[Row], grad_squares: Sequence[float]
) -> dict[str, Values]:
    """The ``router`` object of a line, without lists that have no value."""
    found: dict[str, Values] = {**sums.router}
    found["grad_norm"] = [None] * len(grad_squares)
    found["drop_rate"] = [None] * len(rows)
    for place, square in enumerate(grad_squares):
        if not math.isnan(square):
            found["grad_norm"][place] = math.sqrt(square)
    for place, row in enumerate(rows):
        if row.drops:
            pairs = sums.tokens[place] * row.top_k
            found["drop_rate"][place] = _mean(sums.dropped[place], pairs)
    if any(sums.unrouted):
        found["unrouted"] = [*sums.unrouted]
    if len(set(sums.tokens)) > 1:
        found["tokens"] = [*sums.tokens]
    return {name: row for name, row in found.items() if any(v is not None for v in row)}


def step_record(
    sums: StepSums,
    rows: Sequence[Row],
    saliency: bool,
    losses: Mapping[str, Any],
    scalars: Mapping[str, Any],
) -> dict[str, Any]:
    """The arguments of ``RunRecorder.record_step``, from what all ranks saw and ``scalars``.

    Args:
        sums: Of the step, over all ranks.
        rows: Of the log.
        saliency: Whether mean weights and output norms of the experts are written too.
        losses: What the trainer gave under ``losses``.
        scalars: Further numbers by their name in the log; names that the probe writes itself are
            ignored.
    """
    extra = sums.named
    unseen = [not n for n in sums.tokens]
    if any(unseen) and not all(unseen):
        unseen = [none and not row.optional for none, row in zip(unseen, rows, strict=True)]
    counts: list[list[int] | None] = [*sums.counts]
    for place, none in enumerate(unseen):
        if none:
            counts[place] = None
    record = {name: value for name, value in scalars.items() if name not in _OWN_KEYS}
    record |= {"tokens": max(sums.tokens, default=0) or None, "tokens_per_expert": counts}
    found = summaries(sums, rows, sums.extra[len(EXTRA) :][: len(rows)])
    record["router"] = {**scalars["router"], **found}
    record["loss"] = _mean(extra["loss"], extra["losses"])
    record["losses"] = {**losses}
    if (aux := _mean(extra["aux"], extra["auxes"])) is not None:
        record["losses"].setdefault("aux", aux)
    if any(sums.biases):
        record["expert_bias"] = sums.biases
    if saliency:
        record["mean_weight"] = _per_pair(sums.weights, sums.counts)
        record["mean_output_norm"] = _per_pair(sums.norms, sums.counts)
    if lacking := _incomplete(extra, rows, unseen):
        record["incomplete"] = lacking
    return record


def _mean(total: float, number: float) -> float | None:
    return total / number if number else None


def _per_pair(sums: list[list[float]], counts: list[list[int]]) -> list[list[float | None]]:
    """``[]`` for a router without measurements."""
    found: list[list[float | None]] = []
    for row, pairs in zip(sums, counts, strict=True):
        found.append([])
        if any(row):
            found[-1] += map(_mean, row, pairs)
    return found


def _incomplete(extra: Mapping[str, float], rows: Sequence[Row], unseen: Sequence[bool]) -> str:
    """Empty if the line holds all of the step."""
    failed = round(extra["failed"])
    names = [row.name for none, row in zip(unseen, rows, strict=True) if none]
    lacking = [f"{failed} ranks did not count"] if failed else []
    if extra["passes"] and names:
        lacking.append(f"not seen: {shortened(names)}")
    if extra["unlisted"]:
        lacking.append("more passes through routers than in the first logged step")
    return "; ".join(lacking) or ("" if extra["passes"] else "no forward pass was counted")


def memory_bytes() -> int:
    """Peak memory: on a GPU what torch allocated there, else that of the process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def shortened(names: Sequence[str]) -> str:
    """The first eight names, and an ellipsis for the others."""
    rest = " …" if len(names) > 8 else ""
    return ", ".join(names[:8]) + rest
