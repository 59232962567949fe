"""All rules. The meter comes first: it mutes the others; then what mutes the rest in turn."""

from microscope_tui.diagnosis.rules.base import Rule
from microscope_tui.diagnosis.rules.bias_runaway import BiasRunaway
from microscope_tui.diagnosis.rules.collapse import Collapse
from microscope_tui.diagnosis.rules.dead import Dead
from microscope_tui.diagnosis.rules.drops import Drops
from microscope_tui.diagnosis.rules.eroding import Eroding
from microscope_tui.diagnosis.rules.grad_spike import GradSpike
from microscope_tui.diagnosis.rules.hot_expert import HotExpert
from microscope_tui.diagnosis.rules.lint import Lint
from microscope_tui.diagnosis.rules.logits import Logits
from microscope_tui.diagnosis.rules.meter import Meter
from microscope_tui.diagnosis.rules.oscillation import Oscillation
from microscope_tui.diagnosis.rules.overload import Overload
from microscope_tui.diagnosis.rules.shock import Shock
from microscope_tui.diagnosis.rules.starved import Starved
from microscope_tui.diagnosis.rules.uniform import Uniform

CATALOGUE: tuple[type[Rule], ...] = (
    *(Meter, Lint, GradSpike, Logits, Collapse, Shock, Eroding, Dead, Starved),
    *(HotExpert, Overload, Drops, Uniform, Oscillation, BiasRunaway),
)
RULES: dict[str, type[Rule]] = {rule.name: rule for rule in CATALOGUE}
