"""Same weights, same tokens: logits and gradients equal those of transformers' DeepseekV3.

fp32 on one CPU thread. The biases are negative, because masking with zero instead of minus infinity
only shows then; v_head_dim differs from the key's, because a swapped split only shows then; YaRN
reaches beyond its original length. For padding, transformers gets the same mask and the positions
that its ``generate`` computes: they count the real tokens only. ``test_model_types.py`` has more
variants of the model, without padding.
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
ALL_AT_ONCE = {"q_lora_rank": 20, "rope_scaling": YARN, **GROUPS}
LEFT = ["." * 24, " " * 7 + "." * 17, " " * 23 + ".", " " * 12 + "." * 12]
RIGHT = ["." * 24, "." * 17 + " " * 7, "." + " " * 23, "." * 12 + " " * 12]
HOLES = ["." * 24, "  " + "." * 20 + "  ", "...    " + "." * 17, " ." * 12]
CASES = [
    pytest.param(fields, padding, id=name)
    for name, fields, padding in (
        ("biases, yarn", {"attention_bias": True, "rope_scaling": YARN}, None),
        ("two shared, weights as scored", {"n_shared_experts": 2, "norm_topk_prob": False}, None),
        ("1e-6 in attention for any eps", {"q_lora_rank": 20, "rms_norm_eps": 1e-2}, None),
        ("padding on the left", {}, LEFT),
        ("padding on the right", {"rope_scaling": YARN}, RIGHT),
        ("padding everywhere", {}, HOLES),
        ("padding on the left, all at once", ALL_AT_ONCE, LEFT),
        ("padding everywhere, all at once", ALL_AT_ONCE, HOLES),
    )
]


def real_tokens(padding: list[str] | None) -> Tensor:
    return torch.tensor([[char == "." for char in row] for row in padding or ["." * 24] * 4])


def their_logits(
    theirs: torch.nn.Module, ids_BS: Tensor, valid_BS: Tensor, past: DynamicCache | None = None
) -> Tensor:
    """Logits of transformers; with a cache those of the columns that are not in it."""
    start = 0 if past is None else past.get_seq_length()
    position_BS = (valid_BS.long().cumsum(-1) - 1).masked_fill(~valid_BS, 0)
    logits: Tensor = theirs(
        ids_BS[:, start:],
        attention_mask=valid_BS.long(),
        position_ids=position_BS[:, start:],
        cache=past,
        use_cache=past is not None,
    ).logits
    return logits


@pytest.mark.parametrize(("fields", "padding"), CASES)
def test_logits_and_gradients_of_every_weight_equal(
    fields: dict[str, Any], padding: list[str] | None, ids_BS: Tensor
) -> None:
    model = make_biased(**fields).train()
    theirs = peer(model).train()
    valid_BS = real_tokens(padding)
    expected_MV = their_logits(theirs, ids_BS, valid_BS)[valid_BS]
    logits_BSV = model(ids_BS, None if padding is None else valid_BS).logits_BSV
    assert expected_MV.abs().mean() > 0.3, "logits too small to prove anything"
    torch.testing.assert_close(logits_BSV[valid_BS], expected_MV, atol=TOLERANCE, rtol=0)
    assert logits_BSV.isfinite().all(), "padding is computed too and must not become NaN"

    generator = torch.Generator().manual_seed(4)
    weight_MV = torch.randn(expected_MV.shape, generator=generator) / len(expected_MV)
    (expected_MV * weight_MV).sum().backward()
    (logits_BSV[valid_BS] * weight_MV).sum().backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert {their_name(name) for name, _ in model.named_parameters()} == expected.keys()
    for name, parameter in model.named_parameters():
        gradient = expected[their_name(name)]
        error = (parameter.grad - gradient).norm() / gradient.norm()
        assert error <= 1e-4, name


@pytest.mark.parametrize(("fields", "padding"), CASES)
@torch.no_grad()
def test_reading_in_parts_equals_theirs_with_their_cache(
    fields: dict[str, Any], padding: list[str] | None, ids_BS: Tensor
) -> None:
    """A prompt, few tokens after it, many, one far behind, columns of padding."""
    model = make_biased(**fields).eval()
    theirs = peer(model).eval()
    past = DynamicCache(config=theirs.config)
    cache = LatentCache(model.config, len(ids_BS), ids_BS.shape[1])
    valid_BS = real_tokens(padding)
    for start, end in pairwise([0, 3, 5, 6, 20, 21, 24]):
        expected = their_logits(theirs, ids_BS[:, :end], valid_BS[:, :end], past)
        real_BS = valid_BS[:, start:end]
        given = None if padding is None else real_BS
        logits_BSV = model(ids_BS[:, start:end], given, cache=cache).logits_BSV
        torch.testing.assert_close(logits_BSV[real_BS], expected[real_BS], atol=TOLERANCE, rtol=0)
    assert cache.used == ids_BS.shape[1]
