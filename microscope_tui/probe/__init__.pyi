# What other packages and the tests import from here. Loaded when used (see lazy_loader).
from .attaching import attach as attach
from .checkpoints import load as load, trace_texts as trace_texts
from .counter import RoutingCounter as RoutingCounter
from .find_routers import find_sites as find_sites
from .judge import Alert as Alert
from .probed_model import CannotProbe as CannotProbe, ProbedModel as ProbedModel
from .probing import Outcome as Outcome, refuse_unknown as refuse_unknown, run_probe as run_probe
from .recorder import RunRecorder as RunRecorder, TrainingLog as TrainingLog
from .sites import Adapter as Adapter
from .tables import held_out_slices as held_out_slices
from .texts import (
    BadText as BadText,
    Reading as Reading,
    continued as continued,
    find_slices as find_slices,
    read_windows as read_windows,
)
from .threads import choose_waiting as choose_waiting, settle_threads as settle_threads
from .trainer_callback import MicroscopeCallback as MicroscopeCallback
