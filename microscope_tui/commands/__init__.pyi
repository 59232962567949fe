# What other packages and the tests import from here. Loaded when used (see lazy_loader).
from .config import read_config as read_config
from .keys import keys as keys
from .parser import run as run
from .watch import watch_with as watch_with
