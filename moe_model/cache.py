"""The cache for generation: one latent and one rotated key per layer and token.

Multi-head Latent Attention needs ``kv_lora_rank + qk_rope_head_dim`` numbers per token and layer
instead of ``2 · heads · head_dim``. The normed latent and the rotated key are stored side by side,
so that one product scores both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_model.config import ModelConfig


class LatentCache:
    """Room for ``length`` tokens of ``batch`` sequences, allocated once.

    :attr:`used` is the number of tokens in it. Lower it to forget the last ones, such as a rejected
    draft of speculative decoding.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        length: int,
        *,
        layers: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Allocate.

        Args:
            config: Of the model.
            batch: Sequences B.
            length: Tokens N.
            layers: Number of layers; ``None`` for all decoder layers without multi-token
                prediction.
            dtype: Data type of the entries.
            device: Device of the entries.
        """
        width = config.kv_lora_rank + config.qk_rope_head_dim
        depth = config.num_hidden_layers if layers is None else layers
        self.entries_LBNW = torch.zeros(depth, batch, length, width, dtype=dtype, device=device)
        self.used = 0
        self.valid_BN: Tensor | None = None
        """False for padding; ``None`` as long as no sequence had any."""

    def __len__(self) -> int:
        """Capacity in tokens."""
        return self.entries_LBNW.shape[2]

    @property
    def nbytes(self) -> int:
        """Size of the entries in bytes."""
        return self.entries_LBNW.nbytes

    def append(self, layer: int, entries_BSW: Tensor) -> Tensor:
        """Append the entries of S new tokens; return all entries of ``layer`` so far.

        This does not change :attr:`used`: every layer writes at the same position, and the model
        advances it once all layers have written.

        Returns:
            ``(B, used + S, W)``, a view.

        Raises:
            ValueError: If the tokens do not fit.
        """
        end = self._end_of(entries_BSW.shape[1])
        layer_BNW = self.entries_LBNW[layer]
        layer_BNW[:, self.used : end] = entries_BSW
        return layer_BNW[:, :end]

    def append_valid(self, tokens: int, valid_BS: Tensor | None) -> Tensor | None:
        """Append the padding mask of S new tokens, ``None`` for no padding; return the whole mask.

        Returns:
            ``(B, used + S)``, a view; ``None`` if there is no padding at all.

        Raises:
            ValueError: As :meth:`append`.
        """
        end = self._end_of(tokens)
        if self.valid_BN is None:
            if valid_BS is None:
                return None
            shape, device = self.entries_LBNW.shape[1:3], self.entries_LBNW.device
            self.valid_BN = torch.ones(shape, dtype=torch.bool, device=device)
        self.valid_BN[:, self.used : end] = True if valid_BS is None else valid_BS
        return self.valid_BN[:, :end]

    def keep(self, sequences: list[int]) -> None:
        """Keep only these sequences and free the memory of the others."""
        self.entries_LBNW = self.entries_LBNW[:, sequences]
        if self.valid_BN is not None:
            self.valid_BN = self.valid_BN[sequences]

    def _end_of(self, tokens: int) -> int:
        """The end position after ``tokens`` more."""
        end = self.used + tokens
        if end > len(self):
            raise ValueError(
                f"the cache holds {len(self)} tokens, {self.used} of them used: "
                f"{tokens} more do not fit; create a longer cache, or lower used."
            )
        return end
