"""Counts what routers chose in one optimizer step, on their device until the line is written.

``train.py`` passes the routings of its model to a ``RoutingCounter``; the hooks of
``forward_hooks.py`` pass on each call of a router of another model as a ``Call``. Counting takes
thirty small operations, whose launch costs more than their arithmetic: the calls of a step wait, up
to a limit, and those of the same shape are stacked and launched once. Nothing here waits for the
device. Ids that are not experts share one
more slot, so that none is out of range.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from microscope_tui.probe.sites import Choice, Site
from microscope_tui.probe.step_sums import SUMS, Key, Layout, Row, StepSums, summaries

Scored = tuple[Tensor, Tensor | None]
"""Entropy and margin of every token, ``[L, T]``; no margin where there is none."""

WAITING_BYTES = 16 * 1024 * 1024
"""About as many bytes may wait to be counted; counting needs six times as many for a moment."""
_TINY = torch.finfo(torch.float32).tiny
WEIGHTS, NORMS = 1, 2


class Call(NamedTuple):
    """One call of a router for T tokens."""

    key: Key
    num_experts: int
    kind: str | None
    """What turns the logits into scores, see ``Scores``."""
    has_margin: bool
    """The k best of the biased scores are chosen."""
    ids_TK: Tensor
    """Chosen experts; any other id counts as unrouted."""
    real_T: Tensor | None = None
    """False for padding; ``None`` where there is none."""
    kept_TK: Tensor | None = None
    """False where a capacity dropped the pair; ``None`` where none can."""
    logits_TE: Tensor | None = None
    bias_E: Tensor | None = None
    """Selection bias, added to the scores before the choice."""
    scores_TE: Tensor | None = None
    """Scores and margin as the router itself computed them: then its ids are experts, too."""
    margin_T: Tensor | None = None
    loss_T: Tensor | None = None
    """True for tokens with loss; ``None`` where that is unknown."""

    @classmethod
    def of(cls, site: Site, choice: Choice, logits_TE: Tensor | None) -> Call:
        """Copies, because the model may change its tensors later; without gradients enabled.
        Its key follows with ``placed``."""
        ids_TK = choice.ids_TK.reshape(-1, choice.ids_TK.shape[-1]).to(torch.int64, copy=True)
        plain = site.plain_choice
        kind = site.scores.kind if site.scores else None
        tensors = {"kept_TK": choice.kept_TK}
        if kind is not None and logits_TE is not None:
            logits_TE = logits_TE.reshape(-1, logits_TE.shape[-1])
            if len(logits_TE) == len(ids_TK):
                tensors["logits_TE"] = logits_TE
                if plain:
                    tensors["bias_E"] = site.bias()
        copies = {name: one.clone() for name, one in tensors.items() if one is not None}
        return cls((-1, 0), site.num_experts, kind, plain, ids_TK, choice.real_T, **copies)

    def placed(self, key: Key, real_T: Tensor | None, loss_T: Tensor | None) -> Call:
        """The same call with its router and pass; masks ``[T]`` are moved to its device."""
        masks = {"real_T": real_T, "loss_T": loss_T}
        given = {name: mask for name, mask in masks.items() if mask is not None}
        moved: Any = {name: mask.to(self.ids_TK.device) for name, mask in given.items()}
        return self._replace(key=key, **moved)

    @property
    def bytes(self) -> int:
        """Of ids and logits, which are nearly all that a waiting call holds."""
        tensors = self.ids_TK, self.logits_TE
        # Not ``nbytes``: compiled for any number of tokens, tensors do not have it.
        return sum(one.numel() * one.element_size() for one in tensors if one is not None)

    def shape(self) -> Any:
        """A key for grouping: equal for calls whose tensors can be stacked."""
        shapes = [getattr(part, "shape", None) for part in self[4:]]
        return self[1:4], self.ids_TK.device, *shapes


class Counted(NamedTuple):
    """L calls that were counted together."""

    tally: Tally
    slots_LTK: Tensor
    """Expert of every pair; E for no expert, E + 1 for padding."""
    scored: Scored | None
    """``None`` without logits."""


class Calls:
    """Collects the calls of one optimizer step in tallies."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        """``dtype``: of sums over tokens."""
        self._dtype = dtype
        self.clear()

    @property
    def tallies(self) -> list[Tally]:
        """Since ``clear``; a router may be in several, or several times in one."""
        return list(self._tallies.values())

    @property
    def seen(self) -> dict[Key, int]:
        """The routers and passes that were counted, with the experts per token (k) of each."""
        return {key: tally.top_k for tally in self.tallies for key in tally.keys}

    def parts(self, width: int) -> Iterator[tuple[Key, Tensor, Tensor]]:
        """Everything that is summed over ranks, and the largest logit, of each router and pass.

        ``width``: experts of the largest router.
        """
        for tally in self.tallies:
            yield from zip(tally.keys, tally.flat(width), tally.max_logit_L, strict=True)

    def clear(self) -> None:
        """Forget all calls, those that wait included: a new step begins."""
        self._waiting: list[Call] = []
        self._tallies: dict[Any, Tally] = {}

    def add(self, call: Call) -> None:
        """Keep a call until ``count``; its tensors must not change before."""
        self._waiting.append(call)

    def count(self) -> list[Counted]:
        """Count the calls that wait; those of one shape are stacked and counted together."""
        counted: list[Counted] = []
        groups: dict[Any, list[Call]] = {}
        for call in self._waiting:
            shape = call.shape()
            group = groups.setdefault(shape, [])
            group.append(call)
            if len(group) * call.bytes > WAITING_BYTES:
                counted.append(self._together(groups.pop(shape)))
        self._waiting = []
        return counted + [self._together(calls) for calls in groups.values()]

    def _together(self, calls: list[Call]) -> Counted:
        keys, ids_TK = tuple(call.key for call in calls), calls[0].ids_TK
        what = keys, calls[0].num_experts, ids_TK.shape[-1], ids_TK.device, self._dtype
        if what not in self._tallies:
            with torch.inference_mode(False):  # evaluated in it, read outside of it
                self._tallies[what] = Tally(*what)
        tally, parts = self._tallies[what], zip(*(call[4:] for call in calls), strict=True)
        stacked = Call(*calls[0][:4], *map(_stacked, parts))  # type: ignore[arg-type]  # ids are there
        slots_LTK = tally.add(stacked)
        scored = None if stacked.logits_TE is None else tally.add_scores(stacked, slots_LTK)
        return Counted(tally, slots_LTK, scored)


class Tally:
    """Sums of one step over L passes through routers with the same number of experts."""

    def __init__(
        self,
        keys: tuple[Key, ...],
        num_experts: int,
        top_k: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        L, E = len(keys), num_experts
        self.keys, self.num_experts, self.top_k = keys, E, top_k
        self.counts_LE2 = torch.zeros(L, E + 2, dtype=torch.int64, device=device)
        """Pairs per expert, then those that went to no real expert, then those of padding."""
        self.tokens_L3 = torch.zeros(L, 3, dtype=torch.int64, device=device)
        """Real tokens, pairs that a capacity dropped, and real tokens with logits."""
        self.sums_LN = torch.zeros(L, len(SUMS), dtype=dtype, device=device)
        self.experts_L3E = torch.zeros(L, 3, E, dtype=dtype, device=device)
        """Sums of probabilities, weights and norms of outputs."""
        self.max_logit_L = torch.zeros(L, dtype=torch.float32, device=device)
        self.with_loss_LE2 = torch.zeros(L, E + 2, dtype=torch.float64, device=device)
        """As ``counts_LE2``, of pairs with a loss that no capacity dropped; NaN: unknown."""

    def add(self, calls: Call) -> Tensor:
        """Count L calls with stacked tensors; returns the slot of every pair, ``[L, T, K]``."""
        E, slots_LTK, real_LT = self.num_experts, calls.ids_TK, calls.real_T
        if calls.scores_TE is None:
            slots_LTK = slots_LTK.where((slots_LTK >= 0) & (slots_LTK < E), E)
        real: Any = slots_LTK.shape[1]
        if real_LT is not None:
            slots_LTK = slots_LTK.where(real_LT[..., None], E + 1)
            real = real_LT.sum(dim=-1, keepdim=True)
        self.tokens_L3[:, :: 3 if calls.logits_TE is None else 2] += real
        slots_LP = slots_LTK.flatten(1)
        self.counts_LE2.scatter_add_(1, slots_LP, torch.ones_like(slots_LP))
        if calls.kept_TK is not None:
            dropped_LP = ~calls.kept_TK.reshape(slots_LP.shape) & (slots_LP < E)
            self.tokens_L3[:, 1] += dropped_LP.sum(dim=1)
        if calls.loss_T is None:
            self.with_loss_LE2.fill_(torch.nan)
        else:
            counted_LTK = calls.loss_T[..., None].expand(slots_LTK.shape)
            if calls.kept_TK is not None:
                counted_LTK = counted_LTK & calls.kept_TK.reshape(slots_LTK.shape)
            ones_LP = counted_LTK.flatten(1).double()
            self.with_loss_LE2.scatter_add_(1, slots_LP, ones_LP)
        return slots_LTK

    def add_scores(self, calls: Call, slots_LTK: Tensor) -> Scored:
        """Add what the routers scored; ``slots_LTK`` is what ``add`` returned."""
        assert calls.logits_TE is not None
        E, kind, logits_LTE = self.num_experts, calls.kind, calls.logits_TE.float()
        padded = calls.real_T is not None
        if padded:
            real_LT = slots_LTK[..., 0] != E + 1
            logits_LTE = logits_LTE.masked_fill(~real_LT[..., None], 0.0)
        log_sum_LT1 = logits_LTE.logsumexp(dim=-1, keepdim=True)
        # Scores of skip and identity slots come after those of the experts and are left out.
        scores_LTE = calls.scores_TE
        if scores_LTE is None:
            scores_LTE = scores_of(logits_LTE, log_sum_LT1, kind)[..., :E]
        probability_LTE = scores_LTE / scores_LTE.sum(dim=-1, keepdim=True)
        chosen_LTK = slots_LTK.clamp(max=E - 1)
        selected_LT = (probability_LTE.gather(-1, chosen_LTK) * (slots_LTK < E)).sum(dim=-1)
        # As torch.special.entr, which is several times as slow on a CPU.
        entropy_LT = -(probability_LTE * probability_LTE.clamp_min(_TINY).log()).sum(dim=-1)
        z_LT, margin_LT = log_sum_LT1[..., 0].square(), calls.margin_T
        if calls.has_margin and margin_LT is None and logits_LTE.shape[-1] == E > self.top_k:
            margin_LT = _margin(scores_LTE, chosen_LTK, calls.bias_E)
        known_LT = torch.zeros_like(z_LT) if margin_LT is None else margin_LT
        sums_L4T = torch.stack((entropy_LT, z_LT, selected_LT, known_LT), dim=1)
        if padded:  # chosen and not multiplied: what padding scores may not be finite
            sums_L4T = sums_L4T.where(real_LT[:, None], 0.0)
            probability_LTE = probability_LTE.where(real_LT[..., None], 0.0)
        self.sums_LN += sums_L4T.sum(dim=-1, dtype=self.sums_LN.dtype)
        self.experts_L3E[:, 0] += probability_LTE.sum(dim=1, dtype=self.sums_LN.dtype)
        self.max_logit_L = torch.maximum(self.max_logit_L, logits_LTE.abs().amax(dim=(1, 2)))
        return entropy_LT, margin_LT

    def add_values(self, place: int, values_LTK: Tensor, slots_LTK: Tensor) -> None:
        """Add a number per pair to its expert, at ``WEIGHTS`` or ``NORMS`` of ``experts_L3E``."""
        spread_LE2 = torch.zeros_like(self.counts_LE2, dtype=self.sums_LN.dtype)
        slots_LP = slots_LTK.flatten(1)
        values_LP = values_LTK.detach().reshape(slots_LP.shape).to(spread_LE2.dtype)
        spread_LE2.scatter_add_(1, slots_LP, values_LP)
        self.experts_L3E[:, place] += spread_LE2[:, : self.num_experts]

    def flat(self, width: int) -> Tensor:
        """Of every call what ``Layout`` names, in fp64; ``width``: most experts of a router."""
        E, counts_LE2 = self.num_experts, self.counts_LE2.double()
        experts_L4E = torch.cat([counts_LE2[:, None, :E], self.experts_L3E], dim=1)
        if width > E:
            experts_L4E = nn.functional.pad(experts_L4E, (0, width - E))
        rest = counts_LE2[:, E : E + 1], self.tokens_L3, self.sums_LN
        return torch.cat([experts_L4E.flatten(1), *rest], dim=1)


class RoutingCounter:
    """Counts one optimizer step of ``train.py``."""

    def __init__(self, config: Any, routers: Sequence[Any]) -> None:
        """``config``: of a ``moe_model``; ``routers``: those that train, in forward order."""
        E, K = config.n_routed_experts, config.num_experts_per_tok
        self._num_experts = E
        self._drops = config.capacity_factor is not None
        self._rows = [
            Row(place, 0, "", E, K, config.scoring_func, self._drops)
            for place in range(len(routers))
        ]
        self._layout = Layout(self._rows, torch.float32)
        self._routers, self._calls = routers, Calls(torch.float32)

    @torch.no_grad()
    def add(self, routings: Sequence[Any]) -> None:
        """Count one micro-batch, without padding.

        ``routings``: a ``moe_model.Routing`` per router. ``ValueError``: there are more or fewer
        than routers.
        """
        for row, one in zip(self._rows, routings, strict=True):
            kept_TK = one.kept_TK if self._drops else None
            self._calls.add(
                Call(
                    (row.place, 0), row.num_experts, row.kind, True, one.expert_ids_TK, None,
                    kept_TK, one.logits_TE, None, one.scores_TE, one.margin_T,
                )
            )  # fmt: skip
        self._calls.count()

    @torch.no_grad()
    def all_reduce(self, ranks: Any, extra: Tensor) -> Tensor:
        """Sum the step and ``extra``, fp64, over all ranks in one collective.

        Args:
            ranks: Has ``rank``, ``size`` and ``sum``; every rank counts the same routers on
                other tokens.
            extra: Further numbers, ``[N]`` with N ≥ 1.

        Returns:
            ``extra``, summed.
        """
        parts = self._calls.parts(self._num_experts)
        self._vector = self._layout.vector(parts, extra, ranks.rank, ranks.size)
        self._ranks = ranks.size
        ranks.sum(self._vector)
        return self._vector[-len(extra) :]

    @property
    def counts(self) -> Tensor:
        """Selected pairs ``[L, E]`` after ``all_reduce``, int64."""
        return self._layout.table(self._vector)[:, : self._num_experts].long()

    def read(self, meanwhile: Any = lambda: None) -> StepSums:
        """The numbers of the step, in one copy to the host; call it after ``all_reduce``.

        ``meanwhile`` is called before the host waits for the device.
        """
        biases = [router.expert_bias for router in self._routers]
        return self._layout.read(self._vector, self._ranks, biases, meanwhile)

    def record(self, sums: StepSums, grad_squares: Sequence[float]) -> dict[str, Any]:
        """The arguments of ``RunRecorder.record_step`` that follow from the routings."""
        return {
            "tokens": max(sums.tokens, default=0),
            "tokens_per_expert": sums.counts,
            "expert_bias": sums.biases,
            "router": summaries(sums, self._rows, grad_squares),
        }


def scores_of(logits_LTE: Tensor, log_sum_LT1: Tensor, kind: str | None) -> Tensor:
    """What the router makes of its logits before it chooses.

    Args:
        logits_LTE: Of L calls with T tokens each; for ``probabilities`` these are the scores.
        log_sum_LT1: Logarithm of the sum of their exponentials, used by a softmax.
        kind: See ``Scores``; any that it does not list is a softmax.
    """
    if kind == "probabilities":
        return logits_LTE
    if kind == "sqrtsoftplus":
        return nn.functional.softplus(logits_LTE).sqrt()
    # A softmax from the sum that the z-loss needs too: torch's is slow on a CPU with few columns.
    return logits_LTE.sigmoid() if kind == "sigmoid" else (logits_LTE - log_sum_LT1).exp()


def _margin(scores_LTE: Tensor, chosen_LTK: Tensor, bias_LE: Tensor | None) -> Tensor:
    """Distance of the last chosen to the best one that was left out."""
    if bias_LE is not None:
        scores_LTE = scores_LTE + bias_LE[:, None].to(scores_LTE)
    last_LT = scores_LTE.gather(-1, chosen_LTK).amin(dim=-1)
    best_LT = scores_LTE.scatter(-1, chosen_LTK, float("-inf")).amax(dim=-1)
    return last_LT - best_LT


def _stacked(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Calls of one shape all have a tensor, or none has."""
    there = [part for part in parts if part is not None]
    return torch.stack(there) if there else None


class Traced(NamedTuple):
    """The choices of one router for T real tokens."""

    ids_TK: Tensor
    """Chosen experts, int64, the largest weight first; −1 is a slot that chose no real expert."""
    weights_TK: Tensor
    """Factors of their outputs, fp32; NaN: unknown."""
    margin_T: Tensor
    """Selection score of the last chosen less that of the best one left out, fp32; NaN: unknown."""
    entropy_T: Tensor
    """Of the router's probabilities over all experts, in nats, fp32; NaN: unknown."""


class Tracer:
    """Collects the calls of all routers in one forward pass of the model."""

    def __init__(self) -> None:
        self._calls: dict[Key, list[Traced]] = {}

    def add(self, counted: Counted, weights_TK: Tensor | None) -> None:
        """Keep one call.

        Args:
            counted: One router and pass; with its entropies and margins, if it has scores.
            weights_TK: By which the experts of a token are sorted, the largest first; ``None``
                if unknown, which keeps the order of the choice.
        """
        slots_TK, num_experts = counted.slots_LTK[0], counted.tally.num_experts
        real_T = slots_TK[:, 0] <= num_experts
        slots_TK = slots_TK[real_T]
        ids_TK = slots_TK.where(slots_TK < num_experts, slots_TK.new_full((), -1))
        unknown_TK = torch.full_like(ids_TK, torch.nan, dtype=torch.float32)
        if weights_TK is None:
            weights_TK, size_TK = unknown_TK, unknown_TK.nan_to_num()
        else:
            weights_TK = weights_TK.detach().reshape(real_T.shape[0], -1)[real_T].float()
            size_TK = weights_TK.nan_to_num(nan=-torch.inf)
        # Stable, so that ties stay in the order of the choice; empty slots come last.
        size_TK = size_TK.masked_fill(ids_TK < 0, -torch.inf)
        order_TK = size_TK.argsort(dim=-1, descending=True, stable=True)
        entropy_T = margin_T = unknown_TK[:, 0]
        if counted.scored is not None:
            entropy_1T, margin_1T = counted.scored
            entropy_T = entropy_1T[0, real_T]
            if margin_1T is not None:
                margin_T = margin_1T[0, real_T]
        ids_TK, weights_TK = (one.gather(1, order_TK) for one in (ids_TK, weights_TK))
        pieces = self._calls.setdefault(counted.tally.keys[0], [])
        pieces.append(Traced(ids_TK, weights_TK, margin_T, entropy_T))

    def take(self) -> dict[Key, Traced]:
        """Return and forget the choices by place and pass; a router may take a batch in pieces."""
        calls, self._calls = self._calls, {}
        return {
            key: Traced(*(torch.cat(parts) for parts in zip(*pieces, strict=True)))
            for key, pieces in calls.items()
        }
