"""How many threads torch computes with, and how they wait for each other.

A sum differs in its last bits between one thread and two. So the number follows from the processors
that the process may use, never from the load, and a resumed run takes that of its checkpoint.
Waiting changes no bit. Threads spin while they wait, which is the fastest alone; on a busy machine
they take the processor from the thread that they wait for. libgomp reads this when torch loads it.
"""

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from moe_model.command import say

_CHOSEN = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "RANK"}  # ranks divide the threads
_LOOK_S = 0.25
_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


def choose_waiting() -> None:
    """Let waiting threads sleep on a busy machine, before torch is imported.

    Only for a process that trains or probes by itself."""
    if sys.platform != "linux" or "torch" in sys.modules or _CHOSEN & os.environ.keys():
        return
    fixed = os.environ.get("OMP_NUM_THREADS", "")
    threads = processors()
    if fixed.isdecimal():
        threads = min(threads, int(fixed))
    if threads > 1:
        before = _idle_s()
        time.sleep(_LOOK_S)
        if (_idle_s() - before) / _LOOK_S < threads - 0.5:
            os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def settle_threads(saved: object = None, report: Callable[[str], None] = say) -> None:
    """Use the threads of a checkpoint, or the processors allowed; before anything is computed.

    Another number of threads changes the last bits of sums.

    Args:
        saved: Threads of the checkpoint; anything but an integer is ignored. ``OMP_NUM_THREADS``
            has precedence.
        report: Called with one line if that number is not used.
    """
    import torch  # not before choose_waiting()

    now = torch.get_num_threads()
    fixed = "OMP_NUM_THREADS" in os.environ
    threads = now if fixed else min(now, processors())  # torch ignores the quota
    if isinstance(saved, int) and 0 < saved <= processors() and not fixed:
        threads = saved
    elif isinstance(saved, int) and saved != threads:
        report(
            f"the checkpoint was written with {saved} threads, this process has {threads}: the "
            f"last bits of sums will differ; set OMP_NUM_THREADS={saved} on {saved} processors."
        )
    if threads != now:
        torch.set_num_threads(threads)


def processors() -> int:
    """How many the affinity and the control groups of this process allow."""
    if sys.platform != "linux":
        return os.cpu_count() or 1
    found = [len(os.sched_getaffinity(0))]
    with suppress(OSError, ValueError):
        for line in (_PROC / "self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            files = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if kinds else ("cpu.max",)
            for folder in (Path(path[1:]), *Path(path[1:]).parents):  # each limits those inside it
                with suppress(OSError, ValueError):  # no such file, or "max"
                    texts = [(_CGROUPS / kinds / folder / file).read_text() for file in files]
                    quota, period = map(int, " ".join(texts).split())
                    if quota > 0:
                        found.append(-(-quota // period))
    return max(1, min(found))


def _idle_s() -> float:
    own = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    rows = [line.split() for line in (_PROC / "stat").read_text().splitlines()]
    return sum(int(r[4]) + int(r[5]) for r in rows if r[0] in own) / os.sysconf("SC_CLK_TCK")
