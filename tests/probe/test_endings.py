"""How programs over two ranks end, with and without ``detach``: all steps are in the log.

``python -m tests.probe.test_endings FOLDER RANK KIND`` is one rank.
"""

import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch.distributed as dist

from microscope_tui.probe import attach, probe as probe_module, ranks
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
    probe_module.EXIT_S = 60
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


def held() -> tuple[int, int]:
    """File descriptors and threads of this process."""
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def detached(model: Any, probe: Any, rank: int) -> None:
    """``attach`` again and again leaves nothing; rank 1 reads the last sum later than rank 0."""
    ranks.EXIT_S = 60
    probe.detach()
    folder, end = probe.folder.parent, dist.destroy_process_group
    before = held()
    for number in range(3):
        has_read = folder / f"read{number}"

        def destroy(group: Any, has_read: Path = has_read) -> None:
            assert has_read.exists()
            end(group)

        with (
            attach(model, folder / "again", routers=ROUTERS) as again,
            mock.patch.object(dist, "destroy_process_group", destroy),
        ):
            take_step(model, again)
            take_step(model, again)
            if rank:
                time.sleep(0.3)
                has_read.touch()
            again.detach()
    attach(model, folder / "unused", routers=ROUTERS).detach()
    wait_until(lambda: held() == before)
    last = attach(model, folder / "unused", routers=ROUTERS)
    take_step(model, last)
    dist.barrier()
    end()
    after_all = held()
    last.detach()
    wait_until(lambda: held() < after_all)
    sys.stderr.write("all is given back\n")


def wait_until(is_true: Callable[[], bool]) -> None:
    """The kernel ends threads a little later."""
    until = time.monotonic() + 10
    while not is_true():
        assert time.monotonic() < until
        time.sleep(0.01)


def destroyed_before(model: Any, probe: Any, rank: int) -> None:
    destroyed(model, probe, rank)
    probe.detach()


def fails(model: Any, probe: Any, rank: int) -> None:
    """Rank 1 ends with an exception after two steps, while rank 0 waits for its third."""
    ranks.LIMIT_S = ranks.EXIT_S = 1
    with probe:
        if rank == 0:
            take_step(model, probe)
        else:
            raise KeyError("made to fail")
    sys.stderr.write("detached\n")


ENDS = {
    end.__name__: end
    for end in (late, destroyed, missed, raises, forked, detached, destroyed_before, fails)
}


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
    behind = "step 3 is not summed after 1 s, these ranks are behind: rank 1 (step 2)"
    assert (behind in errors) == (kind == "missed")


def test_the_group_is_given_back_when_all_ranks_have_read_the_last_sum(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    programs = started(fork_server, tmp_path, "detached")
    for errors in [program.communicate()[1] for program in programs]:
        assert errors.endswith("all is given back\n")
    assert len(records(tmp_path / "again")) == 6


def test_detach_after_the_groups_were_destroyed_writes_all_and_raises_nothing(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    programs = started(fork_server, tmp_path, "destroyed_before")
    assert [program.communicate()[1] for program in programs] == ["", ""]
    assert [line["step"] for line in records(tmp_path / "run")] == [1, 2, 3]


def test_after_an_exception_on_one_rank_detach_ends_on_all(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    first, second = started(fork_server, tmp_path, "fails")
    errors = [program.communicate(timeout=60)[1] for program in (first, second)]
    assert "detached" in errors[0]
    assert "made to fail" in errors[1]
    assert [line["step"] for line in records(tmp_path / "run")] == [1, 2]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
