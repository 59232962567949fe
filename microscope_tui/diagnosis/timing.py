"""Timing of alarms: warm-up, persistence, and what counts as the same trouble."""

WARM_UP_STEPS = 100
WARM_UP_SHARE = 0.02
WARM_UP_MAX = 500
AFTER_RESTART_STEPS = 100
"""Steps after a resume that are treated as a warm-up: the bias may be lost."""
GROUP_STEPS = 100
"""The same trouble that starts within this many steps in several layers is one finding."""
COOLDOWN_STEPS = 100
"""Trouble that returns within this many steps had not recovered."""
ENTER_SHARE = 0.9
"""An alarm needs this share of the last evaluations over its limit."""
LEAST_LINES = 5
"""Persistence counts steps: a log with a line for every tenth step needs a tenth of the lines, but
never fewer than these. A shock of 24 steps covers five lines only if they are less than seven
steps apart, and then more are required.
"""


def warm_up(planned_steps: int | None) -> int:
    """Steps in which routers of healthy runs are still uneven: 100, or 2 % of a long run."""
    return max(WARM_UP_STEPS, int(min(WARM_UP_SHARE * (planned_steps or 0), WARM_UP_MAX)))
