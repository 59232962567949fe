"""``train.py`` with the router of an older MoE-Microscope, to see what was wrong with it.

Used by ``benchmarks.balancing_methods``. Three faults at once: the bias is added to the logits
before the softmax, so that it is part of the weights and has to grow as fast as the logits do; the
weights are those biased probabilities; and the bias moves inside every forward pass, at rate 1e-3.
"""

import sys

import torch
import torch.nn.functional as F
from torch import Tensor

import train
from moe_model.router import Router, Routing

RATE = 1e-3


def biased_forward(self: Router, x_TD: Tensor, valid_T: Tensor | None = None) -> Routing:
    with torch.autocast(x_TD.device.type, enabled=False):
        logits_TE = F.linear(x_TD.float(), self.weight.float()) + self.expert_bias
    scores_TE = logits_TE.softmax(dim=-1)
    expert_ids_TK, margin_T = self._choose(scores_TE.detach())
    weights_TK = scores_TE.gather(-1, expert_ids_TK)
    weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    if self.training:
        counts_E = torch.bincount(expert_ids_TK.flatten(), minlength=logits_TE.shape[-1])
        error_E = counts_E.sum() - counts_E * len(counts_E)
        self.expert_bias += RATE * error_E.sign()
    kept_TK = torch.ones_like(expert_ids_TK, dtype=torch.bool)
    return Routing(logits_TE, scores_TE, expert_ids_TK, weights_TK, margin_T, kept_TK)


if __name__ == "__main__":
    Router.forward = biased_forward  # type: ignore[method-assign]
    sys.exit(train.run_command(train.app, None))
