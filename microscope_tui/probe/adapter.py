"""What the probe has to know of a router that it does not know by itself.

An ``Adapter`` is all that is needed for a layer of your own: which expert ids one call of the
module chose. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor, nn

    Ids = Callable[[nn.Module, tuple[Any, ...], Any], Tensor]


@dataclass(frozen=True, slots=True)
class Adapter:
    """How to read the choices of one kind of router."""

    ids: Ids
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
        if self.num_experts < 1 or not 1 <= self.top_k:
            raise ValueError(
                f"Adapter(num_experts={self.num_experts}, top_k={self.top_k}): both are at least 1"
            )


class Choice(NamedTuple):
    """What one call of a router decided about T tokens."""

    ids_TK: Tensor
    """Expert ids; whatever is no real expert (−1, a skip slot, an identity expert) counts as
    unrouted."""
    weights_TK: Tensor | None = None
    """What the outputs of the chosen experts are multiplied with."""
    logits_TE: Tensor | None = None
    """What the router scored, see ``Scores``."""
    kept_TK: Tensor | None = None
    """False where a capacity dropped the pair."""
    real_T: Tensor | None = None
    """False for padding, where the call does not see the tokens of the batch in their order."""
