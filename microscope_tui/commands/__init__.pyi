# What other packages and the tests import from here. Loaded when used (see lazy_loader).
from .about import keys as keys, tmux_says as tmux_says
from .check import Ending as Ending, Notifier as Notifier
from .config import (
    UserConfig as UserConfig,
    ViewConfig as ViewConfig,
    default_config as default_config,
    keymap_from as keymap_from,
    read_config as read_config,
)
from .options import ProbeOptions as ProbeOptions
from .parser import bytes_option as bytes_option, run as run
from .watch import watch_with as watch_with
