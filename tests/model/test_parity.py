"""Same weights, same tokens: logits and gradients equal those of transformers' DeepseekV3.

fp32 on one CPU thread. The biases are negative, because masking with zero instead of minus infinity
only shows then; v_head_dim differs from the key's, because a swapped split only shows then; YaRN
reaches beyond its original length. ``test_model_types.py`` has more variants of the model.
"""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from benchmarks.transformers_peer import peer, their_name
from moe_model.attention import LatentCache
from moe_model.config import YarnScaling
from tests.model.conftest import make_biased

TOLERANCE = 2e-5
YARN = YarnScaling(factor=4.0, original_max_position_embeddings=10, mscale=0.7, mscale_all_dim=0.9)
"""Both corrections differ from 1, and from each other."""

GROUPS = {"n_group": 4, "topk_group": 2}
CASES = [
    pytest.param(fields, id=name)
    for name, fields in (
        ("biases, yarn", {"attention_bias": True, "rope_scaling": YARN}),
        ("two shared, weights as scored", {"n_shared_experts": 2, "norm_topk_prob": False}),
        ("1e-6 in attention for any eps", {"q_lora_rank": 20, "rms_norm_eps": 1e-2}),
        ("all at once", {"q_lora_rank": 20, "rope_scaling": YARN, **GROUPS}),
    )
]


@pytest.mark.parametrize("fields", CASES)
def test_logits_and_gradients_of_every_weight_equal(fields: dict[str, Any], ids_BS: Tensor) -> None:
    model = make_biased(**fields).train()
    theirs = peer(model).train()
    expected_BSV = theirs(ids_BS, use_cache=False).logits
    logits_BSV = model(ids_BS).logits_BSV
    assert expected_BSV.abs().mean() > 0.3, "logits too small to prove anything"
    torch.testing.assert_close(logits_BSV, expected_BSV, atol=TOLERANCE, rtol=0)

    generator = torch.Generator().manual_seed(4)
    weight_BSV = torch.randn(expected_BSV.shape, generator=generator) / ids_BS.numel()
    (expected_BSV * weight_BSV).sum().backward()
    (logits_BSV * weight_BSV).sum().backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert {their_name(name) for name, _ in model.named_parameters()} == expected.keys()
    for name, parameter in model.named_parameters():
        gradient = expected[their_name(name)]
        error = (parameter.grad - gradient).norm() / gradient.norm()
        assert error <= 1e-4, name


@pytest.mark.parametrize("fields", CASES)
@torch.no_grad()
def test_reading_in_parts_equals_theirs_with_their_cache(
    fields: dict[str, Any], ids_BS: Tensor
) -> None:
    """A prompt, few tokens after it, many, one far behind."""
    model = make_biased(**fields).eval()
    theirs = peer(model).eval()
    past = DynamicCache(config=theirs.config)
    cache = LatentCache(model.config, len(ids_BS), ids_BS.shape[1])
    for start, end in pairwise([0, 3, 5, 6, 20, 21, 24]):
        part_BS = ids_BS[:, start:end]
        expected = theirs(part_BS, cache=past, use_cache=True).logits
        logits_BSV = model(part_BS, cache=cache).logits_BSV
        torch.testing.assert_close(logits_BSV, expected, atol=TOLERANCE, rtol=0)
    assert cache.used == ids_BS.shape[1]
