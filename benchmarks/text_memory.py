"""Memory of every rank for a text of 1 GB, trained by 1, 2 and 4 ranks; Linux.

    python -m benchmarks.text_memory [--megabytes 1000] [--folder /tmp/text-memory]

The text is JSON lines of 2 kB; the first start encodes it. ``own`` is anonymous memory, ``mapped``
the pages of files in use, which all ranks share: libraries, and tokens that were looked at.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.kill_and_resume import ROOT
from benchmarks.machine import machine, options_of


def main() -> None:
    asked = options_of(__doc__, megabytes=1000, folder=Path("/tmp/text-memory"))
    asked.folder.mkdir(parents=True, exist_ok=True)
    words = (ROOT / "docs/run-log.md").read_text("ascii", "ignore")
    print(machine())
    for size in (1, asked.megabytes):
        path = asked.folder / f"{size}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for place in range(size * 500):
                at = place * 37 % (len(words) - 2000)
                file.write(json.dumps({"text": words[at : at + 2000]}) + "\n")
        for ranks in (1, 1, 2, 4):
            peaks = peaks_of(asked.folder, path, ranks)
            print(f"{size} MB, {ranks} ranks, most own and mapped MB:", *peaks, flush=True)


def peaks_of(folder: Path, path: Path, ranks: int) -> list[list[int]]:
    """Of each rank, read every 20 ms."""
    command = [sys.executable, str(ROOT / "train.py"), f"--data={path}", "--steps=4"]
    command += [f"--run={time.time_ns()}", f"--log-dir={folder}/l", f"--checkpoint-dir={folder}/c"]
    os.environ |= {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    place = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29871"}
    each = [place | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    processes = [
        subprocess.Popen(command, env=os.environ | own if ranks > 1 else None, stdout=sys.stderr)
        for own in each
    ]
    peaks = [[0, 0] for _ in processes]
    while any(process.poll() is None for process in processes):
        for process, peak in zip(processes, peaks, strict=True):
            if process.poll() is not None:
                continue
            status = Path(f"/proc/{process.pid}/status").read_text("ascii")
            for column, kind in enumerate(("RssAnon", "RssFile")):
                for kilobytes in re.findall(rf"{kind}:\s+(\d+)", status):
                    peak[column] = max(peak[column], int(kilobytes) // 1000)
        time.sleep(0.02)
    return peaks


if __name__ == "__main__":
    main()
