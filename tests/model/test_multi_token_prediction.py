"""Multi-token prediction equals that of transformers, and is balanced and counted like the rest."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import MtpModel

from benchmarks.transformers_peer import peer, their_name
from moe_model import LanguageModel, ModelOutput, update_expert_bias, valid_ahead
from moe_model.training import Batch, StepBatches, loss_shares
from tests.counted import counted, counter_of

MakeModel = Callable[..., LanguageModel]
S, D = 20, 2
"""Positions and depths: with two depths a sequence has two tokens more than it has positions."""


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
def difference_from_theirs(model: LanguageModel, ids_BN: Tensor) -> float:
    """Largest difference of the logits of any depth from those of transformers."""
    output = model.eval()(ids_BN[:, :S], next_ids=ids_BN[:, 1 : S + D])
    theirs, hidden_BSD = their_depths(model), output.hidden_BSD
    largest = 0.0
    for depth, logits_BSV in enumerate(output.ahead_logits):
        following = ids_BN[:, depth + 1 : depth + 1 + S]
        positions = torch.arange(S).expand_as(following)
        hidden_BSD = theirs.forward_layer(depth, hidden_BSD, positions, None, input_ids=following)
        expected = theirs._project_to_logits(hidden_BSD)
        largest = max(largest, (logits_BSV - expected).abs().max().item())
    return largest


@pytest.fixture
def model(make_model: MakeModel) -> LanguageModel:
    return make_model(num_nextn_predict_layers=D)


def test_every_depth_equals_theirs(model: LanguageModel, ids_BS: Tensor) -> None:
    assert difference_from_theirs(model, ids_BS) <= 2e-5


def test_hidden_before_embedding_is_found(model: LanguageModel, ids_BS: Tensor) -> None:
    """The order that the paper prints."""
    for depth in model.mtp:
        forward = depth.eh_proj.forward
        depth.eh_proj.forward = lambda x, f=forward: f(torch.cat(x.chunk(2, -1)[::-1], -1))
    with pytest.raises(AssertionError):
        test_every_depth_equals_theirs(model, ids_BS)


def test_depth_k_sees_k_tokens_ahead_and_no_further(model: LanguageModel, ids_BS: Tensor) -> None:
    changed_BN = ids_BS.clone()
    changed_BN[:, 12] = (changed_BN[:, 12] + 1) % 97
    with torch.no_grad():
        before, after = (
            model.eval()(ids[:, :S], next_ids=ids[:, 1 : S + D]) for ids in (ids_BS, changed_BN)
        )
    for depth in range(D):
        change_S = (before.ahead_logits[depth] - after.ahead_logits[depth]).abs().amax((0, 2))
        first = 12 - (depth + 1)
        assert (change_S[:first] < 1e-5).all()
        assert (change_S[first:] > 1e-4).all()


def test_depth_k_is_asked_for_the_token_k_plus_one_ahead(
    model: LanguageModel, ids_BS: Tensor
) -> None:
    length = ids_BS.shape[1] - 1 - D
    output = model(ids_BS[:, :length], next_ids=ids_BS[:, 1 : length + D])
    expected = []
    for depth in range(D):
        asked = ids_BS[:, depth + 2 : depth + 2 + length]
        expected.append(F.cross_entropy(output.ahead_logits[depth].flatten(0, 1), asked.flatten()))
    _, shares = forward(model, ids_BS)
    assert shares[1].item() == pytest.approx(sum(expected).item() / D, rel=1e-6)
    first = F.cross_entropy(output.logits_BSV.flatten(0, 1), ids_BS[:, 1 : 1 + length].flatten())
    assert shares[0].item() == pytest.approx(first.item())


def forward(model: LanguageModel, ids_BN: Tensor) -> tuple[ModelOutput, list[Tensor]]:
    """The output with targets, and the shares of the loss."""
    batch = Batch(ids_BN, torch.zeros_like(ids_BN, dtype=torch.bool))
    length = ids_BN.shape[1] - 1 - D
    targets = [batch.targets(ahead, length) for ahead in range(1, D + 2)]
    output: ModelOutput = model(
        ids_BN[:, :length], next_ids=ids_BN[:, 1 : length + D], targets=targets
    )
    step_batches = StepBatches([batch], (targets[0].numel(),) * (1 + D))
    return output, loss_shares(output, ["mtp"], step_batches, 1)


def train_step(model: LanguageModel, ids_BN: Tensor) -> ModelOutput:
    """Forward and backward; the output of the pass."""
    model.train().zero_grad()
    output, (next_token, ahead) = forward(model, ids_BN)
    (next_token + 0.3 * ahead).backward()
    return output


def test_its_layers_are_counted_balanced_and_trained(model: LanguageModel, ids_BS: Tensor) -> None:
    assert len(model.routers) == len(model.config.moe_layers) + D
    counter = counter_of(model, train_step(model, ids_BS).routings)
    pairs = ids_BS[:, : -1 - D].numel() * model.config.num_experts_per_tok
    assert counter.counts.sum(dim=1).tolist() == [pairs] * (2 + D)
    update_expert_bias(model.routers, counter.counts, 0.01)
    for depth in model.mtp:
        assert depth.layer.mlp.router.expert_bias.any()
        assert all(p.grad is not None and p.grad.any() for p in depth.parameters())


def test_a_training_pass_without_the_next_tokens_is_noticed(
    model: LanguageModel, ids_BS: Tensor
) -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        counted(model, model.train()(ids_BS).routings)


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_activation_checkpointing_counts_its_layers_once(
    use_reentrant: bool, make_model: MakeModel, ids_BS: Tensor
) -> None:
    plain, recomputed = (make_model(num_nextn_predict_layers=D) for _ in range(2))
    for layer in (*recomputed.layers, *recomputed.mtp):
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=use_reentrant)
    counts = [
        counter_of(each, train_step(each, ids_BS).routings).counts for each in (plain, recomputed)
    ]
    assert torch.equal(*counts)
    for ours, theirs in zip(recomputed.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_position_is_valid_only_if_the_tokens_ahead_are() -> None:
    valid_BS = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 0, 1, 1, 1]], dtype=torch.bool)
    assert valid_ahead(valid_BS, 1).int().tolist() == [
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1],
        [0, 0, 1, 1, 1],
    ]
    assert valid_ahead(valid_BS, 2)[0].int().tolist() == [1, 1, 0, 0, 0]
