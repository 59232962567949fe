"""Same weights, same tokens: logits and gradients equal those of transformers' DeepseekV3.

fp32 on one CPU thread. The biases are negative, because masking with zero instead of minus infinity
only shows then; v_head_dim differs from the key's, because a swapped split only shows then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from moe_model.model import LanguageModel

TOLERANCE = 2e-5
SHAPE = {
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "v_head_dim": 12,
    "routed_scaling_factor": 2.5,
}
VARIANTS = [
    pytest.param({"q_lora_rank": rank, "n_group": groups, "topk_group": best}, id=name)
    for rank, groups, best, name in [
        (None, 1, 1, "plain query, one group"),
        (None, 4, 2, "plain query, four groups"),
        (20, 1, 1, "low-rank query, one group"),
        (20, 4, 2, "low-rank query, four groups"),
    ]
]


def their_name(name: str) -> str:
    """Hugging Face's name in memory of one of our tensors."""
    name = name.replace("mlp.router.weight", "mlp.gate.weight")
    name = name.replace("mlp.router.expert_bias", "mlp.gate.e_score_correction_bias")
    return name if name.startswith("lm_head") else f"model.{name}"


def twin(model: LanguageModel, **changes: Any) -> DeepseekV3ForCausalLM:
    """The same model in transformers, weights copied."""
    fields = model.config.to_dict()
    theta = fields.pop("rope_theta")
    del fields["scoring_func"]
    fields["num_key_value_heads"] = model.config.num_attention_heads
    fields["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    config = DeepseekV3Config(**{**fields, "rope_interleave": True, **changes})
    config._attn_implementation = "eager"
    theirs = DeepseekV3ForCausalLM(config)
    weights = {their_name(name): tensor for name, tensor in model.state_dict().items()}
    theirs.load_state_dict(weights, strict=True)
    return theirs.float()


@pytest.fixture
def make_biased(make_model: Callable[..., LanguageModel]) -> Callable[..., LanguageModel]:
    """A model whose expert biases are about -0.6 ± 0.3."""

    def make(**fields: Any) -> LanguageModel:
        model = make_model(**{**SHAPE, **fields})
        generator = torch.Generator().manual_seed(2)
        for router in model.routers:
            router.expert_bias.normal_(-0.6, 0.3, generator=generator)
        return model

    return make


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal(
    variant: dict[str, Any], make_biased: Callable[..., LanguageModel], ids_BS: Tensor
) -> None:
    model = make_biased(**variant).eval()
    theirs = twin(model).eval()
    with torch.no_grad():
        expected = theirs(ids_BS, use_cache=False).logits
        actual = model(ids_BS).logits_BSV
    assert expected.abs().mean() > 0.3, "logits too small to tell anything"
    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_of_every_weight_equal(
    variant: dict[str, Any], make_biased: Callable[..., LanguageModel], ids_BS: Tensor
) -> None:
    model = make_biased(**variant).train()
    theirs = twin(model).train()
    targets = ids_BS.roll(-1, dims=1).flatten()
    F.cross_entropy(theirs(ids_BS, use_cache=False).logits.flatten(0, 1), targets).backward()
    F.cross_entropy(model(ids_BS).logits_BSV.flatten(0, 1), targets).backward()
    expected = dict(theirs.named_parameters())
    compared = 0
    for name, parameter in model.named_parameters():
        gradient = expected[their_name(name)].grad
        assert gradient is not None
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, atol=TOLERANCE, rtol=1e-4, msg=name)
        compared += 1
    assert compared == len(expected)


def test_rotary_pairs_are_interleaved(
    make_biased: Callable[..., LanguageModel], ids_BS: Tensor
) -> None:
    """The other layout gives other logits, so the parity above did test the layout."""
    model = make_biased().eval()
    halves = twin(model, rope_interleave=False).eval()
    with torch.no_grad():
        difference = model(ids_BS).logits_BSV - halves(ids_BS, use_cache=False).logits
    assert difference.abs().max() > 1e-2
