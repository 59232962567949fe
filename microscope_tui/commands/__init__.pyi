# What other packages and the tests import from here. Loaded when used (see lazy_loader).
from .about import keys as keys
from .config import read_config as read_config
from .parser import run as run
from .watch import watch_with as watch_with
