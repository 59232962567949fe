"""Map published tensors to parts of our tensors.

In memory the experts of a layer are two stacked tensors (as in transformers 5); in a file every
expert has three matrices. So each of our tensors consists of parts: a published name and an index
into our tensor. Reading copies to that index, writing copies from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from moe_model import ModelConfig

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


class Part(NamedTuple):
    """A published tensor and its index in one of our tensors."""

    name: str
    """Its name in the file."""
    place: tuple[int | slice, ...]
    """Its index in our tensor; empty for the whole tensor."""


def published_name(name: str, config: ModelConfig) -> str:
    """The transformers name of our tensor ``name``, with stacked experts.

    Multi-token prediction uses the layer numbers after the last layer.
    """
    if name.startswith("mtp."):
        _, depth, rest = name.split(".", 2)
        rest = rest.removeprefix("layer.")
        rest = "shared_head.norm.weight" if rest == "norm.weight" else rest
        name = f"layers.{config.num_hidden_layers + int(depth)}.{rest}"
    name = name.replace(".mlp.router.weight", ".mlp.gate.weight")
    name = name.replace(".mlp.router.expert_bias", ".mlp.gate.e_score_correction_bias")
    return name if name == HEAD else f"model.{name}"


def parts(name: str, config: ModelConfig) -> Iterator[Part]:
    """The parts of our tensor ``name`` in a file; empty for a bias that has no effect."""
    if name.endswith(".router.expert_bias") and config.topk_method != "noaux_tc":
        return
    published = published_name(name, config)
    experts, of_experts, matrix = published.partition(".mlp.experts.")
    width = config.moe_intermediate_size
    rows = {"gate_proj": slice(0, width), "up_proj": slice(width, 2 * width)}
    if not of_experts:
        yield Part(published, ())
        return
    for expert in range(config.n_routed_experts):
        prefix = f"{experts}.mlp.experts.{expert}"
        if matrix == "down_proj":
            yield Part(f"{prefix}.down_proj.weight", (expert,))
        else:
            yield from (Part(f"{prefix}.{n}.weight", (expert, r)) for n, r in rows.items())


def copies(config: ModelConfig) -> dict[str, str]:
    """Published tensors that duplicate another: optional in a file, but they must be equal."""
    head = EMBEDDING if config.tie_word_embeddings else HEAD
    repeated = {HEAD: EMBEDDING} if config.tie_word_embeddings else {}
    for depth in range(config.num_nextn_predict_layers):
        layer = f"model.layers.{config.num_hidden_layers + depth}"
        repeated |= {
            f"{layer}.embed_tokens.weight": EMBEDDING,
            f"{layer}.shared_head.head.weight": head,
        }
    return repeated


def stays_fp32(name: str) -> bool:
    """Whether our tensor ``name`` is always fp32, as in transformers.

    The choice of experts depends on differences that half precision cannot represent.
    """
    return name.endswith((".router.weight", ".router.expert_bias"))


def interleave(name: str, weight: Tensor, config: ModelConfig) -> None:
    """Reorder the rotary rows of our tensor ``name``, if any, from halves to pairs, in place.

    If ``rope_interleave`` is false, dimension i pairs with dimension i + d/2; here 2i pairs with
    2i + 1. Queries and keys change alike, so their products are unchanged.
    """
    if name.endswith((".q_proj.weight", ".q_b_proj.weight")):
        heads_HdX = weight.view(config.num_attention_heads, config.qk_head_dim, -1)
    elif ".kv_a_proj_with_mqa." in name:  # its bias too
        heads_HdX = weight.view(1, len(weight), -1)
    else:
        return
    rotary_HrX = heads_HdX[:, -config.qk_rope_head_dim :]
    halves_H2rX = rotary_HrX.reshape(len(rotary_HrX), 2, -1, rotary_HrX.shape[-1])
    rotary_HrX.copy_(halves_H2rX.transpose(1, 2).reshape(rotary_HrX.shape))
