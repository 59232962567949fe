# What other packages and the tests import from here. Loaded when used (see lazy_loader).
from .catalogue import (
    SCENARIOS as SCENARIOS,
    Scenario as Scenario,
    several_choices as several_choices,
)
from .popularity import draw_counts as draw_counts, jittered as jittered
from .run import Expected as Expected, Shape as Shape, Truth as Truth
from .write import lines as lines, write_run as write_run, writing as writing
