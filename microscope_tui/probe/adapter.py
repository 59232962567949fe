"""What the probe has to know of a router that it does not know by itself.

An ``Adapter`` is all that is needed for a layer of your own: which expert ids one call of the
module chose. Nothing here imports torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Adapter:
    """How to read the choices of one kind of router."""

    ids: Callable[[Any, tuple[Any, ...], Any], Any]
    """``ids(module, args, output)``, called after the module's forward, returns the chosen expert
    ids ``[T, k]``, T tokens in the order of the batch, −1 for a slot that chose no real expert.
    It runs inside the forward pass: tensor operations only, nothing that waits for the device."""
    num_experts: int
    """Routed experts."""
    top_k: int
    """Experts that a token chooses."""

    def __post_init__(self) -> None:
        """
        Raises:
            TypeError: ``ids`` cannot be called.
            ValueError: a number of experts or choices that no router has.
        """
        if not callable(self.ids):
            raise TypeError(f"Adapter(ids={self.ids!r}): pass a function (module, args, output)")
        if self.num_experts < 1 or self.top_k < 1:
            raise ValueError(
                f"Adapter(num_experts={self.num_experts}, top_k={self.top_k}): both are at least 1"
            )
