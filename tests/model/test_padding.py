"""Sequences of different lengths in one batch: padding changes nothing, wherever it stands.

The oracle is transformers' DeepseekV3 with the same mask and the positions that its ``generate``
computes: a real token is at the place it has among the real ones.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from benchmarks.transformers_peer import peer, their_name
from moe_model import LanguageModel, LatentCache, absorbing_is_cheaper
from moe_model.config import YarnScaling

TOLERANCE = 2e-5
YARN = YarnScaling(factor=4.0, original_max_position_embeddings=10, mscale=0.7, mscale_all_dim=0.9)
MakeModel = Callable[..., LanguageModel]

SIDES: dict[str, list[str]] = {
    "left": ["." * 24, " " * 7 + "." * 17, " " * 23 + ".", " " * 12 + "." * 12],
    "right": ["." * 24, "." * 17 + " " * 7, "." + " " * 23, "." * 12 + " " * 12],
    "both and a hole": ["." * 24, "  " + "." * 20 + "  ", "...    " + "." * 17, " ." * 12],
}


@pytest.fixture(params=SIDES, name="valid_BS")
def _valid(request: pytest.FixtureRequest) -> Tensor:
    return torch.tensor([[char == "." for char in row] for row in SIDES[request.param]])


@pytest.fixture(params=["plain query", "low-rank query, four groups, yarn"])
def model(request: pytest.FixtureRequest, make_model: MakeModel) -> LanguageModel:
    fields: dict[str, Any] = {"n_routed_experts": 16, "num_experts_per_tok": 4, "v_head_dim": 12}
    if request.param != "plain query":
        fields |= {"q_lora_rank": 20, "n_group": 4, "topk_group": 2, "rope_scaling": YARN}
    made = make_model(**fields)
    for router in made.routers:
        router.expert_bias.normal_(-0.6, 0.3, generator=torch.Generator().manual_seed(2))
    return made.eval()


def positions(valid_BS: Tensor) -> Tensor:
    """As ``generate`` of transformers computes them."""
    return (valid_BS.long().cumsum(-1) - 1).masked_fill(~valid_BS, 0)


def theirs_padded(
    theirs: torch.nn.Module, ids_BS: Tensor, valid_BS: Tensor, past: DynamicCache | None = None
) -> Tensor:
    """Logits of transformers; with a cache those of the columns that are not in it."""
    start = 0 if past is None else past.get_seq_length()
    logits: Tensor = theirs(
        ids_BS[:, start:],
        attention_mask=valid_BS.long(),
        position_ids=positions(valid_BS)[:, start:],
        cache=past,
        use_cache=past is not None,
    ).logits
    return logits


@torch.no_grad()
def test_padded_logits_equal_theirs(model: LanguageModel, ids_BS: Tensor, valid_BS: Tensor) -> None:
    expected = theirs_padded(peer(model).eval(), ids_BS, valid_BS)[valid_BS]
    assert expected.abs().mean() > 0.3, "logits too small to tell anything"
    ours = model(ids_BS, valid_BS).logits_BSV
    torch.testing.assert_close(ours[valid_BS], expected, atol=TOLERANCE, rtol=0)
    assert ours.isfinite().all(), "padding is computed along and must not become NaN"


@pytest.mark.parametrize(
    "ends",
    [range(1, 25), [3, 5, *range(6, 25)], [5, 24]],
    ids=["token by token", "a prompt, then few tokens absorbed", "much behind a past"],
)
@torch.no_grad()
def test_padded_reading_in_parts_equals_theirs_with_their_cache(
    ends: Any, model: LanguageModel, ids_BS: Tensor, valid_BS: Tensor
) -> None:
    """Both ways of attention, and columns of padding between the parts."""
    assert absorbing_is_cheaper(model.config, 1)
    assert not absorbing_is_cheaper(model.config, 19)
    theirs = peer(model).eval()
    past = DynamicCache(config=theirs.config)
    cache = LatentCache(model.config, len(ids_BS), ids_BS.shape[1])
    for start, end in pairwise([0, *ends]):
        expected = theirs_padded(theirs, ids_BS[:, :end], valid_BS[:, :end], past)
        ours = model(ids_BS[:, start:end], valid_BS[:, start:end], cache=cache).logits_BSV
        real_BS = valid_BS[:, start:end]
        torch.testing.assert_close(ours[real_BS], expected[real_BS], atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_padding_that_was_read_stays_hidden(model: LanguageModel, ids_BS: Tensor) -> None:
    """New tokens need no mask of their own, and what is taken back leaves no padding behind."""
    alone = model(ids_BS[:1, 9:]).logits_BSV
    valid_BS = torch.ones(1, 24, dtype=torch.bool)
    valid_BS[:, :9] = False
    cache = LatentCache(model.config, 1, 24)
    model(ids_BS[:1, :14], valid_BS[:, :14], cache=cache)
    model(ids_BS[:1, 14:18], torch.zeros(1, 4, dtype=torch.bool), cache=cache)
    cache.used = 14
    ours = model(ids_BS[:1, 14:], cache=cache).logits_BSV
    torch.testing.assert_close(ours, alone[:, 5:], atol=TOLERANCE, rtol=0)


def test_gradients_of_a_padded_batch_equal_theirs(
    model: LanguageModel, ids_BS: Tensor, valid_BS: Tensor
) -> None:
    theirs = peer(model).train()
    weight_MV = torch.randn(
        int(valid_BS.sum()), 97, generator=torch.Generator().manual_seed(4)
    ) / int(valid_BS.sum())
    (theirs_padded(theirs, ids_BS, valid_BS)[valid_BS] * weight_MV).sum().backward()
    (model.train()(ids_BS, valid_BS).logits_BSV[valid_BS] * weight_MV).sum().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in model.named_parameters():
        gradient = expected[their_name(name)].grad
        assert parameter.grad is not None
        assert gradient is not None
        error = (parameter.grad - gradient).norm() / gradient.norm()
        assert error <= 1e-4, name


@torch.no_grad()
def test_multi_token_prediction_looks_at_no_padding(make_model: MakeModel, ids_BS: Tensor) -> None:
    model = make_model(num_nextn_predict_layers=2).eval()
    valid_BS = torch.ones(1, 24, dtype=torch.bool)
    valid_BS[:, :9] = False
    ahead_ids = torch.cat((ids_BS[:1, 1:], torch.tensor([[3, 4]])), dim=1)
    alone = model(ids_BS[:1, 9:], next_ids=ahead_ids[:, 9:])
    padded = model(ids_BS[:1], valid_BS, next_ids=ahead_ids)
    for ours, expected in zip(padded.ahead_logits, alone.ahead_logits, strict=True):
        torch.testing.assert_close(ours[:, 9:], expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_padded_batch_is_recomputed_and_rounded_as_any_other(
    dtype: torch.dtype, make_model: MakeModel, ids_BS: Tensor
) -> None:
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
