"""The model as a whole: causality, initial weights, sizes."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moe_model import PRESETS, LanguageModel, ModelConfig
from moe_model.config import YarnScaling


def test_a_future_token_does_not_change_past_logits(
    make_model: Callable[..., LanguageModel], ids_BS: Tensor
) -> None:
    model = make_model().eval()
    changed_BS = ids_BS.clone()
    changed_BS[:, 15] = (changed_BS[:, 15] + 1) % 97
    with torch.no_grad():
        before, after = model(ids_BS).logits_BSV, model(changed_BS).logits_BSV
    torch.testing.assert_close(before[:, :15], after[:, :15], atol=1e-5, rtol=0)
    assert not torch.allclose(before[:, 15:], after[:, 15:], atol=1e-3)


@pytest.mark.parametrize("rope", [2, 8])
@pytest.mark.parametrize("ranks", [(15, None), (16, 5), (15, 5)])
def test_a_single_token_is_read_wherever_its_rotary_part_begins(
    ranks: tuple[int, int | None],
    rope: int,
    make_model: Callable[..., LanguageModel],
    ids_BS: Tensor,
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


def test_order_of_the_past_matters(
    make_model: Callable[..., LanguageModel], ids_BS: Tensor
) -> None:
    """Without rotary positions, attention would see the past as a bag."""
    model = make_model(num_hidden_layers=2).eval()
    swapped_BS = ids_BS[:, [1, 0, *range(2, 24)]]
    with torch.no_grad():
        difference = model(ids_BS).logits_BSV[:, -1] - model(swapped_BS).logits_BSV[:, -1]
    assert difference.abs().max() > 1e-3


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"q_lora_rank": 12},
        {"n_shared_experts": 0},
        {"tie_word_embeddings": True},
        {"num_nextn_predict_layers": 2},
    ],
)
def test_parameters_are_counted_without_building(
    fields: dict[str, int | None], make_model: Callable[..., LanguageModel]
) -> None:
    model = make_model(**fields)
    assert model.config.parameters() == sum(p.numel() for p in model.parameters())


def test_active_parameters_leave_out_the_experts_not_chosen(
    make_config: Callable[..., ModelConfig],
) -> None:
    config = make_config()
    expert = 3 * config.hidden_size * config.moe_intermediate_size
    idle = len(config.moe_layers) * (config.n_routed_experts - config.num_experts_per_tok)
    assert config.active_parameters() == config.parameters() - idle * expert


def test_initial_weights_are_normal_and_the_router_is_not_zero(
    make_config: Callable[..., ModelConfig],
) -> None:
    model = LanguageModel(make_config(hidden_size=128, initializer_range=0.02))
    assert model.embed_tokens.weight.std().item() == pytest.approx(0.02, rel=0.1)
    for router in model.routers:
        assert router.weight.std().item() == pytest.approx(0.02, rel=0.2)
        assert not router.expert_bias.any()
    assert (model.norm.weight == 1).all()


def test_what_a_latent_is_expanded_to_begins_as_large_as_a_projection_of_the_stream(
    make_config: Callable[..., ModelConfig],
) -> None:
    model = LanguageModel(make_config(hidden_size=128, q_lora_rank=32, kv_lora_rank=16))
    stream, generator = torch.randn(512, 128), torch.Generator().manual_seed(0)
    model.init_weights(generator)
    for layer in model.decoder_layers:
        attention = layer.self_attn
        direct = attention.q_a_proj(stream).std().item()
        for expand, rank in ((attention.q_b_proj, 32), (attention.kv_b_proj, 16)):
            expanded = expand(torch.randn(512, rank)).std().item()
            assert expanded == pytest.approx(direct, rel=0.15)


def test_presets_begin_with_weights_that_fit_their_width() -> None:
    for name in ("tiny", "small", "shakespeare"):
        config = ModelConfig.preset(name, vocab_size=100)
        assert config.initializer_range * config.hidden_size**0.5 == pytest.approx(1, rel=0.05)
    assert ModelConfig.preset("deepseek-v3").initializer_range == 0.02, "as published"


def test_same_seed_same_weights_whatever_the_global_generator(
    make_config: Callable[..., ModelConfig],
) -> None:
    first, second = LanguageModel(make_config()), LanguageModel(make_config())
    for model in (first, second):
        model.init_weights(torch.Generator().manual_seed(5))
        torch.rand(3)
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_hidden_router_is_noticed(make_model: Callable[..., LanguageModel]) -> None:
    model = make_model()
    model.layers[1].mlp = torch.nn.Identity()
    with pytest.raises(RuntimeError, match="found 1 routers, expected 2"):
        _ = model.routers


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_built(name: str) -> None:
    config = ModelConfig.preset(name, vocab_size=100)
    with torch.device("meta"):
        model = LanguageModel(config)
    assert sum(p.numel() for p in model.parameters()) == config.parameters()
    assert ModelConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_runs_the_grouped_product(name: str) -> None:
    """Widths that are not a multiple of 16 bytes would silently take the slow loop."""
    config = ModelConfig.preset(name, vocab_size=100)
    assert config.hidden_size % 8 == 0
    assert config.moe_intermediate_size % 8 == 0


def test_published_configuration_has_the_published_size() -> None:
    config = ModelConfig.preset("deepseek-v3")
    main = config.parameters(multi_token_prediction=False)
    assert round(main / 1e9, 1) == 671.0
    assert round(config.active_parameters() / 1e9, 2) == 37.55
    # "11.5B" in its README: 257 experts, attention and the projection are 11.6.
    assert round((config.parameters() - main) / 1e9, 1) == 11.6


def test_tiny_is_tiny() -> None:
    config = ModelConfig.preset("tiny", vocab_size=100)
    assert 3e6 < config.parameters() < 8e6
    assert config.active_parameters() < config.parameters() / 1.9


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_group": 3}, "n_routed_experts=8 is not divisible by n_group=3: choose 2 groups or 9"),
        ({"n_group": 8, "topk_group": 2}, "leaves 1 expert a group"),
        ({"n_group": 4, "topk_group": 5}, "topk_group=5 exceeds n_group=4"),
        ({"n_group": 4, "num_experts_per_tok": 3}, "hold 2, less than num_experts_per_tok=3"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok=9 is more than n_routed_experts=8"),
        ({"qk_rope_head_dim": 7}, "qk_rope_head_dim=7 is odd"),
        ({"first_k_dense_replace": 3}, "leaves no expert layer"),
        ({"hidden_size": 0}, "hidden_size=0 is out of range: choose 1 or more"),
        ({"scoring_func": "relu"}, "choose sigmoid or softmax"),
        ({"capacity_factor": -1.0}, "capacity_factor=-1.0 must be positive"),
        ({"drop_policy": "random"}, "drop_policy='random' is unknown: choose position or weight"),
        ({"router_jitter_noise": 1.0}, "router_jitter_noise=1.0 is out of range"),
        ({"num_nextn_predict_layers": -1}, "num_nextn_predict_layers=-1 is out of range"),
        ({"routed_scaling_factor": 0.0}, "routed_scaling_factor=0.0 must be positive"),
    ],
)
def test_contradictions_are_refused_with_values_and_a_way_out(
    fields: dict[str, int], message: str, make_config: Callable[..., ModelConfig]
) -> None:
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
def test_a_stretch_that_makes_no_sense_is_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        YarnScaling(**{"factor": 4.0, "original_max_position_embeddings": 64, **fields})


def test_stretch_survives_the_description_of_a_checkpoint(
    make_config: Callable[..., ModelConfig],
) -> None:
    yarn = YarnScaling(factor=4.0, original_max_position_embeddings=64)
    config = make_config(rope_scaling=yarn)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match="rope_scaling"):
        make_config().from_dict({**config.to_dict(), "rope_scaling": {"factor": 4.0}})


def test_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="choose one of tiny, small, shakespeare"):
        ModelConfig.preset("large", vocab_size=100)


def test_unknown_and_missing_config_fields_are_named(
    make_config: Callable[..., ModelConfig],
) -> None:
    fields = make_config().to_dict() | {"extra": 1}
    del fields["hidden_size"]
    with pytest.raises(ValueError, match="extra, hidden_size"):
        ModelConfig.from_dict(fields)
