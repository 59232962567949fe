"""Claims of ranks about one that is killed or hangs; each has a world of its own."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from moe_model import exchange as exchange_module
from moe_model.training.parallel import parallelize
from moe_model.training.world import RankLostError, World, lost_ranks
from tests.training.ranks import Claim, all_sequences, loss_of, make_model

TIMEOUT_S, PATIENT_S = 1.5, 2.0
"""What a rank waits in a step, and for how long another one works by itself."""


def killed_in_a_step(kind: Any) -> Claim:
    def claim(world: World, folder: Path) -> None:
        forward = parallelize(make_model(), kind, world)
        with noticed(world):
            for step in range(3):
                loss = loss_of(forward, all_sequences())
                if world.rank == 1 and step == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                loss.backward()

    return claim


def lost_in_the_exchange(*, hung: bool) -> Claim:
    """Inside a layer, in the backward pass of the second step."""

    def claim(world: World, folder: Path) -> None:
        forward = parallelize(make_model(), "ddp", world, 2)
        calls, plain = [], exchange_module._moved

        def moved(*given: Any) -> Tensor:
            calls.append(1)
            if world.rank == 1 and len(calls) == 20:
                wait_for(folder / f"left {hung}") if hung else os.kill(os.getpid(), signal.SIGKILL)
            return plain(*given)

        exchange_module._moved = moved
        try:
            with noticed(world, "Timed out" if hung else "no longer responds"):
                for _ in range(3):
                    loss_of(forward, all_sequences()).backward()
        finally:
            exchange_module._moved = plain
        (folder / f"left {hung}").touch()

    return claim


def wait_for(file: Path) -> None:
    while not file.exists():
        time.sleep(0.02)
    os._exit(0)


def killed_while_the_others_wait_without_a_limit(world: World, folder: Path) -> None:
    world.barrier()  # all have joined
    with noticed(world), world.main_first():
        os.kill(os.getpid(), signal.SIGKILL)


def work_may_take_longer_than_a_step_but_a_step_may_not(world: World, folder: Path) -> None:
    started = time.monotonic()
    with world.main_first():
        if world.is_main:
            time.sleep(PATIENT_S)
    with world.together():
        if world.rank == 1:
            time.sleep(PATIENT_S)
    assert world.any(world.rank == 1)
    assert time.monotonic() - started > 2 * TIMEOUT_S
    if world.rank == 1:  # hangs until the other one has given up
        wait_for(folder / "given up")
    with noticed(world, "Timed out"):
        world.any(True)
    (folder / "given up").touch()


@contextmanager
def noticed(world: World, reason: str = "no longer responds") -> Iterator[None]:
    """A block that ends soon because another rank no longer responds."""
    started = time.monotonic()
    with pytest.raises(RankLostError, match=reason) as caught, lost_ranks():
        yield
    expected = f"rank {world.rank} of {world.size}: another rank no longer responds"
    assert str(caught.value).startswith(expected), caught.value
    assert "start again with --resume auto" in str(caught.value)
    assert time.monotonic() - started < 20


APART: dict[str, tuple[int, Claim, float]] = {
    "killed in a step of ddp": (2, killed_in_a_step("ddp"), 30.0),
    "killed in a step of fsdp": (3, killed_in_a_step("fsdp"), 30.0),
    "killed at its own work": (3, killed_while_the_others_wait_without_a_limit, 30.0),
    "killed in the exchange": (2, lost_in_the_exchange(hung=False), 30.0),
    "hung in the exchange": (2, lost_in_the_exchange(hung=True), 4 * TIMEOUT_S),
    "hung in a step": (2, work_may_take_longer_than_a_step_but_a_step_may_not, TIMEOUT_S),
}
