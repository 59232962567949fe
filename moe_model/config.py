"""The shape of the model: one frozen dataclass, one row per preset.

Field names are those of Hugging Face's ``DeepseekV3Config``, so a published ``config.json`` maps to
this class.

JSON is validated against the types of a dataclass before use (:func:`fields_of`): true is not 1 and
"32" is not a number, but 1 is accepted for 1.0.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, get_args

MOST = 2**31
"""Larger than any real size; larger numbers are rejected as damaged."""

KINDS = {
    int: f"a whole number below {MOST}",
    float: "a number",
    bool: "true or false",
    str: "a text",
}

_LEAST = {"factor": 1, "original_max_position_embeddings": 1}

ScoreFunction = Literal["sigmoid", "softmax"]
DropPolicy = Literal["position", "weight"]
TopkMethod = Literal["noaux_tc", "greedy", "group_limited_greedy"]
ModelType = Literal["deepseek_v3", "deepseek_v2", "glm4_moe_lite"]


def fields_of(cls: type, found: object, what: str) -> dict[str, Any]:
    """Validated arguments for the dataclass ``cls``, with nested dataclasses constructed.

    Args:
        cls: Its annotations are int, float, bool, str, ``Literal`` of texts or a dataclass, or one
            of these ``| None``, or several dataclasses ``| None``.
        found: The parsed JSON, of any type.
        what: Its name in errors.

    Raises:
        ValueError: If it is not an object, a field is unknown or missing, or a value has a wrong
            type.
    """
    if not isinstance(found, dict):
        raise ValueError(f"{what}={shown(found)}: it must be an object.")
    fields = dataclasses.fields(cls)
    needed = {field.name for field in fields if field.default is dataclasses.MISSING}
    unknown = [shown(name) for name in found if name not in _field_names(cls)]
    wrong = sorted(unknown)[:20] + sorted(needed - found.keys())
    if wrong:
        raise ValueError(f"fields {', '.join(wrong)} are unknown or missing in {what}.")
    kinds = typing.get_type_hints(cls)
    return {name: fitting(name, value, kinds[name]) for name, value in found.items()}


def count(name: str, value: object) -> int:
    """``value`` if it is an integer from 0 to 2^63 - 1, else ``ValueError`` with ``name``."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{name}={shown(value)}: it must be a whole number of 0 or more.")
    return value


def number(name: str, value: object, most: float = sys.float_info.max) -> float:
    """``value`` if it is a number from 0 to ``most``, else ``ValueError`` with ``name``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise ValueError(f"{name}={shown(value)}: it must be a number from 0 to {most:g}.")
    return float(value)


def shown(value: object) -> str:
    """A truncated ``repr`` for error messages."""
    return reprlib.repr(value)


def fitting(name: str, value: Any, annotation: Any) -> Any:
    """JSON's ``value`` as an argument of type ``annotation``, else ``ValueError`` with ``name``.

    An integer may become a float; a dataclass is constructed from an object, see :func:`fields_of`,
    which lists the types.
    """
    kinds = get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    optional = type(None) in kinds
    if optional and value is None:
        return None
    kind = _kind_of(value, [kind for kind in kinds if kind is not type(None)])
    if kind not in KINDS:
        return kind(**fields_of(kind, value, name))
    if type(value) is kind and (kind is not int or abs(value) < MOST):
        return value
    if kind is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    nothing = ", or null" if optional else ""
    raise ValueError(f"{name}={shown(value)}: it must be {KINDS[kind]}{nothing}.")


def _kind_of(value: Any, kinds: list[Any]) -> Any:
    """Of several dataclasses one with a field of ``value`` that the first of them lacks, else the
    first; a ``Literal`` is a text, which the dataclass checks."""
    given = set(value) if isinstance(value, dict) else set()
    for kind in kinds[1:]:
        if given & (_field_names(kind) - _field_names(kinds[0])):
            return kind
    return str if typing.get_origin(kinds[0]) is Literal else kinds[0]


def _field_names(cls: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


@dataclass(frozen=True, kw_only=True, slots=True)
class YarnScaling:
    """YaRN (Peng et al., 2023), named as in the ``rope_scaling`` of a published ``config.json``.

    It applies at every length, as in transformers; DeepSeek's own code applies it only if
    ``max_seq_len`` exceeds ``original_max_position_embeddings``.
    """

    factor: float
    """How many times longer than the original context."""
    original_max_position_embeddings: int
    """Context of the model before it was stretched, in tokens."""
    beta_fast: float = 32.0
    """Dimensions that rotate more often than this within the original context are unchanged."""
    beta_slow: float = 1.0
    """Dimensions that rotate less often than this are slowed down by the whole factor."""
    mscale: float = 1.0
    """Strength of the correction of the rotated parts, in the numerator."""
    mscale_all_dim: float = 1.0
    """Strength of the correction of the whole softmax; the denominator of the other. 0: none."""

    def __post_init__(self) -> None:
        _check_least(self, {**_LEAST, "mscale": 0, "mscale_all_dim": 0, "beta_slow": 1e-3})
        _check_order(self, "beta_slow", "beta_fast", "1 and 32")


@dataclass(frozen=True, kw_only=True, slots=True)
class Llama3Scaling:
    """``rope_type`` llama3, the scaling of Llama 3.1: slow pairs rotate slower."""

    factor: float
    original_max_position_embeddings: int
    low_freq_factor: float
    """Pairs that rotate less often within the original context are slowed down by the factor."""
    high_freq_factor: float
    """Pairs that rotate more often are unchanged."""

    def __post_init__(self) -> None:
        _check_least(self, {**_LEAST, "low_freq_factor": 1e-3})
        _check_order(self, "low_freq_factor", "high_freq_factor", "1 and 4")


def _check_least(scaling: object, least: Mapping[str, float]) -> None:
    for name, low in least.items():
        if not low <= getattr(scaling, name) < MOST:
            raise ValueError(
                f"rope_scaling.{name}={getattr(scaling, name)} is out of range: choose {low} or "
                f"more, below {MOST}."
            )


def _check_order(scaling: object, lower: str, upper: str, example: str) -> None:
    low, high = getattr(scaling, lower), getattr(scaling, upper)
    if not low < high < MOST:
        raise ValueError(
            f"rope_scaling.{lower}={low} is not below {upper}={high}: choose for example {example}."
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Sizes and rules of a DeepSeek-V3-style model; ``ValueError`` if they contradict each
    other. The text under a field is its help on the command line."""

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
    topk_method: TopkMethod = "noaux_tc"
    """How experts are chosen. noaux_tc (DeepSeek-V3): with a bias, a group scores the sum of its
    two best experts. Without a bias (DeepSeek-V2): greedy, or group_limited_greedy, where a group
    scores its best expert."""
    norm_topk_prob: bool = True
    """Divide the chosen scores by their sum, so that the weights of a token add up to one."""
    routed_scaling_factor: float = 1.0
    """Factor for the weights of the routed experts after normalisation; 2.5 in DeepSeek-V3."""
    num_attention_heads: int
    """Attention heads H."""
    q_lora_rank: int | None = None
    """Rank of the low-rank query projection; without one, queries are projected directly."""
    kv_lora_rank: int
    """Rank R of the latent from which keys and values are expanded, and which a cache holds."""
    qk_nope_head_dim: int
    """Query and key dimensions per head without rotary position."""
    qk_rope_head_dim: int
    """Query and key dimensions per head with rotary position; all heads share this key."""
    v_head_dim: int
    """Value dimensions per head."""
    attention_bias: bool = False
    """Whether the projections from and to the residual stream have biases, except a full
    query's."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    rope_scaling: YarnScaling | Llama3Scaling | None = None
    """Context extension (YaRN, or Llama 3.1's); without one, plain rotary positions."""
    max_position_embeddings: int
    """Longest sequence in training and generation, in tokens."""
    rms_norm_eps: float = 1e-6
    """Added to the mean square in the layer norms; those inside attention always use 1e-6."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weights."""
    tie_word_embeddings: bool = False
    """Whether the output head is the embedding itself."""
    num_nextn_predict_layers: int = 0
    """Depths D of multi-token prediction: extra layers that predict the token after the next."""
    router_jitter_noise: float = 0.0
    """In training, router inputs are multiplied by uniform noise within 1 ± this value."""
    capacity_factor: float | None = None
    """In training, an expert accepts at most this multiple of its fair share of a forward pass of
    one rank, so drops depend on --batch-size; without one, no limit."""
    drop_policy: DropPolicy = "position"
    """What to drop beyond the capacity: the last tokens of the batch, or the smallest weights."""

    model_type: ModelType = "deepseek_v3"
    """Model type of an export to transformers: that of the imported model."""

    def __post_init__(self) -> None:
        for problem in chain(_sizes_out_of_range(self), _contradictions(self)):
            raise ValueError(problem)

    @classmethod
    def preset(cls, name: str, **fields: Any) -> ModelConfig:
        """The preset ``name`` with ``fields`` replaced; ``vocab_size`` comes from the data.

        ``ValueError`` if there is no such preset, or a field is out of range or contradicts
        another.
        """
        if name not in PRESETS:
            raise ValueError(f"preset={name!r} is unknown: choose one of {', '.join(PRESETS)}.")
        return cls(**{**PRESETS[name], **fields})

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ModelConfig:
        """From parsed JSON; ``ValueError`` if a field is missing, unknown or invalid."""
        return cls(**fields_of(cls, fields, "a model config"))

    def to_dict(self) -> dict[str, Any]:
        """The argument of :meth:`from_dict`: plain values, also in a nested ``rope_scaling``."""
        return dataclasses.asdict(self)

    @property
    def qk_head_dim(self) -> int:
        """Query and key dimensions per head, both parts."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """The 0-based depths that have a router."""
        return tuple(range(self.first_k_dense_replace, self.num_hidden_layers))

    @property
    def router_depths(self) -> tuple[int, ...]:
        """The depth of every router in forward order, multi-token prediction last."""
        layers = self.num_hidden_layers
        return (*self.moe_layers, *range(layers, layers + self.num_nextn_predict_layers))

    def parameters(
        self, *, multi_token_prediction: bool = True, routed_experts: bool = True
    ) -> int:
        """Number of parameters; the routers' bias is a buffer and does not count."""
        return self._count(self.n_routed_experts if routed_experts else 0, multi_token_prediction)

    def active_parameters(self) -> int:
        """Parameters used per token: K of the E routed experts, no multi-token prediction."""
        return self._count(self.num_experts_per_tok, False)

    def dense_twin(self) -> ModelConfig:
        """The dense model of equal active size: its feed-forwards, all of one width, have at least
        as many weights as one token meets in those here, routers included. No multi-token
        prediction."""
        layers = self.num_hidden_layers
        bare = dataclasses.replace(
            self, first_k_dense_replace=layers, intermediate_size=1, num_nextn_predict_layers=0
        )
        weights_per_width = 3 * self.hidden_size * layers
        missing = self.active_parameters() - bare.active_parameters()
        return dataclasses.replace(bare, intermediate_size=1 + -(-missing // weights_per_width))

    def _count(self, routed_experts: int, count_ahead: bool) -> int:
        D, H = self.hidden_size, self.num_attention_heads
        query_out = H * self.qk_head_dim
        query = D * query_out
        if self.q_lora_rank is not None:
            query = self.q_lora_rank * (D + 1 + query_out)
        key_value = D * (self.kv_lora_rank + self.qk_rope_head_dim)
        key_value += self.kv_lora_rank * (1 + H * (self.qk_nope_head_dim + self.v_head_dim))
        attention = query + key_value + H * self.v_head_dim * D
        if self.attention_bias:
            attention += (self.q_lora_rank or 0) + self.kv_lora_rank + self.qk_rope_head_dim + D
        dense = 3 * D * self.intermediate_size
        expert = 3 * D * self.moe_intermediate_size
        moe = (routed_experts + self.n_shared_experts) * expert + self.n_routed_experts * D
        num_moe = self.num_hidden_layers - self.first_k_dense_replace
        layers = self.num_hidden_layers * (attention + 2 * D)
        layers += self.first_k_dense_replace * dense + num_moe * moe
        # A depth of multi-token prediction: one layer with experts, three norms, one projection.
        ahead = self.num_nextn_predict_layers * (attention + moe + 5 * D + 2 * D * D)
        tables = 1 if self.tie_word_embeddings else 2
        return tables * self.vocab_size * D + layers + D + (ahead if count_ahead else 0)


_MAY_BE_ZERO = ("first_k_dense_replace", "n_shared_experts", "num_nextn_predict_layers")
_POSITIVE = ("rms_norm_eps", "initializer_range", "routed_scaling_factor")


def _sizes_out_of_range(config: ModelConfig) -> Iterator[str]:
    for name, kind in typing.get_type_hints(ModelConfig).items():
        value = getattr(config, name)
        if typing.get_origin(kind) is Literal and value not in (choices := get_args(kind)):
            several = f"one of {', '.join(choices)}" if len(choices) > 2 else " or ".join(choices)
            yield f"{name}={shown(value)} is unknown: choose {several}."
        own_range = name in ("router_jitter_noise", "capacity_factor")
        if isinstance(value, bool) or not isinstance(value, int | float) or own_range:
            continue
        least = 0 if name in _MAY_BE_ZERO else 1
        if name in _POSITIVE:
            if not 0 < value < math.inf:
                yield f"{name}={value} must be positive."
        elif not least <= value < math.inf:
            yield f"{name}={value} is out of range: choose {least} or more."
    if not 0 <= config.router_jitter_noise < 1:
        yield (
            f"router_jitter_noise={config.router_jitter_noise} is out of range: choose 0 to below "
            "1, such as 0.01."
        )
    factor = config.capacity_factor
    if factor is not None and not 0 < factor < math.inf:
        yield f"capacity_factor={factor} must be positive: choose for example 1.25."


def _contradictions(config: ModelConfig) -> Iterator[str]:
    E, K, groups = config.n_routed_experts, config.num_experts_per_tok, config.n_group
    rope = config.qk_rope_head_dim
    layers = config.num_hidden_layers
    if config.rope_theta == 1:
        yield "rope_theta=1 rotates all pairs alike: choose a larger one, such as 10000."
    if rope % 2:
        yield (
            f"qk_rope_head_dim={rope} is odd: rotary embedding rotates pairs, choose {rope + 1}."
        )
    if config.first_k_dense_replace > layers:
        yield (
            f"first_k_dense_replace={config.first_k_dense_replace} is more than num_hidden_layers="
            f"{layers}: choose at most {layers - 1}, or {layers} for a dense model."
        )
    if config.topk_method == "greedy" and groups > 1:
        yield (
            f"topk_method='greedy' does not support groups, but n_group={groups}: choose "
            "group_limited_greedy, or 1 group."
        )
    if K > E:
        yield f"num_experts_per_tok={K} is more than n_routed_experts={E}: choose at most {E}."
    if E % groups:
        yield (
            f"n_routed_experts={E} is not divisible by n_group={groups}: choose for example "
            f"{-(-E // groups) * groups} experts."
        )
    if config.topk_group > groups:
        yield f"topk_group={config.topk_group} exceeds n_group={groups}: choose {groups} or less."
    if config.topk_method == "noaux_tc" and groups > 1 and E // groups < 2:
        yield (
            f"n_routed_experts={E} in n_group={groups} groups leaves {E // groups} expert a group, "
            f"but a group needs two to be scored: choose at most {E // 2} groups."
        )
    reachable = config.topk_group * (E // groups)
    if reachable < K:
        yield (
            f"topk_group={config.topk_group} groups of {E // groups} experts hold {reachable}, "
            f"less than num_experts_per_tok={K}: choose at least {-(-K * groups // E)} groups."
        )


_COLUMNS = (
    "hidden_size", "num_hidden_layers", "first_k_dense_replace",
    "num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
    "q_lora_rank", "kv_lora_rank",
    "n_shared_experts", "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size",
    "intermediate_size", "max_position_embeddings", "initializer_range",
)  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    #              D layers heads nope rope v  ranks: q kv  experts: S E K F dense context std
    name: dict(zip(_COLUMNS, row, strict=True))
    for name, row in {
        "tiny":        (192, 6, 1, 4, 16, 48, 48, None, 96, 1, 8, 2, 136, 512, 256, 0.07),
        "small":       (512, 8, 1, 8, 32, 32, 64, 256, 128, 1, 16, 4, 352, 1376, 512, 0.044),
        "shakespeare": (768, 10, 1, 12, 32, 32, 64, None, 160, 1, 8, 2, 512, 1536, 1024, 0.036),
        "deepseek-v3": (7168, 61, 3, 128, 128, 64, 128, 1536, 512, 1, 256, 8, 2048, 18432, 4096,
                        0.02),
    }.items()
}  # fmt: skip
"""Every field of a model except ``vocab_size``, which the tokenizer determines.

The initial standard deviation is 1/√D for small models; 0.02 is meant for widths of thousands."""

PRESETS["tiny"] |= {"routed_scaling_factor": 1.5}
PRESETS["deepseek-v3"] |= {
    "vocab_size": 129280, "n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5,
    "num_nextn_predict_layers": 1,
}  # fmt: skip
"""As pre-trained, before ``rope_scaling`` extended the context."""
