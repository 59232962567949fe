"""Processes that train one model together: who is who, what they tell each other, how one is lost.

All ranks do the same steps in the same order, and decide alike because they decide from the same
numbers. So there is little to tell: a sum once a step, some bytes of rank 0 at the start, and what
one of them finds wrong. Whatever goes between ranks is tensors; nothing is pickled here.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from moe_model.command import FAILED, USAGE, UsageError, say
from moe_model.training.launch import launched, number_of, own_gpu

TIMEOUT_S = 600.0
"""How long a rank waits in a step for the others before it gives them up, in seconds."""
_WITHOUT_LIMIT = timedelta(days=365)
"""gloo wants a number; a rank that dies breaks its connections, which ends the others at once."""
_CPU = torch.device("cpu")


class RankLostError(RuntimeError):
    """Another process of the training failed, died or hangs; says what failed and what to do."""


@dataclass(frozen=True, slots=True)
class World:
    """The processes of one training, seen from one of them; as it is, a process on its own."""

    rank: int = 0
    """Which process this is, from 0."""
    size: int = 1
    """How many there are on all machines."""
    local_rank: int = 0
    """Which process of this machine this is: which GPU it takes."""
    device: torch.device = _CPU
    """Where this process computes; on a machine with several GPUs, its own."""
    patient: dist.ProcessGroup | None = None
    """All ranks over gloo, for waiting without a limit; none where this process is alone."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes the log, narrates and decides."""
        return self.rank == 0

    def say(self, line: str) -> None:
        """One line of narration, from the first rank alone: all of them would say it."""
        if self.is_main:
            say(f"train.py: {line}")

    def sum(self, tensor: Tensor) -> None:
        """Replace ``tensor`` by its sum over all ranks, the same bits on each of them."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def any(self, here: bool) -> bool:
        """Whether it is so on any rank: all get the same answer."""
        if self.size == 1:
            return here
        votes = torch.tensor(int(here), device=self.device)
        self.sum(votes)
        return bool(votes)

    def barrier(self) -> None:
        """Return once every rank has come this far, however long its own work takes.

        A rank that dies ends the others at once. One that hangs cannot be told from one that works.
        """
        if self.size > 1:
            dist.barrier(group=self.patient)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Rank 0 goes through the block before the others: it downloads, they find the file.

        A fault is one of all ranks, as in :meth:`together`; where rank 0 finds one, the others do
        not enter the block.
        """
        if not self.is_main:
            self.share_fault(None)
        with self.together():
            yield
        if self.is_main:
            self.share_fault(None)

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that no rank leaves well unless all do; see :meth:`share_fault`.

        All ranks enter it. What they tell each other inside comes before anything that can fail.
        """
        fault = None
        try:
            yield
        except Exception as error:
            if isinstance(error, RuntimeError) and _from_the_wire(error):
                raise  # nobody is left to tell
            fault = error
        self.share_fault(fault)

    def share_fault(self, fault: Exception | None) -> None:
        """End all ranks where one found a fault; return where nobody did. All ranks ask.

        Ranks wait here without a limit: what one of them does alone (a download, byte pairs, a
        checkpoint that is read) may take hours.

        One voice: rank 0 raises the fault, wherever it was found (of several that of the lowest
        rank), the others end without a word. A rank that found another one, or one that rank 0
        has only the words of, raises its own too.

        Args:
            fault: What this rank found.

        Raises:
            UsageError: On rank 0, if it is one, with the number of the rank that found it.
            RankLostError: On rank 0, if it is anything else and another rank found it.
            SystemExit: On the other ranks, with the code that rank 0 ends with.
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
        votes = votes_R.tolist()
        if not any(votes):
            return
        first = next(rank for rank, vote in enumerate(votes) if vote)
        is_usage = votes[first] == 2
        words = "" if fault is None else str(fault) or type(fault).__name__
        own = words.encode("utf-8", "backslashreplace")  # a path may hold bytes that are no text
        said = self.broadcast(own, src=first)
        if fault is not None and self.is_main:
            raise fault
        if self.is_main:
            kind = UsageError if is_usage else RankLostError
            raise kind(f"rank {first} of {self.size}: {said.decode('utf-8')}")
        if fault is not None and (own != said or (first and not is_usage)):
            raise fault
        raise SystemExit(USAGE if is_usage else FAILED) from fault

    def broadcast(self, payload: bytes, src: int = 0) -> bytes:
        """What rank ``src`` passes in; what the others pass in is ignored."""
        if self.size == 1:
            return payload
        length = torch.tensor(len(payload), device=self.device)
        dist.broadcast(length, src=src)
        contents = torch.zeros(int(length), dtype=torch.uint8, device=self.device)
        if self.rank == src and payload:
            contents.copy_(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
        dist.broadcast(contents, src=src)
        return bytes(contents.tolist())

    def broadcast_text(self, text: str) -> str:
        """What rank 0 passes in."""
        return self.broadcast(text.encode("utf-8")).decode("utf-8")


ALONE = World()
"""A process that nobody launched as one of several, on the CPU."""


@contextmanager
def join_world(device: torch.device, timeout_s: float = TIMEOUT_S) -> Iterator[World]:
    """Meet the other ranks, and part from them at the end: gloo on a CPU, NCCL on GPUs.

    A process that was started by hand is a world of its own, without any connection. An error must
    leave through here: after one, NCCL could wait for ever for the ranks that are gone, and so its
    connections are left to the end of the process.

    Args:
        device: ``cpu``, or ``cuda``, of which every process of a machine takes another one.
        timeout_s: A rank that waits longer than this for another one ends; at
            :meth:`World.barrier` it waits without a limit.

    Raises:
        UsageError: If the environment describes no world, or a machine has too few GPUs.
        RankLostError: If the others do not come.
    """
    if not launched():
        yield World(device=device)
        return
    rank, size, local_rank = (number_of(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    cuda = device.type == "cuda"
    if cuda:
        device = own_gpu(local_rank)
    backend, timeout = "nccl" if cuda else "gloo", timedelta(seconds=timeout_s)
    try:
        with _ended_by_signals():
            dist.init_process_group(backend, timeout=timeout, device_id=device if cuda else None)
            patient = dist.new_group(backend="gloo", timeout=_WITHOUT_LIMIT)
    except dist.DistError as error:
        where = [f"{name}={os.environ.get(name)}" for name in ("MASTER_ADDR", "MASTER_PORT")]
        raise RankLostError(
            f"rank {rank} of {size}: the ranks do not meet at {' '.join(where)} "
            f"({_first_line(error)}): start all of them, where rank 0 can be reached by that name."
        ) from error
    except ValueError as error:
        raise UsageError(
            f"RANK={rank} and WORLD_SIZE={size} are set, but the ranks cannot meet ({error}): "
            "start with torchrun, or set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT."
        ) from error
    ended_well = False
    try:
        yield World(rank, size, local_rank, device, patient)
        ended_well = True
    finally:
        if ended_well or not cuda:
            dist.destroy_process_group()


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """While ranks wait to meet, inside torch, no handler of Python runs; nothing is to be saved."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, signal.SIG_DFL) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def lost_ranks() -> Iterator[None]:
    """Name the error that torch raises when another rank died or hangs, and no other one.

    Raises:
        RankLostError: In place of what a collective raised that found nobody at the other end.
    """
    try:
        yield
    except RuntimeError as error:
        if not _from_the_wire(error):
            raise
        who = "this rank"
        if dist.is_initialized():
            who = f"rank {dist.get_rank()} of {dist.get_world_size()}"
        raise RankLostError(
            f"{who}: another rank no longer answers ({_first_line(error)}): look at its output "
            "above, or at its log; start again with --resume auto."
        ) from error


def _from_the_wire(error: RuntimeError) -> bool:
    """Whether a connection broke or stayed silent; gloo raises a plain ``RuntimeError`` for it.

    What gloo enforces about sizes is a fault of this program, wherever it finds it.
    """
    text = str(error)
    gloo = "gloo/transport" in text or "gloo/rendezvous" in text
    return isinstance(error, dist.DistError) or (gloo and "enforce fail" not in text)


def _first_line(error: RuntimeError) -> str:
    """The message without the place in torch's sources that it begins with, and its advice."""
    line = str(error).strip().partition("\n")[0]
    if line.startswith("["):
        line = line.partition("] ")[2] or line
    return line.partition(". This is typically")[0]
