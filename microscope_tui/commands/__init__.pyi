# What other packages and the tests import from here. Loaded when used (see lazy_loader).
from .about import keys as keys
from .about import tmux_says as tmux_says
from .check import Ending as Ending
from .check import Notifier as Notifier
from .config import UserConfig as UserConfig
from .config import ViewConfig as ViewConfig
from .config import changes_in as changes_in
from .config import default_config as default_config
from .config import keymap_from as keymap_from
from .config import read_config as read_config
from .options import ProbeOptions as ProbeOptions
from .parser import bytes_option as bytes_option
from .parser import run as run
from .watch import watch_with as watch_with
