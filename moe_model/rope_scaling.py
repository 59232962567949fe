"""Two methods to extend the context beyond the length a model was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moe_model.json_types import MOST

_LEAST = {"factor": 1, "original_max_position_embeddings": 1}


@dataclass(frozen=True, kw_only=True, slots=True)
class YarnScaling:
    """YaRN (Peng et al., 2023): positions beyond those the model was trained on.

    Named as in the ``rope_scaling`` of a published ``config.json``. If given, it applies at every
    length, as in transformers; DeepSeek's own code applies it only if ``max_seq_len`` exceeds
    ``original_max_position_embeddings``.
    """

    factor: float
    """How many times longer than the original context."""
    original_max_position_embeddings: int
    """Context of the model before it was stretched, in tokens."""
    beta_fast: float = 32.0
    """Dimensions that turn more often than this within the original context stay as they are."""
    beta_slow: float = 1.0
    """Dimensions that turn less often than this are slowed down by the whole factor."""
    mscale: float = 1.0
    """Strength of the correction of the rotated parts, in the numerator."""
    mscale_all_dim: float = 1.0
    """Strength of the correction of the whole softmax; the denominator of the other. 0: none."""

    def __post_init__(self) -> None:
        _check_least(self, {**_LEAST, "mscale": 0, "mscale_all_dim": 0, "beta_slow": 1e-3})
        if not self.beta_slow < self.beta_fast < MOST:
            raise ValueError(
                f"rope_scaling.beta_slow={self.beta_slow} is not below beta_fast={self.beta_fast}: "
                "choose for example 1 and 32."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Llama3Scaling:
    """The scaling of Llama 3.1: slow pairs rotate slower, scores are unchanged.

    Named as in the ``rope_scaling`` of a published ``config.json`` with ``rope_type`` llama3.
    """

    factor: float
    """How many times slower the slowest pairs turn."""
    original_max_position_embeddings: int
    """Context of the model before it was stretched, in tokens."""
    low_freq_factor: float
    """Pairs that turn less often than this within the original context are slowed down by the
    whole factor."""
    high_freq_factor: float
    """Pairs that turn more often than this stay as they are."""

    def __post_init__(self) -> None:
        _check_least(self, {**_LEAST, "low_freq_factor": 1e-3})
        if not self.low_freq_factor < self.high_freq_factor < MOST:
            raise ValueError(
                f"rope_scaling.low_freq_factor={self.low_freq_factor} is not below "
                f"high_freq_factor={self.high_freq_factor}: choose for example 1 and 4."
            )


def _check_least(scaling: object, least: Mapping[str, float]) -> None:
    for name, low in least.items():
        if not low <= getattr(scaling, name) < MOST:
            raise ValueError(
                f"rope_scaling.{name}={getattr(scaling, name)} is out of range: choose {low} or "
                f"more, below {MOST}."
            )
