"""``python -m moe_model.upcycle SRC DST``."""

import sys

from moe_model.command import run_command
from moe_model.upcycle.command import app

if __name__ == "__main__":
    sys.exit(run_command(app, None))
