"""Replaces ``train.py`` in tests of the demo: copies a short log, obeys signals as it does.

``STUB`` in the environment says what happens: ``fails`` exits 1 at once, ``slow`` never writes a
log. What it was called with and how it ended are in ``stub-RUN.json`` and ``stub-RUN.end``.
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path


def main() -> int:
    what = os.environ.get("STUB", "")
    run = sys.argv[sys.argv.index("--run") + 1]
    Path(f"stub-{run}.json").write_text(json.dumps(sys.argv[1:]))
    if what == "fails":
        sys.stderr.write("train.py: the disk is full\n")
        return 1
    stops: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: stops.append(number))
    log = Path("logs") / run / "metrics.jsonl"
    if what != "slow":
        log.parent.mkdir(exist_ok=True)
        shutil.copy("stub-log.jsonl", log)
    sys.stderr.write("the trainer narrates\n")
    while (what or "--steps" not in sys.argv) and not stops:
        time.sleep(0.02)
    (Path("checkpoints") / run / "latest").mkdir(parents=True)
    if stops:
        Path(f"stub-{run}.end").write_text(signal.Signals(stops[0]).name)
    return 75 if stops else 0


if __name__ == "__main__":
    sys.exit(main())
