"""Are the counts of the probe right for every MoE family of the installed transformers?

    python -m benchmarks.families [FAMILY ...]

Each family is built tiny and trained for one step in seven ways (padding left and right, both
kinds of activation checkpointing, two micro-batches, both expert implementations); what the probe
logged must equal what an independent recomputation counts. Exit code 1 if any differs.
"""

import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
import transformers

from benchmarks.families.tiny import families
from benchmarks.families.trial import WAYS, attempt

LIBRARY = {
    "does not support activation checkpointing": "no checkpointing",
    "does not support setting experts implementation": "one implementation",
    "Trying to backward through the graph a second time": "fails without the probe too",
}
"""What the library itself refuses, in a few words."""


def main() -> int:
    warnings.filterwarnings("ignore")
    logging.getLogger("microscope_tui.probe").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    bad = 0
    print(f"transformers {transformers.__version__}; columns: {', '.join(WAYS)}")
    for family in sys.argv[1:] or families():
        started, cells = time.perf_counter(), []
        for way in WAYS.values():
            try:
                with tempfile.TemporaryDirectory() as folder:
                    outcome = attempt(family, way, Path(folder))
                problems = outcome.problems()
                cells.append("ok" if not problems else problems[0])
                bad += bool(problems)
            except Exception as error:  # the table names it
                known = [word for text, word in LIBRARY.items() if text in str(error)]
                cells.append(known[0] if known else f"{type(error).__name__}: {error!s:.60}")
                bad += not known
        shown = " · ".join(cells)
        print(f"{family:24} {shown}   {time.perf_counter() - started:.0f} s", flush=True)
    print("all equal" if not bad else f"{bad} differ")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
