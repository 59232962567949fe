# What other packages import from here. Loaded when used (see lazy_loader).
from .file_events import FileEvents as FileEvents
from .fleet import VERDICT_MEMORY as VERDICT_MEMORY, Fleet as Fleet, RunCard as RunCard
from .history import Column as Column, History as History, Window as Window
from .past_steps import (
    Pin as Pin,
    Reading as Reading,
    Sample as Sample,
    course_of as course_of,
    kept_numbers as kept_numbers,
    kept_steps as kept_steps,
    pin as pin,
    pin_at as pin_at,
    samples as samples,
)
from .reference import (
    NothingToCompare as NothingToCompare,
    PinnedRun as PinnedRun,
    Reference as Reference,
    aligned as aligned,
    reference_of as reference_of,
)
from .run_map import (
    Quantity as Quantity,
    RunMap as RunMap,
    run_map as run_map,
    worst_of_layers as worst_of_layers,
)
from .run_watch import RunWatch as RunWatch
from .scan import DEFAULT_MEMORY as DEFAULT_MEMORY, balance_now as balance_now
from .state import RunState as RunState
from .verdict import (
    Trouble as Trouble,
    Verdict as Verdict,
    VerdictCache as VerdictCache,
    why_no_verdict as why_no_verdict,
)
from .view import (
    LayerView as LayerView,
    RunView as RunView,
    column_of as column_of,
    recent_of as recent_of,
    view_of as view_of,
)
