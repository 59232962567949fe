"""When the diagnosis speaks: warm-up, persistence, and what counts as the same trouble."""

WARM_UP_STEPS = 100
WARM_UP_SHARE = 0.02
WARM_UP_MAX = 500
AFTER_RESTART_STEPS = 100
"""A resumed run may have lost the bias of its routers: as long as a warm-up."""
GROUP_STEPS = 100
"""The same trouble starting within so many steps in several layers is one finding."""
COOLDOWN_STEPS = 100
"""Trouble that returns so soon after its recovery never was over."""
ENTER_SHARE = 0.9
"""An alarm needs this share of the last evaluations over its limit."""
LEAST_LINES = 5
"""Persistence is meant in steps: a log with a line for every tenth step needs a tenth of the
lines, but never fewer than these. A shock of 24 steps reaches five lines only if they are less
than seven steps apart, and then more are asked for."""


def warm_up(planned_steps: int | None) -> int:
    """Steps in which routers of healthy runs are still uneven: 100, or 2 % of a long run."""
    return max(WARM_UP_STEPS, int(min(WARM_UP_SHARE * (planned_steps or 0), WARM_UP_MAX)))
