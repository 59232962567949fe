# What other packages and the tests import from here. Loaded when used (see lazy_loader).
from .advice import Advice as Advice, report as report
from .causes import causes as causes
from .context import (
    ANYTHING as ANYTHING,
    DEFAULTS as DEFAULTS,
    Criteria as Criteria,
    Limits as Limits,
    RouterBaseline as RouterBaseline,
    is_one_step as is_one_step,
)
from .engine import (
    NO_ROUTERS as NO_ROUTERS,
    BadState as BadState,
    Diagnosis as Diagnosis,
    NoVerdict as NoVerdict,
    Pending as Pending,
    gathering as gathering,
    no_verdict as no_verdict,
    pending as pending,
    restore as restore,
    save as save,
)
from .episodes import (
    WHOLE_RUN as WHOLE_RUN,
    Episode as Episode,
    Finding as Finding,
    Grade as Grade,
    Severity as Severity,
    key_of as key_of,
    overall as overall,
)
from .ledger import group as group
from .rules import RULES as RULES, BadLimit as BadLimit, changed_limits as changed_limits
from .signals import StepView as StepView, unknown as unknown, value_at as value_at
