"""What training minimises: next-token cross-entropy, and what is added to it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_model.balance import balance_loss, router_z_loss, sequence_balance_loss
from moe_model.model import ModelOutput
from moe_model.training.options import Options

Penalty = Callable[[ModelOutput, Tensor], Tensor]
"""From a forward pass and its tokens ``(B, S + 1 + D)`` to one value, or one per router."""

MTP_HIGH_SHARE = 10 / 14.8
"""DeepSeek-V3 lowers the weight of multi-token prediction to a third after 10 of 14.8 trillion
tokens (section 4.2)."""


def next_token_loss(logits_BSV: Tensor, tokens_BN: Tensor, ahead: int = 1) -> Tensor:
    """Mean cross-entropy in nats of the tokens ``ahead`` of each position, in fp32."""
    targets_BS = tokens_BN[:, ahead : ahead + logits_BSV.shape[1]]
    return F.cross_entropy(logits_BSV.float().flatten(0, 1), targets_BS.flatten())


def penalties_at(step: int, options: Options) -> dict[str, tuple[float, Penalty]]:
    """What is added to the loss in 1-based ``step``, by its name in the log: weight and measure.

    The balance losses are 1 where the load is balanced.
    """
    mtp_weight = options.mtp_weight
    if step > options.steps * MTP_HIGH_SHARE:
        mtp_weight /= 3
    known: dict[str, tuple[float, Penalty]] = {
        "mtp": (mtp_weight, _ahead_losses),
        "seq_aux": (options.seq_aux_weight, _on_routings(sequence_balance_loss)),
        "aux": (options.aux_weight, _on_routings(balance_loss)),
        "z_loss": (options.z_loss_weight, _on_routings(router_z_loss)),
    }
    return {name: (weight, measure) for name, (weight, measure) in known.items() if weight}


def _ahead_losses(output: ModelOutput, tokens_BN: Tensor) -> Tensor:
    """Mean cross-entropy over the depths (DeepSeek-V3, eq. 25), in fp32."""
    losses = [
        next_token_loss(logits_BSV, tokens_BN, depth + 2)
        for depth, logits_BSV in enumerate(output.ahead_logits)
    ]
    return torch.stack(losses).mean()


def _on_routings(loss: Callable[..., Tensor]) -> Penalty:
    def measure(output: ModelOutput, tokens_BN: Tensor) -> Tensor:
        valid_BS = torch.ones(output.logits_BSV.shape[:2], dtype=torch.bool).to(tokens_BN.device)
        return loss(output.routings, valid_BS)

    return measure
