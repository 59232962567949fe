"""Mistakes that other implementations made and that no other file here is about."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moe_model import LanguageModel, sequence_balance_loss
from tests.counted import counter_of

MakeModel = Callable[..., LanguageModel]


def loss_of(model: LanguageModel, ids_BS: Tensor) -> Tensor:
    output = model(ids_BS)
    loss = F.cross_entropy(output.logits_BSV[:, :-1].flatten(0, 1), ids_BS[:, 1:].flatten())
    valid_BS = torch.ones_like(ids_BS, dtype=torch.bool)
    return loss + 0.1 * sequence_balance_loss(output.routings, valid_BS).sum()


def test_a_training_pass_leaves_the_bias_alone(make_model: MakeModel, ids_BS: Tensor) -> None:
    """Moved inside the pass, activation checkpointing would route anew on the way back."""
    model = make_model().train()
    loss_of(model, ids_BS).backward()
    assert not any(router.expert_bias.any() for router in model.routers)


def test_fp32_router_weights_do_not_promote_a_bf16_stream(
    make_model: MakeModel, ids_BS: Tensor
) -> None:
    model = make_model().eval().bfloat16()
    seen = []
    for layer in model.layers:
        layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output[0].dtype))
    output = model(ids_BS)
    assert set(seen) == {torch.bfloat16}
    assert output.logits_BSV.dtype == torch.bfloat16
    assert output.routings[0].weights_TK.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.filterwarnings("ignore")  # what the compiler says about itself
def test_compiled_layers_compute_and_count_the_same(
    dtype: torch.dtype, make_model: MakeModel, ids_BS: Tensor
) -> None:
    """Captured for the compiler and run without generated code, which would take a minute."""
    plain, compiled = (make_model(num_hidden_layers=2).train() for _ in range(2))
    for layer in compiled.layers[1:]:
        layer.compile(backend="aot_eager")
    losses, counts = [], []
    for model in (plain, compiled):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            losses.append(loss_of(model, ids_BS))
            counts.append(counter_of(model, model(ids_BS).routings).counts)
        losses[-1].backward()
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(losses[1], losses[0], atol=tolerance, rtol=tolerance)
    assert counts[0].sum() == counts[1].sum() == 2 * ids_BS.numel()
    if dtype == torch.float32:
        assert torch.equal(*counts)
        for ours, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)


def test_an_empty_batch_is_accepted(make_model: MakeModel) -> None:
    """The last rank of an uneven evaluation gets one."""
    logits_BSV = make_model().eval()(torch.zeros(0, 5, dtype=torch.int64)).logits_BSV
    assert logits_BSV.shape == (0, 5, 97)
