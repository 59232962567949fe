"""The loss scale of fp16, which keeps small gradients from becoming zero.

As torch's ``GradScaler``: halved after a step that is not finite, doubled after 2,000 steps that
are. It follows the gradient norm of all ranks. torch reduces the infinities that a rank has found
over the mesh of the first gradient only: with several meshes the scales of ranks would differ.
"""

from __future__ import annotations

from dataclasses import dataclass

MOST_LOSS_SCALE = 2.0**127
"""Just below the largest fp32 number."""


@dataclass(slots=True)
class LossScale:
    """The fields are those of torch, as checkpoints have them."""

    scale: float = 2.0**16
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 2000
    _growth_tracker: int = 0

    def update(self, *, finite: bool) -> None:
        """After each step: whether its gradient norm was ``finite``."""
        self._growth_tracker = self._growth_tracker + 1 if finite else 0
        if not finite:
            self.scale *= self.backoff_factor
        elif self._growth_tracker >= self.growth_interval:
            self._growth_tracker = 0
            if self.scale * self.growth_factor < MOST_LOSS_SCALE:
                self.scale *= self.growth_factor
