"""Rows to the ranks that hold their experts, and back: expert parallelism.

Every rank of a group holds as many experts as the others, in order, and has tokens of its own.
Rows sorted by expert are sorted by rank too, so one exchange takes them there, and another one
their outputs back. Each of them runs backward too: **every rank takes part in all four**, also with
zero rows, or the others wait for it.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

Sizes = tuple[list[int], list[int]]
"""Rows that this rank sends to each rank, and receives from each."""


def arriving(rows_E: Tensor, group: dist.ProcessGroup) -> tuple[Sizes, Tensor]:
    """What an exchange will bring to this rank. A collective; the host waits once.

    Args:
        rows_E: This rank's rows for each expert of all ranks, in the order of the experts.

    Returns:
        The sizes of the exchange, and the expert of every row that arrives, counted from this
        rank's first.
    """
    ranks = group.size()
    theirs_E = torch.empty_like(rows_E)
    dist.all_to_all_single(theirs_E, rows_E, group=group)
    both = torch.stack((rows_E, theirs_E)).view(2, ranks, -1)
    sent, received = both.sum(dim=-1).tolist()
    expert_E = torch.arange(len(rows_E) // ranks, device=rows_E.device).repeat(ranks)
    return (sent, received), expert_E.repeat_interleave(theirs_E, output_size=sum(received))


def exchange(rows_PX: Tensor, sizes: Sizes, group: dist.ProcessGroup) -> Tensor:
    """The rows for this rank, those of the first rank first; differentiable. A collective.

    Args:
        rows_PX: This rank's rows, those for the first rank first.
        sizes: From :func:`arriving`, or those reversed for the way back.
    """
    return _Exchange.apply(rows_PX, *sizes, group)  # type: ignore[no-untyped-call, no-any-return]


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows_PX: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup
    ) -> Tensor:
        ctx.back = (received, sent, group)
        return _moved(rows_PX, sent, received, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _moved(grad, *ctx.back), None, None, None


def _moved(
    rows_PX: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup
) -> Tensor:
    arrived = rows_PX.new_empty(sum(received), *rows_PX.shape[1:])
    dist.all_to_all_single(arrived, rows_PX.contiguous(), received, sent, group=group)
    return arrived
