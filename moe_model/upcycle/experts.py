"""Convert a dense feed-forward to a shared expert and E routed experts that compute the same.

A SwiGLU is a sum over its neurons, so they can be distributed: the shared expert takes the most
useful ones, and **all routed experts are copies of each other**. Then the router's choice does not
matter: the weights of a token add up to ``routed_scaling_factor``, copies divided by it add up to
one, and the layer equals the dense one for any router, bias and K.

Slices instead of copies (Megatron's granular upcycling) are only correct while each is chosen
exactly once, which the first training step breaks. The useful neurons are shared because every
token needs them (CMoE); the experts can divide the others among themselves. The cost is (S + K) /
(S + 1) times the computation of the dense layer, for S shared experts.

Copies diverge once the router sends them different tokens; a little noise breaks the symmetry.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_model import MixtureOfExperts

_MULTIPLE = 8
"""Expert widths are a multiple of this: 16 bytes in half precision, which grouped products need."""


def expert_width(intermediate_size: int, n_shared_experts: int) -> int:
    """``moe_intermediate_size`` with which S shared experts and one routed hold every neuron."""
    parts = (n_shared_experts + 1) * _MULTIPLE
    return -(-intermediate_size // parts) * _MULTIPLE


@torch.no_grad()
def split_into_experts(
    moe: MixtureOfExperts, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor, usefulness_F: Tensor
) -> None:
    """Fill the experts of ``moe`` with the neurons of a dense feed-forward.

    If there is more room than neurons, the most useful ones are in both kinds of experts and count
    half in each.

    Args:
        moe: Its router is not changed.
        usefulness_F: Neurons with the highest values are shared.
    """
    config = moe.router.config
    if not config.norm_topk_prob:
        raise ValueError(
            "norm_topk_prob=False does not fix the sum of a token's weights: choose True."
        )
    width = config.moe_intermediate_size
    shared = config.n_shared_experts * width
    order_F = usefulness_F.argsort(descending=True, stable=True)
    neuron_N = order_F[torch.arange(shared + width) % len(order_F)]
    times_F = torch.bincount(neuron_N, minlength=len(order_F))
    gate_ND, up_ND = gate_FD[neuron_N], up_FD[neuron_N]
    down_DN = down_DF[:, neuron_N] / times_F[neuron_N]
    if moe.shared_experts is not None:
        moe.shared_experts.gate_proj.weight.copy_(gate_ND[:shared])
        moe.shared_experts.up_proj.weight.copy_(up_ND[:shared])
        moe.shared_experts.down_proj.weight.copy_(down_DN[:, :shared])
    moe.experts.gate_up_proj.copy_(torch.cat((gate_ND[shared:], up_ND[shared:])))
    moe.experts.down_proj.copy_(down_DN[:, shared:] / config.routed_scaling_factor)


@torch.no_grad()
def break_symmetry(moe: MixtureOfExperts, noise: float, generator: torch.Generator) -> None:
    """Add normal noise to every routed expert.

    Args:
        noise: Standard deviation, as a fraction of that of the gate, up or down matrix.
    """
    gate_EFD, up_EFD = moe.experts.gate_up_proj.chunk(2, dim=1)
    for weight_EXX in (gate_EFD, up_EFD, moe.experts.down_proj):
        size = noise * weight_EXX.std()
        weight_EXX += size * torch.randn(weight_EXX.shape, generator=generator)
