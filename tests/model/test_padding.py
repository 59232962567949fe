"""What real tokens get does not depend on padding, in reading on, ahead, and in training."""

import pytest
import torch
from torch import Tensor

from moe_model.attention import LatentCache
from moe_model.model import valid_ahead
from tests.model.conftest import make_model

TOLERANCE = 2e-5


def without_the_first(columns: int) -> Tensor:
    return (torch.arange(24) >= columns).unsqueeze(0)


@torch.no_grad()
def test_padding_that_was_read_stays_hidden(ids_BS: Tensor) -> None:
    """New tokens need no mask, and tokens that are taken back leave no padding behind."""
    model = make_model(q_lora_rank=20).eval()
    alone = model(ids_BS[:1, 9:]).logits_BSV
    valid_BS = without_the_first(9)
    cache = LatentCache(model.config, 1, 24)
    model(ids_BS[:1, :14], valid_BS[:, :14], cache=cache)
    model(ids_BS[:1, 14:18], torch.zeros(1, 4, dtype=torch.bool), cache=cache)
    cache.used = 14
    ours = model(ids_BS[:1, 14:], cache=cache).logits_BSV
    torch.testing.assert_close(ours, alone[:, 5:], atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_multi_token_prediction_ignores_padding(ids_BS: Tensor) -> None:
    """Neither on the left nor in a hole: nothing changes where the tokens ahead are real too."""
    model = make_model(num_nextn_predict_layers=2).eval()
    ids_BN, valid_BN = ids_BS[:1], without_the_first(9)
    valid_BN[:, 15:17] = False
    changed_BN = torch.where(valid_BN, ids_BN, (ids_BN + 1) % 97)
    alone, padded = (
        model(ids[:, first:22], valid_BN[:, first:22], next_ids=ids[:, first + 1 :])
        for ids, first in ((ids_BN, 9), (changed_BN, 0))
    )
    for depth, expected_BSV in enumerate(alone.ahead_logits):
        real_S = valid_ahead(valid_BN[:, 9:22], depth + 1)[0]
        found_BSV = padded.ahead_logits[depth][:, 9:]
        torch.testing.assert_close(
            found_BSV[:, real_S], expected_BSV[:, real_S], atol=TOLERANCE, rtol=0
        )


def test_a_position_is_valid_only_if_the_tokens_ahead_are() -> None:
    valid_BS = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 0, 1, 1, 1]], dtype=torch.bool)
    expected = [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]
    assert valid_ahead(valid_BS, 1).int().tolist() == expected
    assert valid_ahead(valid_BS, 2)[0].int().tolist() == [1, 1, 0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_padded_batch_is_recomputed_and_rounded_alike(dtype: torch.dtype, ids_BS: Tensor) -> None:
    valid_BS = torch.ones_like(ids_BS, dtype=torch.bool)
    valid_BS[1, :9] = False
    exact = make_model().train()
    kept, recomputed = make_model().train(), make_model().train()
    recomputed.recompute = True
    exact_logits, chosen = exact(ids_BS, valid_BS).logits_BSV, []
    for model in (kept, recomputed):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            output = model(ids_BS, valid_BS)
        logits_BSV = output.logits_BSV
        chosen.append([routing.expert_ids_TK for routing in output.routings])
        error = (logits_BSV - exact_logits)[valid_BS].abs().mean()
        assert error <= (1e-6 if dtype == torch.float32 else 0.1) * exact_logits.abs().mean()
        logits_BSV[valid_BS].float().square().mean().backward()
    for ours, expected in zip(recomputed.parameters(), kept.parameters(), strict=True):
        assert torch.equal(ours.grad, expected.grad)
    assert all(map(torch.equal, *chosen))
