"""The calls of routers in one forward pass, kept until it ends and then counted together.

Counting a call takes forty small operations, whose start costs more than their arithmetic. Calls
of the same shape are stacked, so that the start is paid once for all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from microscope_tui.probe.families import bias_of
from microscope_tui.probe.sites import Choice, Site
from microscope_tui.probe.tally import Scored, Tally

Key = tuple[int, int]
"""Place of a site, and the number of the pass through it."""

_WAITING_BYTES = 16 * 1024 * 1024
"""About as much may wait to be counted, which then takes six times as much for a moment."""


class Call(NamedTuple):
    """What is kept of a call: copies, because the model may change its own tensors later."""

    key: Key
    ids_TK: Tensor
    real_T: Tensor | None
    kept_TK: Tensor | None
    logits_TE: Tensor | None
    bias_E: Tensor | None


class Counted(NamedTuple):
    """L calls that were counted together."""

    tally: Tally
    slots_LTK: Tensor
    """Of ``Tally.add``."""
    scored: Scored | None
    """Of ``Tally.add_scores``; ``None`` without logits."""


class Calls:
    """Collects the calls of one optimizer step in tallies."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self._sites = sites
        self._waiting: list[Call] = []
        self._tallies: dict[Any, Tally] = {}

    @property
    def tallies(self) -> list[Tally]:
        """What has been counted since ``clear``; a router may be in several."""
        return list(self._tallies.values())

    @property
    def many_wait(self) -> bool:
        """Whether to ``count`` before the pass ends: judged by the last call."""
        tensors = self._waiting[-1].ids_TK, self._waiting[-1].logits_TE
        # Not ``nbytes``: compiled for any number of tokens, tensors do not have it.
        size = sum(one.numel() * one.element_size() for one in tensors if one is not None)
        return size * len(self._waiting) > _WAITING_BYTES

    def clear(self) -> None:
        """Forget everything."""
        self._waiting, self._tallies = [], {}

    def add(
        self, key: Key, choice: Choice, real_T: Tensor | None, logits_TE: Tensor | None
    ) -> None:
        """Keep a call until ``count``.

        Args:
            real_T: False for padding; ``None`` where there is none.
            logits_TE: What the router scored, if that is known.
        """
        site, ids = self._sites[key[0]], choice.ids_TK
        ids_TK = ids.detach().reshape(-1, ids.shape[-1]).long().clone()
        kind = None if site.scores is None else site.scores.kind
        if kind is None or (logits_TE is not None and len(logits_TE) != len(ids_TK)):
            logits_TE = None
        bias_E = None if logits_TE is None or not site.plain_choice else bias_of(site)
        self._waiting.append(
            Call(
                key,
                ids_TK,
                None if real_T is None else real_T.to(ids_TK.device),
                _copy(choice.kept_TK),
                _copy(logits_TE),
                _copy(bias_E),
            )
        )

    def count(self) -> list[Counted]:
        """Count the calls that wait."""
        groups: dict[Any, list[Call]] = {}
        for call in self._waiting:
            groups.setdefault(self._shape(call), []).append(call)
        self._waiting = []
        return [self._together(calls) for calls in groups.values()]

    def _shape(self, call: Call) -> Any:
        """What calls that are stacked have in common."""
        site = self._sites[call.key[0]]
        shapes = [None if part is None else part.shape for part in call[1:]]
        scores = None if site.scores is None else site.scores.kind
        return site.num_experts, call.ids_TK.device, scores, site.plain_choice, *shapes

    def _together(self, calls: list[Call]) -> Counted:
        site = self._sites[calls[0].key[0]]
        keys = tuple(call.key for call in calls)
        ids_LTK = torch.stack([call.ids_TK for call in calls])
        real_LT = _stacked([call.real_T for call in calls])
        tally = self._tally(keys, site.num_experts, ids_LTK)
        slots_LTK = tally.add(ids_LTK, real_LT, _stacked([call.kept_TK for call in calls]))
        logits_LTE = _stacked([call.logits_TE for call in calls])
        if logits_LTE is None:
            return Counted(tally, slots_LTK, None)
        assert site.scores is not None
        assert site.scores.kind is not None
        bias_LE, padded = _stacked([call.bias_E for call in calls]), real_LT is not None
        scored = tally.add_scores(
            logits_LTE, site.scores.kind, slots_LTK, bias_LE, site.plain_choice, padded
        )
        return Counted(tally, slots_LTK, scored)

    def _tally(self, keys: tuple[Key, ...], num_experts: int, ids_LTK: Tensor) -> Tally:
        what = keys, ids_LTK.shape[-1], ids_LTK.device
        if what not in self._tallies:
            with torch.inference_mode(False):  # evaluated in it, read outside of it
                self._tallies[what] = Tally(keys, num_experts, *what[1:])
        return self._tallies[what]


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone()


def _stacked(parts: list[Tensor | None]) -> Tensor | None:
    """All of them, or none: calls of one shape."""
    there = [part for part in parts if part is not None]
    return torch.stack(there) if there else None
