"""What training minimises: next-token cross-entropy and the terms added to it.

Every value here is a *share*: summed over the micro-batches of a step and over all ranks it is the
mean over the whole step. So a step is identical however it is split.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_model import ModelOutput, balance_loss, router_z_loss, sequence_balance_loss
from moe_model.training.batches import StepBatches
from moe_model.training.options import Options

MTP_HIGH_SHARE = 10 / 14.8
"""DeepSeek-V3 lowers the weight of multi-token prediction to a third after 10 of 14.8 trillion
tokens (section 4.2)."""


def weights_at(step: int, options: Options) -> dict[str, float]:
    """The terms added to the loss in 1-based ``step``: weights by name, without those that are 0.

    Balance losses add up over the routers; each is 1 where the load is balanced.
    """
    mtp = options.mtp_weight / (3 if step > options.steps * MTP_HIGH_SHARE else 1)
    weights = {
        "mtp": mtp,
        "seq_aux": options.seq_aux_weight,
        "aux": options.aux_weight,
        "z_loss": options.z_loss_weight,
    }
    return {name: weight for name, weight in weights.items() if weight}


def loss_shares(
    output: ModelOutput,
    names: Sequence[str],
    step_batches: StepBatches,
    num_passes: int,
) -> list[Tensor]:
    """The share of the next-token loss, then of each loss in ``names``.

    Args:
        output: Result of the forward pass over a micro-batch, with targets.
        names: Keys of :func:`weights_at`. A balance loss comes as a vector, one per router.
        step_batches: All micro-batches of the step, with the number of targets in it.
        num_passes: Forward passes in the step, over all ranks.
    """
    num_targets = step_batches.num_targets
    first, *ahead = [
        total / max(1, number) for total, number in zip(output.losses, num_targets, strict=False)
    ]
    shares = [first]
    for name in names:
        if name == "mtp":
            shares.append(torch.stack(ahead).mean())  # DeepSeek-V3, eq. 25
        else:
            hidden_BSD = output.hidden_BSD
            valid_BS = hidden_BSD.new_ones(hidden_BSD.shape[:2], dtype=torch.bool)
            shares.append(_BALANCE_LOSSES[name](output.routings, valid_BS) / num_passes)
    return shares


_BALANCE_LOSSES = {
    "seq_aux": sequence_balance_loss,
    "aux": balance_loss,
    "z_loss": router_z_loss,
}
