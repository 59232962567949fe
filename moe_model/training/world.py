"""Processes that train one model together: ranks, collectives, faults, and the loss of a rank.

A rank with another learning rate or text would not fail: its gradients would count. So what must
be the same is compared before the first step (:func:`agree`). After that ranks exchange one sum per
step, and errors: tensors only, nothing is pickled here.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from moe_model import FAILED, USAGE, UsageError, say
from moe_model.training.signals import ended_by_signals

TIMEOUT_S = 600.0
"""Seconds a rank waits for the others in a step before it fails."""
_WITHOUT_LIMIT = timedelta(days=365)
"""gloo requires a number; a rank that ends breaks its connections, which ends the others."""
_CPU = torch.device("cpu")
NOT_GIVEN = "not given"


def launched() -> bool:
    """Whether torchrun, or a recipe that sets the same variables, started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_first() -> bool:
    """Whether this is rank 0, even if the ranks could not connect."""
    return os.environ.get("RANK", "0") == "0"


def own_rank() -> str:
    """This process in an error message, even if the ranks could not connect."""
    return f"rank {os.environ.get('RANK', '0')} of {os.environ.get('WORLD_SIZE', '1')}"


def number_of(name: str) -> int:
    """The variable ``name`` of the environment, 0 where it is not set.

    ``UsageError`` if it is not a number.
    """
    text = os.environ.get(name, "0")
    if not text.isdecimal():
        raise UsageError(f"{name}={text!r} is not a number: start with torchrun, or correct it.")
    return int(text)


class RankLostError(RuntimeError):
    """Another rank failed, was killed or hangs; the message names the failure and what to do."""


@dataclass(frozen=True, slots=True)
class World:
    """The processes of one training, seen from one of them."""

    rank: int = 0
    size: int = 1
    """Number of processes on all machines."""
    device: torch.device = _CPU
    untimed: dist.ProcessGroup | None = None
    """A gloo group of all ranks, for waits without a time limit."""
    timeout: timedelta = timedelta(seconds=TIMEOUT_S)
    """How long a rank waits for the others in a step."""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes the log and prints."""
        return self.rank == 0

    def say(self, line: str) -> None:
        """Print a line on standard error of rank 0; the other ranks print nothing."""
        if self.is_main:
            say(f"train.py: {line}")

    def sum(self, tensor: Tensor) -> None:
        """Replace ``tensor`` by its sum over all ranks, the same bits on each; a collective."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def any(self, here: bool) -> bool:
        """Whether it is true on any rank. A collective."""
        if self.size == 1:
            return here
        votes = torch.tensor(int(here), device=self.device)
        self.sum(votes)
        return bool(votes)

    def barrier(self) -> None:
        """Wait for all ranks, however long it takes.

        A rank that ends makes the others fail at once; one that hangs is not detected.
        """
        if self.size > 1:
            dist.barrier(group=self.untimed)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the block on rank 0, then on one rank of every other machine, then on the others: it
        downloads, they use the file. An error ends all ranks, as in :meth:`together`."""
        own_turn = 0 if self.is_main else 1 + (number_of("LOCAL_RANK") > 0)
        for turn in range(3):
            if turn != own_turn:
                self.share_fault(None)
                continue
            with self.together():
                yield

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that succeeds or fails on all ranks; see :meth:`share_fault`. Collectives inside
        must come before anything that can fail."""
        fault = None
        try:
            yield
        except Exception as error:
            if isinstance(error, RuntimeError) and _is_connection_error(error):
                raise  # no other rank is left
            fault = error
        self.share_fault(fault)

    def share_fault(self, fault: Exception | None) -> None:
        """End all ranks if one has found an error, else return. A collective.

        Ranks wait here without a time limit: work that one rank does alone (a download, learning
        byte pairs, reading a checkpoint) may take hours.

        One message: rank 0 raises the error of the lowest rank that has one, and the other ranks
        end silently. A rank whose own error differs from that, or for which rank 0 has only the
        message, raises its own too.

        Raises:
            UsageError: On rank 0, for a usage error, with the rank that found it.
            RankLostError: On rank 0, for any other error of another rank.
            SystemExit: On the other ranks, with the exit code of rank 0.
        """
        if self.size == 1:
            if fault is not None:
                raise fault
            return
        self.barrier()
        votes_R = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        if fault is not None:
            votes_R[self.rank] = 2 if isinstance(fault, UsageError) else 1
        self.sum(votes_R)
        if not votes_R.any():
            return
        first = int(votes_R.nonzero()[0])
        is_usage = int(votes_R[first]) == 2
        text = "" if fault is None else str(fault) or type(fault).__name__
        own = text.encode("utf-8", "backslashreplace").decode()  # a path may not be valid UTF-8
        message = self.broadcast_text(own, src=first)
        if self.is_main:
            kind = UsageError if is_usage else RankLostError
            raise fault or kind(f"rank {first} of {self.size}: {message}")
        if fault is not None and (own != message or (first and not is_usage)):
            raise fault
        raise SystemExit(USAGE if is_usage else FAILED) from fault

    def broadcast_text(self, text: str, src: int = 0) -> str:
        """The ``text`` of rank ``src``; that of the other ranks is not used. A collective."""
        if self.size == 1:
            return text
        payload = text.encode("utf-8")
        length = torch.tensor(len(payload), device=self.device)
        dist.broadcast(length, src=src)
        contents = torch.zeros(int(length), dtype=torch.uint8, device=self.device)
        if self.rank == src and payload:
            contents.copy_(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
        dist.broadcast(contents, src=src)
        return bytes(contents.tolist()).decode("utf-8")


ALONE = World()
"""A single process without a launcher, on the CPU."""


@contextmanager
def join_world(device: torch.device, timeout_s: float = TIMEOUT_S) -> Iterator[World]:
    """Join the process group and leave it at the end: gloo on a CPU, NCCL on GPUs.

    A process without a launcher is a world of size 1, without connections. Errors must propagate
    through this block: after one, NCCL could wait forever for ranks that have ended, so its
    connections are not closed.

    Args:
        device: ``cpu``, or ``cuda``; every process of a machine uses a different GPU.
        timeout_s: A rank that waits longer than this for another one fails; at
            :meth:`World.barrier` it waits without a limit.

    Raises:
        UsageError: If the environment variables are invalid, or a machine has too few GPUs.
        RankLostError: If other ranks do not join.
    """
    if not launched():
        yield World(device=device)
        return
    rank, size, local_rank = (number_of(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    cuda = device.type == "cuda"
    if cuda:
        gpus = torch.cuda.device_count()
        if local_rank >= gpus:
            raise UsageError(
                f"LOCAL_RANK={local_rank} but this process sees {gpus} GPUs: start at most that "
                "many processes per machine (--nproc-per-node), set LOCAL_RANK=0 if each process "
                "sees only its own GPU, or train with --device cpu."
            )
        torch.cuda.set_device(local_rank)
        device = torch.device("cuda", local_rank)
    backend = "nccl" if cuda else "gloo"
    timeout = timedelta(seconds=timeout_s)
    try:
        with ended_by_signals():
            dist.init_process_group(backend, timeout=timeout, device_id=device if cuda else None)
            untimed: Any = dist.new_group(backend="gloo", timeout=_WITHOUT_LIMIT)
    except dist.DistError as error:
        where = [f"{name}={os.environ.get(name)}" for name in ("MASTER_ADDR", "MASTER_PORT")]
        raise RankLostError(
            f"rank {rank} of {size}: not all ranks joined at {' '.join(where)} "
            f"({_first_line(error)}): start all of them, and check that this address is rank 0's."
        ) from error
    except ValueError as error:
        raise UsageError(
            f"RANK={rank} and WORLD_SIZE={size} are set, but the ranks cannot connect ({error}): "
            "start with torchrun, or set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT."
        ) from error
    ended_well = False
    try:
        yield World(rank, size, device, untimed, timeout)
        ended_well = True
    finally:
        if ended_well or not cuda:
            dist.destroy_process_group()


@contextmanager
def lost_ranks() -> Iterator[None]:
    """Turn torch's error about a rank that has ended or hangs into ``RankLostError``."""
    try:
        yield
    except RuntimeError as error:
        if not _is_connection_error(error):
            raise
        raise RankLostError(
            f"{own_rank()}: another rank no longer responds ({_first_line(error)}): read its "
            "output above, or its log, then start again with --resume auto."
        ) from error


def _is_connection_error(error: RuntimeError) -> bool:
    """gloo raises a plain ``RuntimeError`` if a connection broke or timed out, or for a bug of this
    program: a size mismatch."""
    text = str(error)
    gloo = "gloo/transport" in text or "gloo/rendezvous" in text
    return isinstance(error, dist.DistError) or (gloo and "enforce fail" not in text)


def _first_line(error: RuntimeError) -> str:
    """The message without the leading location in torch's sources, and without its advice."""
    line = str(error).strip().partition("\n")[0]
    if line.startswith("["):
        line = line.partition("] ")[2] or line
    return line.partition(". This is typically")[0]


def agree(world: World, facts: Mapping[str, str], fault: Exception | None = None) -> None:
    """Return if ``facts`` are the same on every rank. A collective: all ranks call it.

    Args:
        facts: Values by the name an error shows; the error names the first that differs.
        fault: The error of a rank that has no facts because of it, such as a wrong command line.

    Raises:
        UsageError: On rank 0, if they are not, with the rank, the fact and both values.
        SystemExit: On the others then, with the same exit code.
    """
    if world.size == 1:
        return
    of_first: dict[str, str] = json.loads(world.broadcast_text(json.dumps(dict(facts))))
    with world.together():
        if fault is not None:
            raise fault
        for name in {**of_first, **facts} if of_first else ():
            here, there = facts.get(name, NOT_GIVEN), of_first.get(name, NOT_GIVEN)
            if here != there:
                raise UsageError(
                    f"{name} is {here}, on rank 0 it is {there}: start all ranks with the same "
                    "command, files and software versions."
                )
