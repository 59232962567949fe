"""The shape of the model: one frozen dataclass, one row per preset.

Field names are those of Hugging Face's ``DeepseekV3Config``, so that a published ``config.json``
and this class speak of the same things. Everything else about the model follows from these numbers:
:meth:`ModelConfig.parameters` and :meth:`ModelConfig.active_parameters` count it without building
it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

ScoreFunction = Literal["sigmoid", "softmax"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Sizes and rules of one DeepSeek-V3-style model; ``ValueError`` where they contradict."""

    vocab_size: int
    """Rows of the embedding and of the output head, in tokens."""
    hidden_size: int
    """Width D of the residual stream."""
    num_hidden_layers: int
    """Decoder layers, dense ones included."""
    first_k_dense_replace: int
    """How many of the first layers have a dense feed-forward instead of experts."""
    intermediate_size: int
    """Width of the dense feed-forward layers."""
    moe_intermediate_size: int
    """Width F of one expert."""
    n_routed_experts: int
    """Experts E a router chooses from."""
    n_shared_experts: int
    """Experts every token passes through, merged into one wider feed-forward; 0 for none."""
    num_experts_per_tok: int
    """Routed experts K each token is sent to."""
    n_group: int = 1
    """Groups the routed experts are divided into; selection is limited to the best groups."""
    topk_group: int = 1
    """Groups a token may choose its experts from."""
    scoring_func: ScoreFunction = "sigmoid"
    """How router logits become scores: sigmoid (DeepSeek-V3) or softmax (DeepSeek-V2, Mixtral)."""
    norm_topk_prob: bool = True
    """Divide the chosen scores by their sum, so that the weights of a token add up to one."""
    routed_scaling_factor: float = 1.0
    """Factor on the weights of the routed experts after normalisation; 2.5 in DeepSeek-V3."""
    num_attention_heads: int
    """Attention heads H."""
    q_lora_rank: int | None = None
    """Rank of the low-rank query projection; none projects queries directly."""
    kv_lora_rank: int
    """Rank R of the latent that keys and values are expanded from: what a cache would hold."""
    qk_nope_head_dim: int
    """Query and key dimensions per head without position."""
    qk_rope_head_dim: int
    """Query and key dimensions per head with position; all heads share the key's."""
    v_head_dim: int
    """Value dimensions per head."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    max_position_embeddings: int
    """Longest sequence the model is trained on and reads back while generating, in tokens."""
    rms_norm_eps: float = 1e-6
    """Added to the mean square in the layer norms; those inside attention always use 1e-6."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weights."""

    def __post_init__(self) -> None:
        _check_sizes(self)
        _check_experts(self)

    @classmethod
    def preset(cls, name: str, **fields: Any) -> ModelConfig:
        """The preset ``name`` with ``fields`` replaced; ``vocab_size`` comes from the data."""
        if name not in PRESETS:
            raise ValueError(f"preset={name!r} is not known: choose one of {', '.join(PRESETS)}.")
        return cls(**{**PRESETS[name], **fields})

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ModelConfig:
        """The config that :meth:`to_dict` described; ``ValueError`` where fields do not fit."""
        known = {field.name for field in dataclasses.fields(cls)}
        needed = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
        wrong = sorted(fields.keys() - known) + sorted(needed - fields.keys())
        if wrong:
            raise ValueError(f"fields {', '.join(wrong)} are unknown or missing in a model config.")
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """Every field by name, ready for JSON."""
        return dataclasses.asdict(self)

    @property
    def qk_head_dim(self) -> int:
        """Query and key dimensions per head, both parts."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """The 0-based depths that have a router."""
        return tuple(range(self.first_k_dense_replace, self.num_hidden_layers))

    def parameters(self) -> int:
        """All weights, embedding and head included, without the routers' bias: a buffer."""
        return self._count(self.n_routed_experts)

    def active_parameters(self) -> int:
        """Weights one token meets: as :meth:`parameters`, with K instead of E routed experts."""
        return self._count(self.num_experts_per_tok)

    def _count(self, routed_experts: int) -> int:
        D, H = self.hidden_size, self.num_attention_heads
        query_out = H * self.qk_head_dim
        query = D * query_out
        if self.q_lora_rank is not None:
            query = self.q_lora_rank * (D + 1 + query_out)
        key_value = D * (self.kv_lora_rank + self.qk_rope_head_dim)
        key_value += self.kv_lora_rank * (1 + H * (self.qk_nope_head_dim + self.v_head_dim))
        attention = query + key_value + H * self.v_head_dim * D
        dense = 3 * D * self.intermediate_size
        expert = 3 * D * self.moe_intermediate_size
        moe = (routed_experts + self.n_shared_experts) * expert + self.n_routed_experts * D
        num_moe = len(self.moe_layers)
        layers = self.num_hidden_layers * (attention + 2 * D)
        layers += (self.num_hidden_layers - num_moe) * dense + num_moe * moe
        return 2 * self.vocab_size * D + layers + D


def _check_sizes(config: ModelConfig) -> None:
    may_be_zero = {"first_k_dense_replace", "n_shared_experts"}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        least = 0 if field.name in may_be_zero else 1
        if field.name in ("rms_norm_eps", "initializer_range", "routed_scaling_factor"):
            if not 0 < value < float("inf"):
                raise ValueError(
                    f"{field.name}={value} is not a positive number: choose one above 0."
                )
        elif value < least:
            raise ValueError(f"{field.name}={value} is too small: choose {least} or more.")
    if config.qk_rope_head_dim % 2:
        raise ValueError(
            f"qk_rope_head_dim={config.qk_rope_head_dim} is odd: rotary embedding turns pairs, "
            f"choose {config.qk_rope_head_dim + 1}."
        )
    if config.first_k_dense_replace >= config.num_hidden_layers:
        raise ValueError(
            f"first_k_dense_replace={config.first_k_dense_replace} leaves no expert layer in "
            f"num_hidden_layers={config.num_hidden_layers}: choose at most "
            f"{config.num_hidden_layers - 1}."
        )


def _check_experts(config: ModelConfig) -> None:
    E, K, groups = config.n_routed_experts, config.num_experts_per_tok, config.n_group
    if config.scoring_func not in ("sigmoid", "softmax"):
        raise ValueError(
            f"scoring_func={config.scoring_func!r} is not known: choose sigmoid or softmax."
        )
    if K > E:
        raise ValueError(
            f"num_experts_per_tok={K} is more than n_routed_experts={E}: choose at most {E}."
        )
    if E % groups:
        divisors = [n for n in range(1, E + 1) if E % n == 0]
        nearest = min(divisors, key=lambda n: abs(n - groups))
        raise ValueError(
            f"n_routed_experts={E} is not divisible by n_group={groups}: choose {nearest} groups "
            f"or {-(-E // groups) * groups} experts."
        )
    if config.topk_group > groups:
        raise ValueError(
            f"topk_group={config.topk_group} exceeds n_group={groups}: choose {groups} or less."
        )
    if groups > 1 and E // groups < 2:
        raise ValueError(
            f"n_routed_experts={E} in n_group={groups} groups leaves {E // groups} expert a group, "
            f"and a group is judged by its best two: choose at most {E // 2} groups."
        )
    reachable = config.topk_group * (E // groups)
    if reachable < K:
        raise ValueError(
            f"topk_group={config.topk_group} groups of {E // groups} experts hold {reachable}, "
            f"less than num_experts_per_tok={K}: choose at least {-(-K * groups // E)} groups."
        )


_COLUMNS = (
    "hidden_size", "num_hidden_layers", "first_k_dense_replace",
    "num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
    "q_lora_rank", "kv_lora_rank",
    "n_shared_experts", "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size",
    "intermediate_size", "max_position_embeddings",
)  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    #               D  layers  heads nope rope v    ranks: q kv  experts: S E K F  dense context
    name: dict(zip(_COLUMNS, row, strict=True))
    for name, row in {
        "tiny":        (192, 6, 1,   4, 32, 32, 64,     None, 64,   1, 8, 2, 136,   512,   256),
        "shakespeare": (768, 10, 1, 12, 32, 32, 64,     None, 160,  1, 8, 2, 512,  1536,  1024),
    }.items()
}  # fmt: skip
"""Every field of a model except ``vocab_size``, which the tokenizer decides."""
