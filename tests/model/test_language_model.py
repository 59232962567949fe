"""The model as a whole: sizes, initial weights, number formats, and configs that contradict."""

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moe_model import PRESETS, LanguageModel, ModelConfig
from moe_model.config import Llama3Scaling, YarnScaling
from tests.counted import counter_of
from tests.model.conftest import make_config, make_model


@pytest.mark.parametrize("rope", [2, 8])
@pytest.mark.parametrize("ranks", [(15, None), (16, 5), (15, 5)])
def test_a_single_token_is_read_wherever_its_rotary_part_begins(
    ranks: tuple[int, int | None], rope: int, ids_BS: Tensor
) -> None:
    """With an odd rank of a latent it begins at an odd place, where no complex number may."""
    fields = {"kv_lora_rank": ranks[0], "q_lora_rank": ranks[1], "qk_nope_head_dim": 7}
    model = make_model(**fields, qk_rope_head_dim=rope)
    expected, found = model(ids_BS[:1]).logits_BSV[:, :1], model(ids_BS[:1, :1]).logits_BSV
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    gradients = []
    for logits in (expected, found):
        model.zero_grad()
        logits.square().mean().backward()
        gradients.append(model.layers[0].self_attn.kv_a_proj_with_mqa.weight.grad)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"q_lora_rank": 12, "attention_bias": True},
        {"n_shared_experts": 0, "attention_bias": True},
        {"n_shared_experts": 2, "tie_word_embeddings": True},
        {"num_nextn_predict_layers": 2},
    ],
)
def test_parameters_are_counted_without_building(fields: dict[str, int | None]) -> None:
    model = make_model(**fields)
    assert model.config.parameters() == sum(p.numel() for p in model.parameters())
    expert = 3 * model.config.hidden_size * model.config.moe_intermediate_size
    active = model.config.parameters(multi_token_prediction=False) - 2 * 6 * expert
    assert model.config.active_parameters() == active


@pytest.mark.parametrize(
    ("name", "millions", "active_millions"),
    [
        ("tiny", 4.699, 2.349),
        ("small", 72.261, 26.845),
        ("shakespeare", 114.431, 50.730),
        ("deepseek-v3", 671_026.404, 37_552.283),  # published: 671B, 37B
    ],
)
def test_presets_have_their_size_and_run_the_grouped_product(
    name: str, millions: float, active_millions: float
) -> None:
    """Widths that are not a multiple of 16 bytes would silently take the slow loop."""
    config = ModelConfig.preset(name, **({} if name == "deepseek-v3" else {"vocab_size": 100}))
    size = config.parameters(multi_token_prediction=False)
    assert (size / 1e6, config.active_parameters() / 1e6) == pytest.approx(
        (millions, active_millions), abs=0.001
    )
    assert config.hidden_size % 8 == config.moe_intermediate_size % 8 == 0
    assert ModelConfig.from_dict(config.to_dict()) == config
    if name == "deepseek-v3":
        # "11.5B" in its README: 257 experts, attention and the projection are 11.6.
        assert round((config.parameters() - size) / 1e9, 1) == 11.6
        assert config.initializer_range == 0.02, "as published"
    else:
        assert config.initializer_range * config.hidden_size**0.5 == pytest.approx(1, rel=0.05)
    with torch.device("meta"):
        model = LanguageModel(config)
    assert sum(p.numel() for p in model.parameters()) == config.parameters()


def test_initial_weights_are_normal_and_those_behind_a_latent_as_large_as_a_projection() -> None:
    """What a latent is expanded to begins as large as a projection of the stream itself."""
    model = LanguageModel(
        make_config(hidden_size=128, q_lora_rank=32, kv_lora_rank=16, attention_bias=True)
    )
    for parameter in model.parameters():
        parameter.data.fill_(9)
    model.routers[0].expert_bias.fill_(9)
    model.init_weights(torch.Generator().manual_seed(0))
    assert model.embed_tokens.weight.std().item() == pytest.approx(0.02, rel=0.1)
    for router in model.routers:
        assert router.weight.std().item() == pytest.approx(0.02, rel=0.2)
        assert not router.expert_bias.any()
    assert (model.norm.weight == 1).all()
    stream = torch.randn(512, 128, generator=torch.Generator().manual_seed(1))
    for layer in model.decoder_layers:
        attention = layer.self_attn
        assert not attention.o_proj.bias.any()
        direct = attention.q_a_proj(stream).std().item()
        for expand, rank in ((attention.q_b_proj, 32), (attention.kv_b_proj, 16)):
            expanded = expand(stream[:, :rank]).std().item()
            assert expanded == pytest.approx(direct, rel=0.15)


def test_same_seed_same_weights_for_any_global_generator() -> None:
    first, second = LanguageModel(make_config()), LanguageModel(make_config())
    for model in (first, second):
        model.init_weights(torch.Generator().manual_seed(5))
        torch.rand(3)
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_fp32_router_weights_do_not_promote_a_bf16_stream(ids_BS: Tensor) -> None:
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
def test_compiled_layers_compute_and_count_the_same(dtype: torch.dtype, ids_BS: Tensor) -> None:
    """Captured for the compiler and run without generated code, which would take a minute."""
    plain, compiled = (make_model(num_hidden_layers=2).train() for _ in range(2))
    for layer in compiled.layers[1:]:
        layer.compile(backend="aot_eager")
    losses, counts = [], []
    for model in (plain, compiled):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            logits_BSV, routings = model(ids_BS)[:2]
        losses.append(F.cross_entropy(logits_BSV.flatten(0, 1), ids_BS.flatten()))
        counts.append(counter_of(model, routings).counts)
        losses[-1].backward()
        assert not any(router.expert_bias.any() for router in model.routers)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(losses[1], losses[0], atol=tolerance, rtol=tolerance)
    assert counts[0].sum() == counts[1].sum() == 2 * ids_BS.numel()
    if dtype == torch.float32:
        assert torch.equal(*counts)
        for ours, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)


def test_an_empty_batch_is_accepted() -> None:
    """The last rank of an uneven evaluation gets one."""
    logits_BSV = make_model().eval()(torch.zeros(0, 5, dtype=torch.int64)).logits_BSV
    assert logits_BSV.shape == (0, 5, 97)


def test_frozen_prediction_has_neither_gradients_nor_routers() -> None:
    model = make_model(num_nextn_predict_layers=2)
    assert model.router_depths == (1, 2, 3, 4)
    assert [router is model.mtp[0].layer.mlp.router for router in model.routers] == [0, 0, 1, 0]
    model.freeze_ahead()
    assert model.router_depths == (1, 2)
    assert len(model.routers) == 2
    assert not any(parameter.requires_grad for parameter in model.mtp.parameters())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_group": 3}, "n_routed_experts=8 is not divisible by n_group=3: choose for example 9"),
        ({"n_group": 8, "topk_group": 2}, "leaves 1 expert a group"),
        ({"n_group": 4, "topk_group": 5}, "topk_group=5 exceeds n_group=4"),
        ({"n_group": 4, "num_experts_per_tok": 3}, "hold 2, less than num_experts_per_tok=3"),
        ({"n_group": 4, "topk_method": "greedy"}, "'greedy' does not support groups"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok=9 is more than n_routed_experts=8"),
        ({"qk_rope_head_dim": 7}, "qk_rope_head_dim=7 is odd"),
        ({"rope_theta": 1}, "rope_theta=1 rotates all pairs alike"),
        ({"first_k_dense_replace": 4}, "first_k_dense_replace=4 is more than num_hidden_layers=3"),
        ({"hidden_size": 0}, "hidden_size=0 is out of range: choose 1 or more"),
        ({"scoring_func": "relu"}, "choose sigmoid or softmax"),
        ({"capacity_factor": -1.0}, "capacity_factor=-1.0 must be positive"),
        ({"drop_policy": "random"}, "drop_policy='random' is unknown: choose position or weight"),
        ({"router_jitter_noise": 1.0}, "router_jitter_noise=1.0 is out of range"),
        ({"num_nextn_predict_layers": -1}, "num_nextn_predict_layers=-1 is out of range"),
        ({"routed_scaling_factor": 0.0}, "routed_scaling_factor=0.0 must be positive"),
    ],
)
def test_contradictions_are_refused_with_a_way_out(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"factor": 0.5}, "rope_scaling.factor=0.5 is out of range: choose 1 or more"),
        ({"beta_fast": 1.0}, "beta_slow=1.0 is not below beta_fast=1.0"),
        ({"mscale": float("nan")}, "rope_scaling.mscale=nan is out of range"),
        ({"original_max_position_embeddings": 0}, "choose 1 or more"),
    ],
)
def test_impossible_scaling_is_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        YarnScaling(**{"factor": 4.0, "original_max_position_embeddings": 64, **fields})


def test_descriptions_keep_scaling_and_name_wrong_fields() -> None:
    yarn = YarnScaling(factor=4.0, original_max_position_embeddings=64)
    llama3 = Llama3Scaling(
        factor=8.0, original_max_position_embeddings=16, low_freq_factor=1.0, high_freq_factor=4.0
    )
    for scaling in (llama3, yarn):
        config = make_config(rope_scaling=scaling)
        described = json.loads(json.dumps(config.to_dict()))
        assert ModelConfig.from_dict(described) == config
    smallest = {"factor": 4, "original_max_position_embeddings": 64}
    assert ModelConfig.from_dict({**described, "rope_scaling": smallest}).rope_scaling == yarn
    for incomplete, missing in (
        ({"factor": 4.0}, "fields original_max_position_embeddings are"),
        ({**smallest, "low_freq_factor": 1.0}, "fields high_freq_factor are"),
    ):
        with pytest.raises(ValueError, match=f"{missing} unknown or missing in rope_scaling"):
            ModelConfig.from_dict({**described, "rope_scaling": incomplete})
    del described["hidden_size"]
    with pytest.raises(ValueError, match="'extra', hidden_size"):
        ModelConfig.from_dict(described | {"extra": 1})
    with pytest.raises(ValueError, match=f"choose one of {', '.join(PRESETS)}"):
        ModelConfig.preset("large", vocab_size=100)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_layers_are_recomputed_and_rounded_alike(dtype: torch.dtype, ids_BS: Tensor) -> None:
    exact = make_model().train()
    kept, recomputed = make_model().train(), make_model().train()
    recomputed.recompute = True
    exact_logits, chosen = exact(ids_BS).logits_BSV, []
    for model in (kept, recomputed):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            output = model(ids_BS)
        logits_BSV = output.logits_BSV
        chosen.append([routing.expert_ids_TK for routing in output.routings])
        error = (logits_BSV - exact_logits).abs().mean()
        assert error <= (1e-6 if dtype == torch.float32 else 0.1) * exact_logits.abs().mean()
        logits_BSV.float().square().mean().backward()
    for ours, expected in zip(recomputed.parameters(), kept.parameters(), strict=True):
        assert torch.equal(ours.grad, expected.grad)
    assert all(map(torch.equal, *chosen))
