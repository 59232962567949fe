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
        end = self.used + entries_BSW.shape[1]
        if end > len(self):
            raise ValueError(
                f"the cache holds {len(self)} tokens, {self.used} of them used, and "
                f"{entries_BSW.shape[1]} more do not fit: make a longer cache, or forget some."
            )
        layer_BNW = self.entries_LBNW[layer]
        layer_BNW[:, self.used : end] = entries_BSW
        return layer_BNW[:, :end]
