"""The floor of an auxiliary loss that pools all layers: k, however uneven single layers are.

Transformers adds up the counts and probabilities of all layers before it multiplies them, so that
layers which are uneven in different ways cancel out. Elsewhere each layer has a floor of its own.
"""

from microscope_tui.diagnosis.context import Context
from microscope_tui.diagnosis.signals import StepView

_NAMES = ("aux", "aux_loss", "router_aux")


class AuxFloor:
    """Compares the loss of a step with its floor, and the load of its layers."""

    def __init__(self, context: Context, near: float, uneven: float) -> None:
        self._after = context.warm_up
        self._floor = float(context.run.routers[0].top_k)
        self._near = near * self._floor
        self._least = [uneven * router.num_experts for router in context.run.routers]

    def hides_a_layer(self, view: StepView) -> bool:
        """Whether the loss is near its floor while a layer by itself is far from even."""
        losses, effective = view.record.losses or {}, view.signal("effective_experts")
        loss = next((losses[name] for name in _NAMES if name in losses), None)
        if loss is None or effective is None or view.step <= self._after:
            return False
        pairs = zip(effective.values, self._least, strict=True)
        return abs(loss - self._floor) <= self._near and any(used < least for used, least in pairs)
