"""Replaces ``train.py`` in tests of the demo: copies a short log, obeys signals as it does.

``STUB`` in the environment says what happens: ``fails`` exits 1 at once, ``dies`` exits 1 after its
last step, ``slow`` never writes a log, ``deaf`` needs SIGKILL. What it was called with, its process
id and how it ended are in ``stub-RUN.json``, ``stub-RUN.pid`` and ``stub-RUN.end``.
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
    Path(f"stub-{run}.pid").write_text(str(os.getpid()))
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
    if what == "dies":
        return 1
    while (what or "--steps" not in sys.argv) and (not stops or what == "deaf"):
        time.sleep(0.02)
    (Path("checkpoints") / run / "latest").mkdir(parents=True)
    if stops:
        Path(f"stub-{run}.end").write_text(signal.Signals(stops[0]).name)
    return 75 if stops else 0


if __name__ == "__main__":
    sys.exit(main())
