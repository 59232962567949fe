"""Which rows of a router are real tokens: read from what the model was called with.

All of it stays on the device. Where a batch comes with an attention mask, the mask decides; a
packed batch has none, and there the cumulative lengths or position ids say where it ends.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def argument_names(model: nn.Module) -> list[str]:
    """Names of the positional arguments of the model's forward."""
    try:
        parameters = inspect.signature(type(model).forward).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.kind <= p.POSITIONAL_OR_KEYWORD][1:]


class Batch:
    """The tokens of one forward pass of the whole model."""

    def __init__(self, given: Mapping[str, Any], pad_id: int | None = None) -> None:
        self._given = given
        self._pad_id = pad_id
        self._real: dict[str, Tensor | None] = {}
        self._rows: dict[str, int | None] = {}

    @property
    def divides_loss(self) -> bool:
        """The model divides its loss by the tokens of the whole step, not of this batch."""
        return self._given.get("num_items_in_batch") is not None

    def rows(self, stack: str) -> int | None:
        """Tokens that a router of the stack sees, padding included; ``None`` if not known."""
        if stack not in self._rows:
            shape = self._shape(stack)
            self._rows[stack] = None if shape is None else shape[0] * shape[1]
        return self._rows[stack]

    def real(self, stack: str) -> Tensor | None:
        """Bool ``[B·S]``, false for padding; ``None`` where every token is real."""
        if stack not in self._real:
            real_BS = self._decoder_mask() if stack == "dec" else self._mask()
            self._real[stack] = None if real_BS is None else real_BS.reshape(-1)
        return self._real[stack]

    def _shape(self, stack: str) -> tuple[int, int] | None:
        names: tuple[str, ...] = ("decoder_input_ids", "labels", "decoder_inputs_embeds")
        if stack != "dec":
            names = ("input_ids", "inputs_embeds", "input", "tokens", "idx", "x", "ids_BS")
        for name in names:
            value = self._given.get(name)
            if isinstance(value, Tensor) and value.dim() >= 1:
                return (1, value.shape[0]) if value.dim() == 1 else tuple(value.shape[:2])  # type: ignore[return-value]
        return None

    def _mask(self) -> Tensor | None:
        mask = self._given.get("attention_mask", self._given.get("valid_BS"))
        shape = self._shape("")
        real = None if mask is None else _from_mask(mask, None if shape is None else shape[1])
        return self._packed(shape) if real is None else real

    def _decoder_mask(self) -> Tensor | None:
        mask, shape = self._given.get("decoder_attention_mask"), self._shape("dec")
        length = None if shape is None else shape[1]
        if mask is not None:
            return _from_mask(mask, length)
        labels = self._given.get("labels")
        if self._given.get("decoder_input_ids") is None and isinstance(labels, Tensor):
            # The labels, shifted: every token that has one, after the start token.
            return nn.functional.pad(labels[:, :-1] != -100, (1, 0), value=True)
        return None

    def _packed(self, shape: tuple[int, int] | None) -> Tensor | None:
        """Without a mask: what comes after the last sequence is padding."""
        if shape is None:
            return None
        for name in ("cu_seq_lens_q", "cu_seqlens", "cu_seqlens_q", "cu_seq_lens"):
            ends = self._given.get(name)
            if isinstance(ends, Tensor) and ends.numel():
                places = torch.arange(shape[0] * shape[1], device=ends.device)
                return (places < ends.reshape(-1)[-1]).view(shape)
        positions = self._given.get("position_ids")
        if isinstance(positions, Tensor) and positions.shape == shape:
            return self._before_trailing_zeros(positions)
        return None

    def _before_trailing_zeros(self, positions_BS: Tensor) -> Tensor:
        """Packed batches are filled up with position 0. A single one may be a sequence of one
        token, unless it is the padding token."""
        trailing_BS = (positions_BS == 0).flip(-1).int().cumprod(-1).flip(-1).bool()
        several_B1 = trailing_BS.sum(-1, keepdim=True) > 1
        ids = self._given.get("input_ids")
        is_pad = torch.zeros_like(trailing_BS)
        if isinstance(ids, Tensor) and self._pad_id is not None:
            is_pad = ids == self._pad_id
        first_BS = torch.arange(positions_BS.shape[-1], device=positions_BS.device) == 0
        return ~(trailing_BS & (several_B1 | is_pad) & ~first_BS)


def _from_mask(mask: Any, length: int | None) -> Tensor | None:
    """Real tokens ``[B, S]`` of a mask in any form that transformers takes."""
    if isinstance(mask, Mapping):  # one for each kind of attention: they agree about padding
        mask = next((m for m in mask.values() if isinstance(m, Tensor)), None)
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        return None
    if mask.dim() == 4:  # a real token sees itself: to be allowed is True, or an added zero
        diagonal = mask[:, 0, :, -mask.shape[2] :].diagonal(dim1=-2, dim2=-1)
        real = diagonal if mask.dtype == torch.bool else diagonal >= 0
    else:
        real = mask != 0  # packed batches may number their sequences 1, 2, 3 …
    return real if length is None else real[:, -length:]  # what came before is in a cache
