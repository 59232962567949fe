# What other packages and the tests import from here. Loaded when used (see lazy_loader).
from .attaching import attach as attach
from .counter import RoutingCounter as RoutingCounter
from .find_routers import find_sites as find_sites
from .held_out import held_out_slices as held_out_slices
from .judge import Alert as Alert
from .recorder import RunRecorder as RunRecorder, TrainingLog as TrainingLog
from .sites import Adapter as Adapter
from .step_sums import memory_bytes as memory_bytes
from .tracing import trace_texts as trace_texts
from .trainer_callback import MicroscopeCallback as MicroscopeCallback
