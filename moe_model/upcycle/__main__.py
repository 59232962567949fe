"""``python -m moe_model.upcycle SRC DST``."""

import sys

from moe_model import need_packages, run_command

if __name__ == "__main__":
    need_packages("python -m moe_model.upcycle", "transformers")

    from moe_model.upcycle.command import app

    sys.exit(run_command(app, None))
