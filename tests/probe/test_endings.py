"""How programs over two ranks end, with and without ``detach``: all steps are in the log.

``python -m tests.probe.test_endings FOLDER RANK KIND`` is one rank.
"""

import logging
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from microscope_tui.probe import attach, probe as probe_module
from tests.forked import ForkServer, Program
from tests.probe.layers import ROUTERS, Model, records, tokens


def main(folder: Path, rank: int, kind: str) -> None:
    """Three steps without ``detach``."""
    warnings.simplefilter("default")  # those of torch are not our errors
    logging.basicConfig()
    meet = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
    model = Model()
    probe = attach(model, folder / "run", routers=ROUTERS)
    for _ in range(2):
        take_step(model, probe)
    ENDS[kind](model, probe, rank)


def take_step(model: Any, probe: Any) -> None:
    model(tokens()).sum().backward()
    probe.step()


KEPT: list[Any] = []
"""Not forgotten before the program ends."""


def late(model: Any, probe: Any, rank: int) -> None:
    KEPT.append(probe)
    time.sleep(rank)
    take_step(model, probe)


def destroyed(model: Any, probe: Any, rank: int) -> None:
    take_step(model, probe)
    dist.barrier()
    dist.destroy_process_group()


def missed(model: Any, probe: Any, rank: int) -> None:
    probe_module.EXIT_S = 1
    if rank == 0:
        take_step(model, probe)
    else:
        time.sleep(600)


def forked(model: Any, probe: Any, rank: int) -> None:
    probe_module.EXIT_S = 600
    if rank == 0:
        take_step(model, probe)
        if child := os.fork():
            os.waitpid(child, 0)
            os.kill(os.getpid(), signal.SIGKILL)
    else:
        time.sleep(600)


def raises(model: Any, probe: Any, rank: int) -> None:
    probe_module.EXIT_S = 600
    if rank == 0:
        take_step(model, probe)
        raise KeyError("made to fail")
    time.sleep(600)


ENDS = {"late": late, "destroyed": destroyed, "missed": missed, "raises": raises, "forked": forked}


def started(server: ForkServer, folder: Path, kind: str) -> list[Program]:
    module = "tests.probe.test_endings"
    return [server.start("-m", module, str(folder), str(rank), kind) for rank in (0, 1)]


@pytest.mark.parametrize("kind", ["late", "destroyed"])
def test_without_detach_the_last_step_is_in_the_log(
    kind: str, fork_server: ForkServer, tmp_path: Path
) -> None:
    programs = started(fork_server, tmp_path, kind)
    errors = [program.communicate()[1] for program in programs]
    assert [line["step"] for line in records(tmp_path / "run")] == [1, 2, 3], "\n".join(errors)
    assert records(tmp_path / "run", "event") == []


@pytest.mark.parametrize("kind", ["missed", "raises", "forked"])
def test_the_end_waits_no_longer_for_a_rank_than_it_may(
    kind: str, fork_server: ForkServer, tmp_path: Path
) -> None:
    first, second = started(fork_server, tmp_path, kind)
    try:
        _, errors = first.communicate(timeout=60)
    finally:
        second.kill()
    assert [line["step"] for line in records(tmp_path / "run")] == [1, 2]
    assert ("these ranks are behind: rank 1 (step 2)" in errors) == (kind == "missed")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
