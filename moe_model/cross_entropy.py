"""Next-token loss without materialising all logits at once.

Logits are the largest tensor of a training step: 32,768 tokens times a vocabulary of 129,280 are
17 GB in fp32, again for every depth of multi-token prediction, and again for their gradient. So the
head is applied in chunks of tokens and its logits are recomputed in the backward pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

MOST_LOGITS = 2**27
"""Logits per chunk, 512 MB in fp32. A batch that fits is one chunk without recomputation, as in
all presets but ``deepseek-v3``."""


def summed_cross_entropy(hidden_BSD: Tensor, head_VD: Tensor, targets_BS: Tensor) -> Tensor:
    """Sum over all tokens of the cross-entropy in nats, fp32.

    Args:
        hidden_BSD: Input of the head.
        head_VD: Weight of the head.
        targets_BS: Token ids; -100 to ignore a position.
    """
    hidden_TD, targets_T = hidden_BSD.flatten(0, 1), targets_BS.flatten()
    rows = max(1, MOST_LOGITS // len(head_VD))
    if len(targets_T) <= rows:
        return _cross_entropy(hidden_TD, head_VD, targets_T)
    total = torch.zeros((), device=hidden_BSD.device)
    parts = zip(torch.split(hidden_TD, rows), torch.split(targets_T, rows), strict=True)
    for some_TD, some_T in parts:
        total = total + checkpoint(_cross_entropy, some_TD, head_VD, some_T, use_reentrant=False)
    return total


def _cross_entropy(hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor) -> Tensor:
    logits_TV = F.linear(hidden_TD, head_VD).float()
    return F.cross_entropy(logits_TV, targets_T, reduction="sum")
