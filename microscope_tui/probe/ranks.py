"""The processes that train together, and the sum of a logged step over all of them.

The sum is started without waiting, on a gloo group that nothing else uses, and read at the next
logged step: no collective of the trainer waits for one of the probe. A rank that does not count,
because another counts the same tokens or its probe has failed, takes part with zeros.

The ranks agree without a collective: each posts what it has in the store of the process group, and
a wait for the others is bounded and names the ranks that are late.
"""

import ctypes
import itertools
import logging
import pickle
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor, nn

_logger = logging.getLogger(__name__)
LIMIT_S = 60
"""Seconds that a rank waits for the others after ``attach``."""
EXIT_S = 5
"""The same where nothing follows: at the end of the program."""
ATTACH_S = 1800
"""Seconds that ``attach`` waits for the others; it names them after ``WORD_S``."""
WORD_S = 30
AGAIN_S = 300
"""Seconds until ``attach`` names them again."""
_POLL_S = 0.1
_SAME_TOKENS = ("tp", "tensor", "tensor_parallel", "tensor_model_parallel", "model")
"""Names of mesh dimensions along which ranks see the same tokens, or parts of the same sequence."""
_STOP = "stop"
"""Key in the store: why the ranks do not wait any more."""
_T = TypeVar("_T")
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
        self.limit_s: int | None = None
        """Instead of ``LIMIT_S``."""
        self._posts = 0
        self._posted: Any = None
        self._step = 0
        if self.size > 1:
            home: Any = dist.distributed_c10d
            store = home._get_default_store()
            self._store = home.PrefixStore(f"moe-microscope/{next(_numbers)}", store)
            self._store.set(str(self.rank), "0")

    def connect(self) -> None:
        """Make the group of the sums; every rank calls it at the end of ``attach``."""
        if self.size > 1:
            self._group = dist.new_group(backend="gloo")
            # The program ends without destroying it, which would wait for a pending sum.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._group))

    def counts(self, sees_part: bool) -> bool:
        """Whether the tokens of this rank count; ``sees_part``: routers see a part of them."""
        if self.given is not None:
            return self.given
        return self.tensor_rank == 0 or sees_part

    def start(self, vector: Tensor, step: int) -> Any:
        """Start to sum ``vector`` over all ranks, in place; ``finish`` takes what it returns."""
        if self.size > 1:
            self._reach(step)
            return dist.all_reduce(vector, group=self._group, async_op=True)

    def finish(self, work: Any) -> None:
        """Wait for the sum.

        ``RuntimeError``: it failed, or was not complete after ``LIMIT_S``; names the ranks behind.
        """

        def is_done() -> bool:
            try:
                work.wait(timedelta(seconds=1))
            except RuntimeError:
                if work.is_completed():
                    raise
                return False
            return True

        if self.size > 1:
            self._wait(is_done)

    def all_gather(self, own: _T) -> list[_T]:
        """``own`` of every rank; every rank calls it, in ``attach``.

        ``RuntimeError``: a rank did not in ``ATTACH_S``; a warning names it before.
        """
        self.post(own, 0)
        begin = time.monotonic()
        word_at = WORD_S
        while not self._is_posted():
            waited = time.monotonic() - begin
            if waited < word_at:
                continue
            word_at += AGAIN_S
            late = [n for n in range(self.size) if not self._store.check([self._key(n)])]
            names = ", ".join(map(str, late[:8]))
            text = f"attach has waited {waited:.0f} s for rank {names}: call it on every rank"
            if waited > ATTACH_S:
                raise RuntimeError(text)
            if all(rank in late for rank in range(self.rank)):  # the first of those that wait
                _logger.warning("%s", text)
        return self._everyone()

    def post(self, own: Any, step: int) -> None:
        """Send ``own`` to all ranks without waiting for any; every rank posts at the same steps."""
        self._posted = own
        if self.size == 1:
            return
        self._reach(step)
        self._posts += 1
        sent = zlib.compress(pickle.dumps(own))
        mark = f"{zlib.crc32(sent)}"
        if not self._store.check([mark]):  # mostly the same on many ranks
            self._store.set(mark, sent)
        self._store.set(self._key(self.rank), mark)
        if self._store.add(self._key("ranks"), 1) == self.size:
            self._store.set(self._key("all"), "")

    def collect(self) -> list[Any]:
        """What every rank has posted.

        ``RuntimeError``: a rank had not after ``LIMIT_S``; names the ranks behind.
        """
        if self.size > 1:
            self._wait(self._is_posted)
        return self._everyone()

    def _reach(self, step: int) -> None:
        self._step = step
        self._store.set(str(self.rank), str(step))

    def _wait(self, is_done: Callable[[], bool]) -> None:
        """Until ``is_done``; gives up after ``LIMIT_S``, or with the first rank that does."""
        until = time.monotonic() + (self.limit_s or LIMIT_S)
        while not is_done():
            if self._store.check([_STOP]):
                raise RuntimeError(self._store.get(_STOP).decode())
            if time.monotonic() > until:
                self._store.set(_STOP, self._behind())

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
        self._group = None

    def _behind(self) -> str:
        step = self._step
        steps = [int(self._store.get(str(rank))) for rank in range(self.size)]
        behind = [f"rank {rank} (step {own})" for rank, own in enumerate(steps) if own < step]
        return (
            f"step {step} is not summed after {self.limit_s or LIMIT_S} s, these ranks are behind: "
            f"{', '.join(behind[:8]) or 'none'}; call probe.step on every rank, every step"
        )

    def _key(self, name: object) -> str:
        return f"post {self._posts}: {name}"

    def _is_posted(self) -> bool:
        """By all ranks; if not, a little later."""
        if self.size == 1 or self._store.check([self._key("all")]):
            return True
        time.sleep(_POLL_S)
        return False

    def _everyone(self) -> list[Any]:
        if self.size == 1:
            return [self._posted]
        marks = self._store.multi_get([self._key(rank) for rank in range(self.size)])
        read = {
            mark: pickle.loads(zlib.decompress(self._store.get(mark.decode())))
            for mark in dict.fromkeys(marks)
        }
        return [read[mark] for mark in marks]


def along(modules: Iterable[nn.Module], names: Sequence[str]) -> tuple[int, int]:
    """Number of this rank in a mesh dimension of one of these names, and the size of that."""
    for parameter in (one for module in modules for one in module.parameters()):
        mesh: Any = getattr(parameter, "device_mesh", None)
        for dimension, name in enumerate(getattr(mesh, "mesh_dim_names", None) or ()):
            if name in names and mesh.size(dimension) > 1:
                return mesh.get_local_rank(dimension), mesh.size(dimension)
    return 0, 1
