"""Multi-token prediction (DeepSeek-V3, section 2.2): from the hidden state at position i and the
next token, predict the token after that.

Depth k takes the hidden state of depth k − 1 and the embedding of token i + k, and its output goes
through the head of the main model to predict token i + k + 1. It improves the training of the main
model, and drafts tokens in generation.

Where the sources differ, this follows the released weights and inference engines: the projection
sees **[embedding, hidden]** (the paper has hidden first), and the hidden state is that **after**
the final norm, as in transformers, vLLM and SGLang (torchtitan takes it from before the norm).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe_model.attention import Remember
from moe_model.config import ModelConfig
from moe_model.decoder_layer import DecoderLayer
from moe_model.norm import RMSNorm


class PredictionDepth(nn.Module):
    """One more depth: combine, one decoder layer with experts, norm. Names as Hugging Face's."""

    def __init__(self, config: ModelConfig, depth: int) -> None:
        super().__init__()
        D = config.hidden_size
        self.enorm = RMSNorm(D, config.rms_norm_eps)
        self.hnorm = RMSNorm(D, config.rms_norm_eps)
        self.eh_proj = nn.Linear(2 * D, D, bias=False)
        self.layer = DecoderLayer(config, config.num_hidden_layers + depth)
        self.norm = RMSNorm(D, config.rms_norm_eps)

    def forward(
        self,
        hidden_BSD: Tensor,
        embedding_BSD: Tensor,
        rotary: tuple[Tensor, Tensor],
        valid_BS: Tensor | None = None,
        remember: Remember | None = None,
        visible_BSN: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """The hidden state of this depth after its norm, and the fields of a ``Routing``.

        Args:
            hidden_BSD: Normed hidden state of the depth before, at positions i.
            embedding_BSD: Embeddings of the tokens at i + k, where k counts from 1.
            rotary: Angles of the positions i; attention only sees differences of positions.
            valid_BS: See :func:`valid_ahead`.
            remember: Cache of this depth.
            visible_BSN: See :func:`~moe_model.attention.visible_tokens`.
        """
        both = torch.cat((self.enorm(embedding_BSD), self.hnorm(hidden_BSD)), dim=-1)
        x_BSD, *routing = self.layer(self.eh_proj(both), rotary, valid_BS, remember, visible_BSN)
        return (self.norm(x_BSD), *routing)


def valid_ahead(valid_BS: Tensor, depth: int) -> Tensor:
    """Where a position and the next ``depth`` tokens are all real.

    After the end of a row without padding comes a real token, which the caller supplied.
    """
    for _ in range(depth):
        following_BS = torch.cat((valid_BS[:, 1:], valid_BS[:, -1:]), dim=1)
        valid_BS = valid_BS & following_BS
    return valid_BS
