# What other packages and the tests import from here. Loaded when used (see lazy_loader).
from .catalogue import SCENARIOS as SCENARIOS
from .live import writing as writing
from .mistakable import APART as APART
from .shape import Shape as Shape
from .synthetic import draw_counts as draw_counts
from .synthetic import inclusion_shares as inclusion_shares
from .synthetic import jittered as jittered
from .truth import Expected as Expected
from .truth import Truth as Truth
from .write import UnknownScenario as UnknownScenario
from .write import lines as lines
from .write import write_run as write_run
