# What other packages and the tests import from here. Loaded when used (see lazy_loader).
from .catalogue import SCENARIOS as SCENARIOS
from .catalogue import Scenario as Scenario
from .catalogue import any_shape as any_shape
from .catalogue import can_lose_experts as can_lose_experts
from .catalogue import several_choices as several_choices
from .popularity import draw_counts as draw_counts
from .popularity import inclusion_shares as inclusion_shares
from .popularity import jittered as jittered
from .run import Expected as Expected
from .run import Shape as Shape
from .run import Truth as Truth
from .write import UnknownScenario as UnknownScenario
from .write import lines as lines
from .write import write_run as write_run
from .write import writing as writing
