"""The prepared weights compute what the model computes, and the cache holds what it promises."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from moe_model import FEW, Decoder, LanguageModel, LatentCache, ModelConfig
from moe_model.config import YarnScaling

MakeModel = Callable[..., LanguageModel]
YARN = YarnScaling(factor=4.0, original_max_position_embeddings=10, mscale=0.7, mscale_all_dim=0.9)
VARIANTS = [
    pytest.param(
        {"q_lora_rank": rank, "n_group": groups, "topk_group": -(-groups // 2), **more},
        id=f"{name}, {groups} groups, {'low-rank' if rank else 'plain'} query",
    )
    for rank, groups, (name, more) in itertools.product(
        [None, 20],
        [1, 4],
        {
            "rotary": {},
            "yarn": {"rope_scaling": YARN},
            "tied, no shared expert": {"tie_word_embeddings": True, "n_shared_experts": 0},
        }.items(),
    )
]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("fields", VARIANTS)
def test_prepared_weights_compute_what_the_model_computes(
    fields: dict[str, Any], threads: int, make_model: MakeModel, ids_BS: Tensor
) -> None:
    """A long prompt, then one, several and too many tokens at once."""
    model = make_model(n_routed_experts=16, num_experts_per_tok=4, **fields).eval()
    for router in model.routers:
        router.expert_bias.normal_(-0.6, 0.3, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = model(ids_BS[:1])
    torch.set_num_threads(threads)
    try:
        decoder = Decoder(model, 24, weights=torch.float32)
    finally:
        torch.set_num_threads(1)
    ids = ids_BS[0].tolist()
    for start, end in [(0, 9), (9, 10), (10, 13), (13, 13 + FEW + 1), (22, 24)]:
        logits_SV, hidden_SD = decoder.read(ids[start:end])
        torch.testing.assert_close(
            logits_SV, expected.logits_BSV[0, start:end], atol=2e-5, rtol=1e-5
        )
        torch.testing.assert_close(
            hidden_SD, expected.hidden_BSD[0, start:end], atol=2e-5, rtol=1e-5
        )


def test_half_precision_rounds_a_little_and_keeps_sums_and_cache_in_fp32(
    make_model: MakeModel, ids_BS: Tensor
) -> None:
    model = make_model().eval()
    exact = Decoder(model, 24, weights=torch.float32)
    half = Decoder(model, 24, weights=torch.float16)
    assert half.cache.entries_LBNW.dtype == torch.float32
    difference = 0.0
    for token in ids_BS[0].tolist():
        ours, theirs = half.read([token])[0], exact.read([token])[0]
        assert ours.dtype == torch.float32
        difference = max(difference, (ours - theirs).abs().max().item())
    assert 0 < difference < 0.05


def test_what_is_forgotten_leaves_no_trace(make_model: MakeModel, ids_BS: Tensor) -> None:
    model = make_model().eval()
    ids = ids_BS[0].tolist()
    direct, detour = (Decoder(model, 24, weights=torch.float32) for _ in range(2))
    expected, _ = direct.read(ids[:4])
    expected, _ = direct.read(ids[4:6])
    detour.read(ids[:4])
    detour.read([5, 6, 7])
    detour.cache.used -= 3
    assert torch.equal(detour.read(ids[4:6])[0], expected)


def test_cache_takes_latent_and_rotary_key_and_nothing_else(
    make_config: Callable[..., ModelConfig],
) -> None:
    config = make_config()
    for dtype, size in [(torch.float32, 4), (torch.bfloat16, 2)]:
        cache = LatentCache(config, batch=2, length=10, dtype=dtype)
        a_token = config.num_hidden_layers * (config.kv_lora_rank + config.qk_rope_head_dim) * size
        live = [tensor for tensor in vars(cache).values() if isinstance(tensor, Tensor)]
        assert sum(tensor.untyped_storage().nbytes() for tensor in live) == 2 * 10 * a_token
        assert cache.entries_LBNW.nbytes == 2 * 10 * a_token


def test_shakespeare_caches_an_eighth_of_keys_and_values() -> None:
    config = ModelConfig.preset("shakespeare", vocab_size=256)
    cache = LatentCache(config, batch=1, length=1)
    heads_of_width = config.num_attention_heads * config.v_head_dim
    assert heads_of_width == config.hidden_size == 768
    keys_and_values = config.num_hidden_layers * 2 * heads_of_width * 4
    assert cache.entries_LBNW.nbytes * 8 == keys_and_values


def test_published_configuration_caches_70272_bytes_a_token() -> None:
    config = ModelConfig.preset("deepseek-v3")
    cache = LatentCache(config, batch=1, length=1, dtype=torch.bfloat16, device="meta")
    assert cache.entries_LBNW.nbytes == 70_272


def test_a_full_cache_says_what_fits(make_model: MakeModel, ids_BS: Tensor) -> None:
    model = make_model().eval()
    cache = LatentCache(model.config, 4, 20)
    with torch.no_grad():
        model(ids_BS[:, :15], cache=cache)
        with pytest.raises(ValueError, match="holds 20 tokens, 15 of them used: 9 more"):
            model(ids_BS[:, 15:], cache=cache)
    assert cache.used == 15


def test_a_cache_in_bf16_serves_a_model_in_bf16(make_model: MakeModel, ids_BS: Tensor) -> None:
    model = make_model().eval().bfloat16()
    cache = LatentCache(model.config, 4, 24, dtype=torch.bfloat16)
    with torch.no_grad():
        expected = model(ids_BS).logits_BSV.float()
        for start, end in [(0, 12), (12, 13), (13, 24)]:
            actual = model(ids_BS[:, start:end], cache=cache).logits_BSV.float()
            error = (actual - expected[:, start:end]).abs().mean()
            assert error < 0.1 * expected.abs().mean()
