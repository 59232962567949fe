"""The prepared weights compute what the model computes, and the cache holds what it promises.

What both compute is compared with transformers in ``test_parity.py`` and ``test_model_types.py``.
"""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from moe_model import ModelConfig
from moe_model.attention import LatentCache
from moe_model.config import YarnScaling
from moe_model.decoder import FEW, Decoder, Drafter
from tests.model.conftest import make_model

YARN = YarnScaling(factor=4.0, original_max_position_embeddings=10, mscale=0.7, mscale_all_dim=0.9)
GROUPS = {"n_group": 4, "topk_group": 2}


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"q_lora_rank": 20, "rope_scaling": YARN, "norm_topk_prob": False},
        {"q_lora_rank": 20, "tie_word_embeddings": True, "n_shared_experts": 0, **GROUPS},
        {"scoring_func": "softmax", "routed_scaling_factor": 2.5},
    ],
    ids=["plain", "low-rank, yarn", "low-rank, groups, tied, not shared", "softmax"],
)
def test_prepared_weights_compute_what_the_model_computes(
    fields: dict[str, Any], threads: int, ids_BS: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long prompt, then one, several and too many tokens at once, for any number of cores."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    model = make_model(n_routed_experts=16, num_experts_per_tok=4, **fields).eval()
    for router in model.routers:
        router.expert_bias.normal_(-0.6, 0.3, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = model(ids_BS[:1])
    decoder = Decoder(model, 24, weights=torch.float32)
    ids = ids_BS[0].tolist()
    for start, end in [(0, 9), (9, 10), (10, 11), (11, 13), (13, 13 + FEW + 1), (22, 24)]:
        logits_SV, hidden_SD = decoder.read(ids[start:end])
        for found, whole in ((logits_SV, expected.logits_BSV), (hidden_SD, expected.hidden_BSD)):
            torch.testing.assert_close(found, whole[0, start:end], atol=2e-5, rtol=1e-5)


def test_drafts_are_those_of_multi_token_prediction(ids_BS: Tensor) -> None:
    model = make_model(num_nextn_predict_layers=1).eval()
    with torch.no_grad():
        ahead_SV = model(ids_BS[:1], next_ids=ids_BS[:1].roll(-1, 1)).ahead_logits[0][0]
    decoder, ids = Decoder(model, 24, weights=torch.float32), ids_BS[0].tolist()
    drafter = Drafter(decoder)
    for start, end in pairwise([0, 9, 10, 11, 12, 15, 16, 18, 19, 20, 22, 23]):
        _, hidden_SD = decoder.read(ids[start:end])
        draft = drafter.propose(hidden_SD, ids[start + 1 : end + 1])
        assert draft == int(ahead_SV[end - 1].argmax())


def test_half_precision_rounds_a_little_and_keeps_sums_and_cache_in_fp32(ids_BS: Tensor) -> None:
    model = make_model().eval()
    exact = Decoder(model, 24, weights=torch.float32)
    half = Decoder(model, 24, weights=torch.float16)
    assert half.cache.entries_LBNW.dtype == torch.float32
    difference, ids = 0.0, ids_BS[0].tolist()
    for tokens in [*([token] for token in ids[:12]), ids[12:15], ids[15:23]]:
        ours, theirs = half.read(tokens)[0], exact.read(tokens)[0]
        assert ours.dtype == torch.float32
        difference = max(difference, (ours - theirs).abs().max().item())
    assert 0 < difference < 0.05


def test_tokens_that_are_forgotten_leave_no_trace(ids_BS: Tensor) -> None:
    model = make_model().eval()
    ids = ids_BS[0].tolist()
    direct, detour = (Decoder(model, 24, weights=torch.float32) for _ in range(2))
    direct.read(ids[:4])
    detour.read(ids[:4])
    detour.read([5, 6, 7])
    detour.cache.used -= 3
    assert torch.equal(detour.read(ids[4:6])[0], direct.read(ids[4:6])[0])


@pytest.mark.parametrize(
    ("preset", "dtype", "nbytes"),
    [("shakespeare", torch.float32, 10 * (160 + 32) * 4), ("deepseek-v3", torch.bfloat16, 70_272)],
)
def test_cache_takes_latent_and_rotary_key_alone(preset: str, dtype: Any, nbytes: int) -> None:
    """An eighth of keys and values in shakespeare; as published in DeepSeek-V3."""
    config = ModelConfig.preset(preset, vocab_size=100)
    cache = LatentCache(config, batch=2, length=10, dtype=dtype)
    live = [tensor for tensor in vars(cache).values() if isinstance(tensor, Tensor)]
    assert sum(tensor.untyped_storage().nbytes() for tensor in live) == 2 * 10 * nbytes


def test_a_full_cache_says_what_fits(ids_BS: Tensor) -> None:
    model = make_model().eval()
    cache = LatentCache(model.config, 4, 23)
    with torch.no_grad():
        model(ids_BS[:, :15], cache=cache)
        with pytest.raises(ValueError, match="holds 23 tokens, 15 of them used: 9 more"):
            model(ids_BS[:, 15:], cache=cache)
    assert cache.used == 15


def test_a_cache_in_bf16_serves_a_model_in_bf16(ids_BS: Tensor) -> None:
    model = make_model().eval().bfloat16()
    cache = LatentCache(model.config, 4, 24, dtype=torch.bfloat16)
    with torch.no_grad():
        expected = model(ids_BS).logits_BSV.float()
        for start, end in [(0, 12), (12, 13), (13, 24)]:
            actual = model(ids_BS[:, start:end], cache=cache).logits_BSV.float()
            error = (actual - expected[:, start:end]).abs().mean()
            assert error < 0.1 * expected.abs().mean()
