"""The processes that train together, and the sum of a logged step over all of them.

The sum is started without waiting, on a gloo group that nothing else uses, and read at the next
logged step: no collective of the trainer waits for one of the probe. A rank that does not count,
because another counts the same tokens or its probe has failed, takes part with zeros.
"""

from __future__ import annotations

import ctypes
import itertools
import logging
import pickle
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor, nn

LIMIT_S = 60
"""Seconds that a rank waits for the others."""
EXIT_S = 5
"""The same where nothing follows: at the end of the program."""
_SAME_TOKENS = ("tp", "tensor", "tensor_parallel", "tensor_model_parallel", "model")
"""Names of mesh dimensions along which ranks see the same tokens, or parts of the same sequence."""
_STOP = "stop"
"""Key in the store: why the ranks do not wait any more."""
_T = TypeVar("_T")
_logger = logging.getLogger(__name__)
_numbers = itertools.count()


class Ranks:
    """The processes of the training; a single one without a process group."""

    def __init__(self, modules: Sequence[nn.Module], counts: bool | None = None) -> None:
        """``counts``: whether the tokens of this rank count; ``None``: found out."""
        together = dist.is_available() and dist.is_initialized()
        self.size = dist.get_world_size() if together else 1
        self.rank = dist.get_rank() if together else 0
        self.tensor_rank, self.tensor_size = along(modules, _SAME_TOKENS)
        self.given = counts
        self.counting = 1
        """Ranks that count, if no router sees only a part of a sequence."""
        self._group: Any = None
        self._work: Any = None
        self.limit_s: int | None = None
        """Instead of ``LIMIT_S``."""
        if self.size > 1:
            self._group = dist.new_group(backend="gloo")
            # The program ends without destroying it, which would wait for a pending sum.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._group))
            home: Any = dist.distributed_c10d
            store = home._get_default_store()
            self._store = home.PrefixStore(f"moe-microscope/{next(_numbers)}", store)
            self._store.set(str(self.rank), "0")

    def counts(self, sees_part: bool) -> bool:
        """Whether the tokens of this rank count; ``sees_part``: routers see a part of them."""
        return self.tensor_rank == 0 or sees_part if self.given is None else self.given

    def start(self, vector: Tensor, step: int) -> None:
        """Start to sum ``vector`` over all ranks, in place."""
        if self.size > 1:
            self._step = step
            self._store.set(str(self.rank), str(step))
            self._work = dist.all_reduce(vector, group=self._group, async_op=True)

    def finish(self) -> None:
        """Wait for the sum.

        ``RuntimeError``: it failed, or was not complete after ``LIMIT_S``; names the ranks behind.
        """
        if self.size == 1:
            return
        for _ in range(self.limit_s or LIMIT_S):
            try:
                self._work.wait(timedelta(seconds=1))
                return
            except RuntimeError:
                if self._work.is_completed():
                    raise
            if self._store.check([_STOP]):
                break
        else:
            self._store.set(_STOP, self._behind())
        raise RuntimeError(self._store.get(_STOP).decode())

    def give_back(self) -> None:
        """End the group of the sums, once all ranks have read the last one; after ``EXIT_S`` it is
        left. Not to be called while a sum is pending: its end would wait for that."""
        if self.size == 1:
            return
        try:
            if self._store.add("read", 1) == self.size:
                self._store.set("all have read", "")
            self._store.wait(["all have read"], timedelta(seconds=EXIT_S))
        except RuntimeError as error:
            _logger.info("the gloo group of the probe is left: %s", error)
            return
        with suppress(ValueError):  # the program has destroyed all groups
            dist.destroy_process_group(self._group)
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(self._group))
        self._group = self._work = None

    def _behind(self) -> str:
        step = self._step
        steps = [int(self._store.get(str(rank))) for rank in range(self.size)]
        behind = [f"rank {rank} (step {own})" for rank, own in enumerate(steps) if own < step]
        return (
            f"step {step} is not summed after {self.limit_s or LIMIT_S} s, these ranks are behind: "
            f"{', '.join(behind[:8]) or 'none'}; call probe.step on every rank, every step"
        )

    def all_gather(self, own: _T) -> list[_T]:
        """``own`` of every rank; every rank must call it. What is the same is sent once."""
        if self.size == 1:
            return [own]
        marks = self._exchange(zlib.crc32(pickle.dumps(own)))
        is_first = marks.index(marks[self.rank]) == self.rank
        sent = self._exchange(own if is_first else None)
        return [sent[marks.index(mark)] for mark in marks]

    def _exchange(self, own: Any) -> list[Any]:
        everyone = [None] * self.size
        dist.all_gather_object(everyone, own, group=self._group)
        return everyone


def along(modules: Iterable[nn.Module], names: Sequence[str]) -> tuple[int, int]:
    """Number of this rank in a mesh dimension of one of these names, and the size of that."""
    for parameter in (one for module in modules for one in module.parameters()):
        mesh: Any = getattr(parameter, "device_mesh", None)
        for dimension, name in enumerate(getattr(mesh, "mesh_dim_names", None) or ()):
            if name in names and mesh.size(dimension) > 1:
                return mesh.get_local_rank(dimension), mesh.size(dimension)
    return 0, 1
