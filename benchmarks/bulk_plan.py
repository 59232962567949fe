"""What a bulk log holds, step by step: attempts, losses and spikes, but no routers."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

STARTED = 1_790_000_000.0


class BulkOptions(TypedDict, total=False):
    """What can be asked of a bulk log; the defaults and their meaning are those of ``BulkPlan``."""

    routers: int
    num_experts: int
    top_k: int
    tokens: int
    steps: int
    seed: int
    collapse: tuple[int, int] | None
    spikes: Mapping[int, float]
    restarts: Sequence[tuple[int, int]]
    finished: bool
    bias: bool
    started: float
    step_time_s: float
    run: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkPlan:
    """One bulk log. The same plan gives the same bytes."""

    routers: int = 58
    num_experts: int = 256
    top_k: int = 8
    tokens: int = 16384
    steps: int = 100_000
    seed: int = 0
    collapse: tuple[int, int] | None = None
    """The router that falls onto k experts, and the step at which it starts to fall."""
    spikes: Mapping[int, float] = field(default_factory=dict)
    """Step → loss; not repeated after a restart, as when the batch is skipped."""
    restarts: Sequence[tuple[int, int]] = ()
    """After which written step → the step that is written next, below a new run record."""
    finished: bool = True
    bias: bool = False
    """Write ``expert_bias`` rows too; they are twice as long as the counts."""
    started: float = STARTED
    step_time_s: float = 1.0
    run: str = "bulk"

    def __post_init__(self) -> None:
        if not 0 < self.top_k <= self.num_experts:
            raise ValueError(f"top_k {self.top_k} must be in 1 … {self.num_experts} experts")
        if min(self.routers, self.tokens, self.steps) < 1:
            raise ValueError("routers, tokens and steps must be at least 1")
        if self.collapse is not None and not 0 <= self.collapse[0] < self.routers:
            raise ValueError(f"collapse in router {self.collapse[0]}: there are {self.routers}")
        first = 1
        for after, back_to in self.restarts:
            if not first <= after <= self.steps or not 1 <= back_to <= after + 1:
                raise ValueError(f"restart after step {after} at step {back_to} cannot happen")
            first = back_to

    @property
    def attempts(self) -> list[range]:
        """The steps that are written, in order, one range from restart to restart."""
        firsts = [1, *(back_to for _, back_to in self.restarts)]
        lasts = [*(after for after, _ in self.restarts), self.steps]
        return [range(a, b + 1) for a, b in zip(firsts, lasts, strict=True)]

    def is_spike(self, attempt: int, step: int) -> bool:
        """A spike stands in the first attempt at its step only."""
        if step not in self.spikes:
            return False
        return all(step not in steps for steps in self.attempts[:attempt])

    def loss(self, attempt: int, step: int) -> float:
        """The loss of a step; another attempt at the same step has another one."""
        if self.is_spike(attempt, step):
            return self.spikes[step]
        hashed = 43758.5453 * math.sin(12.9898 * step + 78.233 * (attempt + 1) + self.seed)
        noise = hashed - math.floor(hashed)
        return round(1.37 + 3.0 * math.exp(-4.0 * step / self.steps) + 0.06 * noise, 5)

    def surviving(self) -> Iterator[tuple[int, int]]:
        """Attempt and step of every record that no later attempt supersedes."""
        for attempt, steps in enumerate(self.attempts):
            later = [again.start for again in self.attempts[attempt + 1 :]]
            for step in range(steps.start, min([steps.stop, *later])):
                yield attempt, step
