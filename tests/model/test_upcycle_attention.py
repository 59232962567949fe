"""Latent attention made of a Llama's: exact where theory says so, and never worse for more rank.

The oracle is transformers' Llama. Exact needs a latent as wide as the stream, all pairs rotary, and
keys of all heads that are mixes of one.
"""

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from moe_model.attention import (
    MultiHeadLatentAttention,
    rotary_table,
    slowed_as_in_llama3,
    softmax_scale,
)
from moe_model.config import Llama3Scaling
from moe_model.fused import rotate
from moe_model.upcycle import attention
from moe_model.upcycle.conversion import Shape, resolve, upcycle, upcycled_config
from moe_model.upcycle.llama import Windows, observe
from tests.model.llamas import SHAPE, random_llama
from tests.model.published import LLAMA3

TOLERANCE = 1e-4
EXACT = {"kv_lora_rank": 48, "qk_rope_head_dim": 16, "rotary_mixes": 1}
IDS_BS = torch.randint(97, (4, 40), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def largest_difference(llama: Any, **shape: int | None) -> float:
    """Between the logits of ``llama`` and of the new model, without noise."""
    expected = llama(IDS_BS).logits
    assert expected.abs().mean() > 0.3, "logits too small to prove anything"
    resolved = resolve(Shape(**shape), llama.config)
    model = upcycle(llama, resolved, Windows(IDS_BS, IDS_BS), noise=0, seed=0).model
    return float((model(IDS_BS).logits_BSV - expected).abs().max())


@pytest.mark.parametrize(
    ("kind", "fields", "shape"),
    [
        pytest.param("llama", {"tie_word_embeddings": True}, {"qk_nope_head_dim": 1}, id="tied"),
        pytest.param("llama", {}, {"qk_nope_head_dim": 8}, id="as much without position"),
        pytest.param("llama", {}, {"qk_nope_head_dim": 20}, id="more without position"),
        pytest.param("llama", {}, {"v_head_dim": 20}, id="more values"),
        pytest.param("qwen2", {}, {"qk_nope_head_dim": 8}, id="Qwen2's biases"),
        pytest.param("llama", {"attention_bias": True}, {"qk_nope_head_dim": 8}, id="all biases"),
        pytest.param("llama", {"rope_parameters": LLAMA3}, {}, id="positions of Llama 3"),
    ],
)
def test_one_kv_head_is_exact(kind: str, fields: dict[str, Any], shape: dict[str, int]) -> None:
    llama = random_llama(kind=kind, num_key_value_heads=1, **fields)
    assert largest_difference(llama, **EXACT, **shape) < TOLERANCE


def test_key_value_heads_whose_keys_differ_by_a_rotation_and_a_factor_are_exact() -> None:
    """One complex factor for each pair is what the queries can take over."""
    llama = random_llama()
    generator = torch.Generator().manual_seed(2)
    for layer in llama.model.layers:
        first_dD, second_dD = layer.self_attn.k_proj.weight.data.view(2, 16, 48)
        real_jD, imaginary_jD = first_dD.chunk(2)
        turn_j1 = torch.rand(8, 1, generator=generator) * 2 * math.pi
        size_j1 = torch.rand(8, 1, generator=generator) + 0.5
        cos, sin = size_j1 * turn_j1.cos(), size_j1 * turn_j1.sin()
        turned = (real_jD * cos - imaginary_jD * sin, real_jD * sin + imaginary_jD * cos)
        second_dD.copy_(torch.cat(turned))
    assert largest_difference(llama, **EXACT) < TOLERANCE


@pytest.mark.parametrize("mixes", [1, 2, 3])
def test_the_first_mix_of_a_pair_rotates_as_before(mixes: int) -> None:
    theta, head, rope = 10_000.0, 16, 12
    before = theta ** (-torch.arange(0, head, 2) / head)
    base = attention.rotary_base(theta, head, rope, mixes)
    after = (base ** (-torch.arange(0, rope, 2) / rope))[::mixes]
    torch.testing.assert_close(after, before[: len(after)])
    stretch = Llama3Scaling(**{n: v for n, v in LLAMA3.items() if not n.startswith("rope_")})
    after, before = (slowed_as_in_llama3(turns, stretch) for turns in (after, before))
    torch.testing.assert_close(after, before[: len(after)])


def test_as_many_mixes_as_key_value_heads_keep_all_of_the_fast_pairs() -> None:
    """And fewer keep less."""
    llama = random_llama(num_attention_heads=6, num_key_value_heads=3)
    kept = []
    for mixes in (1, 2, 3):
        resolved = resolve(Shape(rotary_mixes=mixes), llama.config)
        upcycled = upcycle(llama, resolved, Windows(IDS_BS, IDS_BS), noise=0, seed=0)
        kept.append([layer.rotary for layer in upcycled.kept])
        llama = random_llama(num_attention_heads=6, num_key_value_heads=3)
    for one, two, three in zip(*kept, strict=True):
        assert one < two < 0.999
        assert three == pytest.approx(1)


@pytest.mark.parametrize("rank", [1, 10, 24])
def test_the_view_predicts_best_for_its_rank_and_all_at_full_rank(rank: int) -> None:
    """The singular values that are left out bound every approximation (Eckart and Young, 1936)."""
    generator = torch.Generator().manual_seed(3)
    wanted_MD = torch.randn(40, 24, generator=generator).double()
    inputs_ND = torch.randn(500, 24, generator=generator).double() * torch.linspace(0.1, 2, 24)
    covariance_DD = inputs_ND.T @ inputs_ND / 500
    view_RD, kept = attention.latent_view(wanted_MD, covariance_DD, rank)
    torch.testing.assert_close(view_RD @ view_RD.T, torch.eye(rank).double())
    latent_NR, wanted_NM = inputs_ND @ view_RD.T, inputs_ND @ wanted_MD.T
    found_RM = torch.linalg.lstsq(latent_NR, wanted_NM).solution
    missed = (wanted_NM - latent_NR @ found_RM).square().sum() / wanted_NM.square().sum()
    assert kept == pytest.approx(1 - float(missed), abs=1e-9)
    energy = torch.linalg.svdvals(wanted_NM).square()
    assert kept == pytest.approx(float(energy[:rank].sum() / energy.sum()))


def test_tokens_with_a_long_latent_are_corrected_for() -> None:
    """First tokens of large models are nearly all in one direction, get most of the attention, and
    the norm would shorten them by a third."""
    generator = torch.Generator().manual_seed(5)
    inputs_ND = torch.randn(400, 24, generator=generator).double()
    inputs_ND[:20, 0] = 100
    inputs_ND *= inputs_ND.square().mean(dim=1, keepdim=True).rsqrt()
    view_RD = torch.eye(24).double()[:12]
    wanted_MD = torch.randn(30, 12, generator=generator).double() @ view_RD
    covariance_DD = inputs_ND.T @ inputs_ND / 400
    weight_N = torch.ones(400)
    weight_N[:20] = 20
    expand_MR = attention.expansion(wanted_MD, view_RD, covariance_DD, inputs_ND, weight_N, 1e-6)
    latent_NR = F.rms_norm(inputs_ND @ view_RD.T, (12,))
    wanted_NM = inputs_ND @ wanted_MD.T
    missed_NM = latent_NR @ expand_MR.T - wanted_NM
    assert missed_NM[:20].norm() < 0.1 * wanted_NM[:20].norm()
    assert missed_NM[20:].norm() < 0.25 * wanted_NM[20:].norm()


@pytest.mark.parametrize(("size", "lost"), [(8, 0), (12, 0), (5, 3), (1, 7)])
def test_shortened_sides_lose_only_the_smallest_singular_values(size: int, lost: int) -> None:
    generator = torch.Generator().manual_seed(4)
    left, right = (torch.randn(8, 30, generator=generator).double() for _ in range(2))
    short_left, short_right = attention.shortened(left, left @ left.T, right, right @ right.T, size)
    assert short_left.shape == short_right.shape == (size, 30)
    missed = (left.T @ right - short_left.T @ short_right).square().sum()
    smallest = torch.linalg.svdvals(left.T @ right)[:8].square().flip(0)[:lost].sum()
    torch.testing.assert_close(missed, smallest, atol=1e-9, rtol=1e-9)


@torch.no_grad()
def source_scores(layer: Any, llama: Any, x_BSD: Tensor) -> Tensor:
    """What transformers' attention compares, before the softmax: ``(B, H, S, S)``."""
    theirs, normed = layer.self_attn, x_BSD * layer.input_layernorm.weight
    q, k = (
        p(normed).unflatten(-1, (-1, 16)).transpose(1, 2) for p in (theirs.q_proj, theirs.k_proj)
    )
    turn = llama.model.rotary_emb(normed, torch.arange(x_BSD.shape[1])[None])
    q, k = apply_rotary_pos_emb(q, k, *turn)
    k = k.repeat_interleave(theirs.num_key_value_groups, dim=1)
    return q @ k.transpose(2, 3) * theirs.scaling


@torch.no_grad()
def our_scores(ours: MultiHeadLatentAttention, x_BSD: Tensor) -> Tensor:
    config, heads = ours.config, ours.config.num_attention_heads
    nope, rope = config.qk_nope_head_dim, config.qk_rope_head_dim
    turn = rotary_table(config, torch.arange(x_BSD.shape[1]))
    q_nope, q_rope = ours.q_proj(x_BSD).unflatten(-1, (heads, -1)).split((nope, rope), dim=-1)
    latent, k_rope = ours.kv_a_proj_with_mqa(x_BSD).split((config.kv_lora_rank, rope), dim=-1)
    k_nope = ours.kv_b_proj(ours.kv_a_layernorm(latent)).unflatten(-1, (heads, -1))[..., :nope]
    still = torch.einsum("bqhd,bkhd->bhqk", q_nope, k_nope)
    turned = torch.einsum(
        "bqhd,bkd->bhqk", rotate(q_rope, turn), rotate(k_rope[:, :, None], turn)[:, :, 0]
    )
    return (still + turned) * softmax_scale(config)


@pytest.mark.parametrize(
    ("groups", "shape"),
    [
        pytest.param(1, {"qk_rope_head_dim": 4}, id="pairs that are no longer turned"),
        pytest.param(2, {"qk_rope_head_dim": 32}, id="second mixes, which turn slower"),
        pytest.param(2, {"qk_rope_head_dim": 10}, id="both, and a pair with one mix"),
    ],
)
def test_scores_are_right_at_distances_where_heads_look(groups: int, shape: dict[str, int]) -> None:
    """Heads that always look three tokens back lose nothing there, for any approximation."""
    llama = random_llama(num_key_value_heads=groups)
    seen, layer = observe(llama, IDS_BS)[1], llama.model.layers[1]
    three_back = torch.zeros_like(seen.distance_HS)
    three_back[:, 3] = 1
    seen = dataclasses.replace(seen, distance_HS=three_back)
    resolved = resolve(Shape(kv_lora_rank=48, qk_nope_head_dim=16, **shape), llama.config)
    ours = MultiHeadLatentAttention(upcycled_config(llama.config, resolved))
    attention.convert_attention(ours, layer, seen, resolved.rotary_mixes)
    x_BSD = seen.inputs_ND.view(*IDS_BS.shape, -1)
    expected, found = source_scores(layer, llama, x_BSD), our_scores(ours, x_BSD)

    def difference(far: int) -> float:
        return float((found - expected).diagonal(-far, dim1=2, dim2=3).abs().max())

    assert expected.std() > 0.3, "scores too small to prove anything"
    assert difference(3) < TOLERANCE
    assert difference(4) > 100 * TOLERANCE


def test_readings_are_those_of_the_model_itself() -> None:
    llama, activations = random_llama(), []
    for layer in llama.model.layers:
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, x: activations.append(x[0]))
    with torch.no_grad():
        attentions = llama(IDS_BS, output_attentions=True).attentions
    assert len(attentions) == SHAPE["num_hidden_layers"]
    seen_by_layer = zip(observe(llama, IDS_BS), attentions, llama.model.layers, strict=True)
    for depth, (seen, share_BHSS, layer) in enumerate(seen_by_layer):
        torch.testing.assert_close(seen.inputs_ND.square().mean(), torch.tensor(1.0))
        cost_BHSS = share_BHSS.double().square()
        received_BS = torch.einsum("bhqk->bk", cost_BHSS)
        expected = (received_BS / received_BS.mean()).flatten()
        torch.testing.assert_close(seen.attention_N, expected)
        cost_BHSS[..., 0] = 0
        for far in (0, 1, 39):
            there = torch.arange(40)[:, None] - torch.arange(40) == far
            share_H = (cost_BHSS * there).sum(dim=(0, 2, 3)) / cost_BHSS.sum(dim=(0, 2, 3))
            torch.testing.assert_close(seen.distance_HS[:, far], share_H)
        parts_BSFD = activations[depth].unsqueeze(-1) * layer.mlp.down_proj.weight.T
        size_F = parts_BSFD.norm(dim=-1).mean(dim=(0, 1)).double()
        torch.testing.assert_close(seen.usefulness_F, size_F, rtol=1e-5, atol=0)
    alone = observe(llama, IDS_BS[:, :1])[0]
    assert (alone.distance_HS == 1).all(), "only the first token, which is left out, was there"
