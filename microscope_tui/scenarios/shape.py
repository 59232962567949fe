"""The size of a synthetic run, and the data of one of its steps."""

from dataclasses import dataclass, field

Values = list[float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The size of a synthetic run."""

    routers: int = 10
    num_experts: int = 8
    top_k: int = 2
    tokens: int = 4096
    steps: int = 600
    capacity_factor: float | None = None

    @property
    def fair_count(self) -> float:
        """Tokens that every expert gets in a step when the load is even."""
        return self.tokens * self.top_k / self.num_experts


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The data of one step, including the summaries of ``router``."""

    step: int
    loss: float
    tokens: int
    tokens_per_expert: list[list[int] | None]
    expert_bias: list[list[float]]
    router: dict[str, Values]
    learning_rate: float
    grad_norm: float
    losses: dict[str, float] = field(default_factory=dict)
