"""Multi-token prediction equals that of transformers, and is balanced and trained like the rest."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_layers import MtpModel

from benchmarks.transformers_peer import peer, their_name
from moe_model import LanguageModel
from moe_model.balance import update_expert_bias
from moe_model.training.batches import Batch, StepBatches
from moe_model.training.step import loss_shares
from tests.counted import counter_of
from tests.model.conftest import make_model
from tests.model.published import assert_same, their_ahead_logits

S, D = 20, 2
"""Positions and depths: with two depths a sequence has two tokens more than it has positions."""


@pytest.fixture
def model() -> LanguageModel:
    return make_model(num_nextn_predict_layers=D)


def their_depths(model: LanguageModel) -> MtpModel:
    """The depths of ``model`` in transformers, sharing embedding and head with its twin."""
    theirs = MtpModel(peer(model), model.config.num_nextn_predict_layers)
    names = {"layer": "mtp_block", "norm": "post_norm"}
    weights = {}
    for name, tensor in model.mtp.state_dict().items():
        depth, part, *rest = name.split(".")
        path = ".".join([depth, names.get(part, part), *rest])
        weights[their_name(path).removeprefix("model.")] = tensor
    theirs.layers.load_state_dict(weights, strict=True)
    return theirs.float().eval()


@torch.no_grad()
def test_every_depth_equals_theirs(model: LanguageModel, ids_BS: Tensor) -> None:
    output = model.eval()(ids_BS[:, :S], next_ids=ids_BS[:, 1 : S + D])
    expected = their_ahead_logits(their_depths(model), output.hidden_BSD, ids_BS[:, 1 : S + D])
    for ours, theirs in zip(output.ahead_logits, expected, strict=True):
        assert_same(ours, theirs)


def test_depth_k_predicts_the_token_k_plus_one_ahead_and_its_layer_is_trained_and_balanced(
    model: LanguageModel, ids_BS: Tensor
) -> None:
    batch = Batch(ids_BS, torch.zeros_like(ids_BS, dtype=torch.bool))
    length = ids_BS.shape[1] - 1 - D
    inputs, next_ids = ids_BS[:, :length], ids_BS[:, 1 : length + D]
    targets = [batch.targets(ahead, length) for ahead in range(1, D + 2)]
    output = model.train()(inputs, next_ids=next_ids, targets=targets)
    step_batches = StepBatches([batch], (targets[0].numel(),) * (1 + D))
    next_token, ahead = loss_shares(output, ["mtp"], step_batches, 1)

    full = model(inputs, next_ids=next_ids)
    expected = [
        F.cross_entropy(logits_BSV.flatten(0, 1), ids_BS[:, k : k + length].flatten()).item()
        for k, logits_BSV in enumerate((full.logits_BSV, *full.ahead_logits), 1)
    ]
    assert next_token.item() == pytest.approx(expected[0])
    assert ahead.item() == pytest.approx(sum(expected[1:]) / D, rel=1e-6)

    (next_token + 0.3 * ahead).backward()
    counter = counter_of(model, output.routings)
    pairs = inputs.numel() * model.config.num_experts_per_tok
    assert counter.counts.sum(dim=1).tolist() == [pairs] * (2 + D)
    update_expert_bias(model.routers, counter.counts, 0.01)
    for depth in model.mtp:
        assert depth.layer.mlp.router.expert_bias.any()
        assert all(p.grad is not None and p.grad.any() for p in depth.parameters())


@torch.no_grad()
def test_documents_under_a_mask_are_what_they_are_alone(model: LanguageModel) -> None:
    """Where a target is in the same document; those of several depths too."""
    ids_BN = torch.randint(0, 97, (2, S + D), generator=torch.Generator().manual_seed(0))
    starts_BS = torch.zeros(2, S, dtype=torch.bool)
    starts_BS[0, [7, 8]] = starts_BS[1, [13, 15]] = True
    whole = model(ids_BN[:, :S], next_ids=ids_BN[:, 1:], starts_BS=starts_BS)
    for row, bounds in enumerate([[0, 7, 8, S], [0, 13, 15, S]]):
        for begin, end in pairwise(bounds):
            ids_1N = ids_BN[row : row + 1, begin : end + D]
            alone = model(ids_1N[:, : end - begin], next_ids=ids_1N[:, 1:])
            pairs = zip(
                (whole.logits_BSV, *whole.ahead_logits),
                (alone.logits_BSV, *alone.ahead_logits),
                strict=True,
            )
            for ahead, (masked, own) in enumerate(pairs):
                until = max(begin, end - ahead)
                expected = own[0, : until - begin]
                torch.testing.assert_close(masked[row, begin:until], expected, atol=1e-5, rtol=1e-5)
