"""What generation remembers of the past: per layer and token one latent and one rotated key.

This is what Multi-head Latent Attention is for: ``kv_lora_rank + qk_rope_head_dim`` numbers a token
and layer instead of ``2 · heads · head_dim``. The latent is kept after its norm and the key after
its rotation, side by side, so that one product scores both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_model.config import ModelConfig


class LatentCache:
    """Room for ``length`` tokens of ``batch`` sequences, allocated once.

    :attr:`used` says how many tokens are in it. Setting it lower forgets the last ones: what a
    draft of speculative decoding that turns out wrong needs.
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
            layers: Layers to remember; all decoder layers, without multi-token prediction, if none.
            dtype: Of the entries.
            device: Where the entries are.
        """
        width = config.kv_lora_rank + config.qk_rope_head_dim
        depth = config.num_hidden_layers if layers is None else layers
        self.entries_LBNW = torch.zeros(depth, batch, length, width, dtype=dtype, device=device)
        self.used = 0
        self.valid_BN: Tensor | None = None
        """False where a sequence has padding; none at all as long as no sequence had any."""

    def __len__(self) -> int:
        """Tokens there is room for."""
        return self.entries_LBNW.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of the entries."""
        return self.entries_LBNW.nbytes

    def append(self, layer: int, entries_BSW: Tensor) -> Tensor:
        """Write the entries of S new tokens behind the used ones; all of ``layer`` so far.

        Writing does not move :attr:`used`: every layer writes at the same place, and the model
        counts the tokens once all layers have.

        Returns:
            ``(B, used + S, W)``, a view.

        Raises:
            ValueError: If there is no room; the message says how much there is.
        """
        end = self._end_of(entries_BSW.shape[1])
        layer_BNW = self.entries_LBNW[layer]
        layer_BNW[:, self.used : end] = entries_BSW
        return layer_BNW[:, :end]

    def append_valid(self, tokens: int, valid_BS: Tensor | None) -> Tensor | None:
        """Which of the S new tokens are real, all if none is given; the mask of all so far.

        Returns:
            ``(B, used + S)``, a view; none where there is no padding at all.

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
        """Forget all other sequences, and free what they took."""
        self.entries_LBNW = self.entries_LBNW[:, sequences]
        if self.valid_BN is not None:
            self.valid_BN = self.valid_BN[sequences]

    def _end_of(self, tokens: int) -> int:
        """Where ``tokens`` more end."""
        end = self.used + tokens
        if end > len(self):
            raise ValueError(
                f"the cache holds {len(self)} tokens, {self.used} of them used, and "
                f"{tokens} more do not fit: make a longer cache, or forget some."
            )
        return end
