"""Where a run is: the numbers of its last step, and when there is no point in going on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

GIVE_UP_AFTER = 20
"""Steps in a row without a finite gradient after which a run has failed."""


class TrainingFailedError(RuntimeError):
    """The run cannot go on; the message says why and what to do."""


@dataclass(slots=True)
class Progress:
    """The state of the loop that is neither in the model nor in the optimizer."""

    step: int = 0
    """Optimizer steps completed."""
    loss: float = math.nan
    """Training loss of the last step, nats per token."""
    validation_loss: float | None = None
    """Latest held-out loss, nats per token; none before the first evaluation."""
    best_loss: float = math.inf
    """Lowest held-out loss so far, nats per token."""
    tokens_per_s: float = 0.0
    """Of the last step."""
    collapse_index: Sequence[float | None] = ()
    """One per router: 1 healthy, 0 collapsed, none where it has no meaning."""
    bad_steps: int = 0
    """Steps in a row, up to the last one, whose gradient was not finite."""
    saved_step: int | None = None
    """Step of the latest checkpoint."""

    def advance(self, record: dict[str, Any], collapse_index: Sequence[float | None]) -> None:
        """Take over a completed step from its line of the log.

        Raises:
            TrainingFailedError: After too many steps in a row that were not finite.
        """
        self.step, self.loss = record["step"], record["loss"]
        self.tokens_per_s = record["tokens_per_s"]
        self.collapse_index = collapse_index
        self.bad_steps = 0 if math.isfinite(record["grad_norm"]) else self.bad_steps + 1
        if self.bad_steps >= GIVE_UP_AFTER:
            raise TrainingFailedError(
                f"the gradient was not finite in {self.bad_steps} steps in a row (the last is step "
                f"{self.step}): start again with a lower --lr."
            )
