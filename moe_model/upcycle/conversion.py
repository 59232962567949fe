"""The conversion: the shape of the new model, its weights, and the loss after each step.

Attention turns into latent attention approximately (:mod:`moe_model.upcycle.attention`), everything
else is copied or exact. A dense feed-forward turns into a shared expert and E routed experts that
compute the same: a SwiGLU is a sum over its neurons, so they can be distributed. The shared expert
takes the most useful ones, and **all routed experts are copies of each other**. Then the router's
choice does not matter: the weights of a token add up to ``routed_scaling_factor``, copies divided
by it add up to one, and the layer equals the dense one for any router, bias and K.

Slices instead of copies (Megatron's granular upcycling) are only correct while each is chosen
exactly once, which the first training step breaks. The useful neurons are shared because every
token needs them (CMoE). The cost is (S + K) / (S + 1) times the computation of the dense layer, for
S shared experts. Copies diverge once the router sends them different tokens; a little noise breaks
the symmetry.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from moe_model import DecoderLayer, LanguageModel, MixtureOfExperts, ModelConfig, UsageError, say
from moe_model.config import Llama3Scaling
from moe_model.huggingface.read import published_name
from moe_model.upcycle.attention import Kept, convert_attention, rotary_base
from moe_model.upcycle.llama import LayerReadings, Windows, has_biases, mean_loss, observe

_DERIVED: Any = None
"""Placeholder for values that :func:`resolve` derives from the source."""

_MULTIPLE = 8
"""Expert widths are a multiple of this: 16 bytes in half precision, which grouped products need."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """The new parts of the model. Everything else comes from the source."""

    n_routed_experts: int = 8
    """Experts a router chooses from."""
    num_experts_per_tok: int = 2
    """Routed experts each token is sent to."""
    n_shared_experts: int = 1
    """Shared experts: S of them take the most useful S / (S + 1) of the neurons of a feed-forward;
    all routed experts start as copies of each other."""
    first_k_dense_replace: int = 1
    """Number of first layers that keep their dense feed-forward."""
    kv_lora_rank: int = _DERIVED
    """Rank of the latent (default: the width of 4 heads, at most the hidden size)."""
    rotary_mixes: int = _DERIVED
    """Linear combinations of the heads' keys that the rotary key holds per rotary pair (default: 2,
    or 1 if the source has one key-value head)."""
    qk_rope_head_dim: int = _DERIVED
    """Dimensions of the rotary key of all heads (default: half a head for each mix)."""
    qk_nope_head_dim: int = _DERIVED
    """Query and key dimensions per head without position (default: half a head)."""
    v_head_dim: int = _DERIVED
    """Value dimensions per head (default: those of the source)."""


def resolve(shape: Shape, source: Any) -> Shape:
    """Fill in the defaults; ``UsageError`` if the source is too small.

    The fast half of the rotary pairs goes to the shared key; the slow half gets as many dimensions
    without position. A latent as wide as four heads is what DeepSeek-V3 has.
    """
    D, head, groups = source.hidden_size, source.head_dim, source.num_key_value_heads
    mixes = min(2, groups) if shape.rotary_mixes is None else shape.rotary_mixes
    derived = {
        "kv_lora_rank": min(D, 4 * head),
        "rotary_mixes": mixes,
        "qk_rope_head_dim": max(head // 4, 1) * 2 * mixes,
        "qk_nope_head_dim": head // 2,
        "v_head_dim": head,
    }
    missing = {name: size for name, size in derived.items() if getattr(shape, name) is None}
    shape = dataclasses.replace(shape, **missing)
    if mixes < 1:
        raise UsageError(f"rotary_mixes={mixes} is too small: choose 1 or more.")
    limits = {
        "kv_lora_rank": D,
        "rotary_mixes": groups,
        "qk_rope_head_dim": head * mixes,
        "first_k_dense_replace": source.num_hidden_layers - 1,
    }
    for name, most in limits.items():
        if getattr(shape, name) > most:
            raise UsageError(
                f"{name}={getattr(shape, name)} is too large for the source (hidden_size={D}, "
                f"head_dim={head}, num_key_value_heads={groups}, num_hidden_layers="
                f"{source.num_hidden_layers}): choose at most {most}."
            )
    return shape


def upcycled_config(source: Any, shape: Shape) -> ModelConfig:
    """The config of the new model, from that of a Llama and a resolved ``shape``.

    ``UsageError`` if it is invalid.
    """
    fields = dataclasses.asdict(shape)
    mixes = fields.pop("rotary_mixes")
    rope = shape.qk_rope_head_dim
    rope_parameters = source.rope_parameters
    for name in (
        "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size",
        "num_attention_heads", "max_position_embeddings", "rms_norm_eps", "initializer_range",
        "tie_word_embeddings",
    ):  # fmt: skip
        fields[name] = getattr(source, name)
    if rope_parameters["rope_type"] == "llama3":
        names = (field.name for field in dataclasses.fields(Llama3Scaling))
        fields["rope_scaling"] = Llama3Scaling(**{name: rope_parameters[name] for name in names})
    if has_biases(source):
        # Queries can have a bias only through a latent that holds the stream and a constant one.
        fields |= {"attention_bias": True, "q_lora_rank": source.hidden_size + 1}
    width = expert_width(source.intermediate_size, max(shape.n_shared_experts, 0))
    try:
        return ModelConfig(
            moe_intermediate_size=width,
            rope_theta=rotary_base(rope_parameters["rope_theta"], source.head_dim, rope, mixes),
            **fields,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


class Upcycled(NamedTuple):
    """The new model and the loss after each step, in nats per token."""

    model: LanguageModel
    """In evaluation mode."""
    losses: dict[str, float]
    """Of the source; with experts, the same except for rounding; with noise in the routed experts;
    with the new attention, so of the new model."""
    kept: list[Kept]
    """The fractions kept of each layer's attention."""


@torch.no_grad()
def upcycle(llama: Any, shape: Shape, text: Windows, noise: float, seed: int) -> Upcycled:
    """Convert transformers' ``llama`` to this project's model and print the loss after every step.

    Args:
        llama: Its feed-forwards are replaced in place.
        noise: See :func:`break_symmetry`.
        seed: Seed of the routers and of the noise.

    Raises:
        UsageError: If the loss of the source is not finite, or ``shape`` is impossible for it.
    """

    def say_loss(logits_of: Any, what: str, before: float | None = None) -> float:
        loss = mean_loss(logits_of, text.held_out_NS)
        difference = "" if before is None else f" ({loss - before:+.5f})"
        say(f"loss {loss:.5f}  {what}{difference}")
        return loss

    def llama_logits(ids_BS: Tensor) -> Any:
        return llama(ids_BS, use_cache=False).logits

    source = say_loss(llama_logits, "the source, nats per token")
    if not math.isfinite(source):
        raise UsageError(f"the source has a loss of {source}: its weights are damaged.")
    readings = observe(llama, text.calibration_NS)
    generator = torch.Generator().manual_seed(seed)
    model = _new_model(llama, upcycled_config(llama.config, shape), generator)
    routed = _convert_feed_forwards(model, llama, readings)
    experts = say_loss(llama_logits, "with experts, exact except for rounding", source)
    for moe in routed:
        break_symmetry(moe, noise, generator)
    noisy = say_loss(llama_logits, f"with noise of {noise:g} in the routed experts", source)
    kept = [
        convert_attention(ours.self_attn, theirs, seen, shape.rotary_mixes)
        for (ours, theirs), seen in zip(_layers(model, llama), readings, strict=True)
    ]
    attention = say_loss(lambda ids_BS: model(ids_BS).logits_BSV, "with latent attention", source)
    losses = {"source": source, "experts": experts, "noise": noisy, "attention": attention}
    return Upcycled(model, losses, kept)


def _new_model(llama: Any, config: ModelConfig, generator: torch.Generator) -> LanguageModel:
    """With new routers, and what needs no conversion. The gain of a layer's first norm is folded
    into the attention."""
    with torch.device("meta"):
        model = LanguageModel(config)
    model = model.to_empty(device="cpu").eval()
    model.init_weights(generator)
    theirs = llama.state_dict()
    for name, tensor in model.state_dict().items():
        published = published_name(name, config)
        if published in theirs and not (".self_attn." in name or ".input_layernorm." in name):
            tensor.copy_(theirs[published])
    return model


def _convert_feed_forwards(
    model: LanguageModel, llama: Any, readings: list[LayerReadings]
) -> list[MixtureOfExperts]:
    """Fill the experts of ``model`` and put them into ``llama``; return the layers with experts."""
    routed = []
    for (ours, theirs), seen in zip(_layers(model, llama), readings, strict=True):
        if isinstance(ours.mlp, MixtureOfExperts):
            dense = theirs.mlp
            weights = (dense.gate_proj.weight, dense.up_proj.weight, dense.down_proj.weight)
            split_into_experts(ours.mlp, *weights, seen.usefulness_F)
            theirs.mlp = WithoutRouting(ours.mlp)
            routed.append(ours.mlp)
    return routed


def _layers(model: LanguageModel, llama: Any) -> Iterator[tuple[DecoderLayer, Any]]:
    return zip(model.decoder_layers, llama.model.layers, strict=True)


class WithoutRouting(nn.Module):
    """In the place of a dense feed-forward."""

    def __init__(self, moe: MixtureOfExperts) -> None:
        super().__init__()
        self.moe = moe

    def forward(self, x_BSD: Tensor) -> Tensor:
        y_BSD: Tensor = self.moe(x_BSD)[0]
        return y_BSD


def expert_width(intermediate_size: int, n_shared_experts: int) -> int:
    """``moe_intermediate_size`` with which S shared experts and one routed hold every neuron."""
    parts = (n_shared_experts + 1) * _MULTIPLE
    return -(-intermediate_size // parts) * _MULTIPLE


@torch.no_grad()
def split_into_experts(
    moe: MixtureOfExperts, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor, usefulness_F: Tensor
) -> None:
    """Fill the experts of ``moe`` with the neurons of a dense feed-forward.

    If there is more room than neurons, the most useful ones are in both kinds of experts and count
    half in each.

    Args:
        moe: Its router is not changed; ``norm_topk_prob`` fixes the sum of a token's weights.
        usefulness_F: Neurons with the highest values are shared.
    """
    config = moe.router.config
    width = config.moe_intermediate_size
    shared = config.n_shared_experts * width
    order_F = usefulness_F.argsort(descending=True, stable=True)
    neuron_N = order_F[torch.arange(shared + width) % len(order_F)]
    times_F = torch.bincount(neuron_N, minlength=len(order_F))
    gate_ND, up_ND = gate_FD[neuron_N], up_FD[neuron_N]
    down_DN = down_DF[:, neuron_N] / times_F[neuron_N]
    if moe.shared_experts is not None:
        moe.shared_experts.gate_proj.weight.copy_(gate_ND[:shared])
        moe.shared_experts.up_proj.weight.copy_(up_ND[:shared])
        moe.shared_experts.down_proj.weight.copy_(down_DN[:, :shared])
    moe.experts.gate_up_proj.copy_(torch.cat((gate_ND[shared:], up_ND[shared:])))
    moe.experts.down_proj.copy_(down_DN[:, shared:] / config.routed_scaling_factor)


@torch.no_grad()
def break_symmetry(moe: MixtureOfExperts, noise: float, generator: torch.Generator) -> None:
    """Add normal noise to every routed expert.

    Args:
        noise: Standard deviation, as a fraction of that of the gate, up or down matrix.
    """
    gate_EFD, up_EFD = moe.experts.gate_up_proj.chunk(2, dim=1)
    for weight_EXX in (gate_EFD, up_EFD, moe.experts.down_proj):
        size = noise * weight_EXX.std()
        weight_EXX += size * torch.randn(weight_EXX.shape, generator=generator)
