"""``python -m moe_model.huggingface import|export SRC DST``."""

import sys

from moe_model import need_packages, run_command

if __name__ == "__main__":
    need_packages("python -m moe_model.huggingface")

    from moe_model.huggingface.command import app

    sys.exit(run_command(app, None))
