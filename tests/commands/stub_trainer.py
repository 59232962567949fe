"""Replaces ``train.py`` in tests of the demo: writes a short log, obeys signals as it does.

``STUB`` in the environment says what happens: ``fails`` exits 1 at once, ``dies`` exits 1 after its
last step, ``slow`` never writes a log, ``deaf`` needs SIGKILL. What it was called with, its process
id and how it ended are in ``stub-RUN.json``, ``stub-RUN.pid`` and ``stub-RUN.end``.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from microscope_tui.scenarios import Shape, lines


def main() -> int:
    what = os.environ.get("STUB", "")
    run = sys.argv[sys.argv.index("--run") + 1]
    Path(f"stub-{run}.json").write_text(json.dumps(sys.argv[1:]))
    Path(f"stub-{run}.pid").write_text(str(os.getpid()))
    if what == "fails":
        sys.stderr.write("train.py: the disk is full\n")
        return 1
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: asked.append(number))
    log = Path("logs") / run / "metrics.jsonl"
    _, records = lines("collapse", Shape(steps=400), 0)
    if what != "slow":
        log.parent.mkdir(exist_ok=True)
        log.write_bytes(b"".join(list(records)[:-1]))
    sys.stderr.write("the trainer narrates\n")
    if what == "dies":
        return 1
    if "--steps" in sys.argv and not what:
        return 0
    while not asked or what == "deaf":
        time.sleep(0.02)
    latest = Path("checkpoints") / run / "latest"
    latest.mkdir(parents=True)
    Path(f"stub-{run}.end").write_text(signal.Signals(asked[0]).name)
    return 75


if __name__ == "__main__":
    sys.exit(main())
