"""The routed experts as two stacked matrices.

Token-expert pairs are sorted by expert once, every expert then sees one contiguous block of rows
(one grouped product for all, or one expert after the other where that is faster), and the results
are summed over k. The weight of a pair multiplies the hidden activations, which equals multiplying
the output and touches less memory. The time does not depend on the skew of the router, except where
ranks share the experts: they wait for the busiest rank.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from moe_model.config import ModelConfig
from moe_model.exchange import arriving, exchange
from moe_model.fused import combine, compute_dtype, dispatch, experts_in_turn, feed_forward, swiglu

_HALF_DTYPES = (torch.bfloat16, torch.float16)
_GROUPED_DTYPES = (torch.float32, *_HALF_DTYPES)
_BLOCK_ON_CPU = 64
"""Half-precision products on a CPU build a kernel per shape, and the rows of an expert change every
step: rounded up to 64 there are few shapes. Measured: 200 ms a step of the tiny preset, not 390."""

_ENOUGH_ROWS = 256
"""Rows per expert from which on it is faster, on a CPU in fp32, to run one expert after the other.
Measured over three shapes: at 128 rows the grouped product takes 0.90 to 0.99 of the time, at 512
it takes 1.00 to 1.19; in bf16 0.88 to 0.98 even there."""


class FeedForward(nn.Module):
    """SwiGLU: ``down(silu(gate(x)) · up(x))`` (Shazeer, 2020). Dense layers and shared experts."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, width, bias=False)
        self.up_proj = nn.Linear(hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape ``(…, D)``; under autocast the result has its format."""
        dtype = compute_dtype(x)
        projections = (self.gate_proj, self.up_proj, self.down_proj)
        x_TD = x.to(dtype).reshape(-1, x.shape[-1])
        y_TD = feed_forward(x_TD, *(projection.weight.to(dtype) for projection in projections))
        return y_TD.view(x.shape)


class Experts(nn.Module):
    """E SwiGLU experts of width F."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        E, D, width = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(E, 2 * width, D))
        """Rows of one expert: F of the gate, then F of up, as Hugging Face keeps them in memory."""
        self.down_proj = nn.Parameter(torch.empty(E, D, width))
        nn.init.normal_(self.gate_up_proj, std=config.initializer_range)
        nn.init.normal_(self.down_proj, std=config.initializer_range)
        self.again = False
        """Another pass comes before the weights change."""
        self._cast: list[Tensor] = []
        self.group: dist.ProcessGroup | None = None
        """The ranks that share the experts; the parameters are then DTensors over them."""

    def forward(self, x_TD: Tensor, expert_ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """Weighted sum of the chosen experts' outputs, ``(T, D)`` in the dtype of ``x_TD``.

        With :attr:`group` all ranks of the group must call this, also those without tokens.

        Args:
            expert_ids_TK: The experts of each token, counted over all ranks.
            weights_TK: What the output of each is multiplied with.
        """
        dtype = compute_dtype(x_TD)  # grouped_mm ignores autocast
        outputs = self._outputs if self.group is None else self._outputs_of_all_ranks
        return outputs(x_TD.to(dtype), expert_ids_TK, weights_TK).to(x_TD.dtype)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _outputs_of_all_ranks(self, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        assert self.group is not None
        experts = len(self.gate_up_proj)
        rows_E, token_P, place_TK, weight_P1 = _sort_by_expert(ids_TK, weights_TK, experts, block=1)
        x_PD = dispatch(x_TD, token_P, place_TK)
        sizes, expert_Q = arriving(rows_E, self.group)
        # The weight travels with its row, in the format in which it multiplies.
        rows_Q = exchange(torch.cat((x_PD, weight_P1.to(x_TD.dtype)), dim=-1), sizes, self.group)
        x_QD, weight_Q1 = torch.split(rows_Q, [x_TD.shape[-1], 1], dim=-1)
        y_QD = self._outputs(x_QD, expert_Q.unsqueeze(-1), weight_Q1)
        return combine(exchange(y_QD, sizes[::-1], self.group), token_P, place_TK)

    def _outputs(self, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """As :meth:`forward`, by the experts of this rank, in the dtype of ``x_TD``."""
        weights: list[Any] = self._cast or [self.gate_up_proj, self.down_proj]
        if self.group is not None:
            weights = [weight.to_local() for weight in weights]
        gate_up_EFD, down_EDF = (weight.to(x_TD.dtype) for weight in weights)
        self._cast = [gate_up_EFD, down_EDF] if self.again else []
        # Only the host knows the number of padded rows: a compiled graph would break here.
        padded = x_TD.device.type == "cpu" and x_TD.dtype in _HALF_DTYPES
        block = _BLOCK_ON_CPU if padded and not torch.compiler.is_compiling() else 1
        experts = len(gate_up_EFD)
        rows_E, token_P, place_TK, weight_P1 = _sort_by_expert(ids_TK, weights_TK, experts, block)
        x_PD = dispatch(x_TD, token_P, place_TK)
        if _grouped_is_better(x_PD, gate_up_EFD, down_EDF):
            y_PD = _grouped_experts(x_PD, weight_P1, rows_E, gate_up_EFD, down_EDF)
        else:
            y_PD = experts_in_turn(x_PD, weight_P1, rows_E, gate_up_EFD, down_EDF)
        return combine(y_PD, token_P, place_TK)


def _sort_by_expert(
    ids_TK: Tensor, weights_TK: Tensor, num_experts: int, block: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where each (token, expert) pair goes, so that every expert owns a contiguous range of rows.

    Args:
        block: Round each expert's rows up to a multiple of this. The extra rows hold some token,
            with weight zero.

    Returns:
        Rows per expert ``(E,)``; the token in each of the P rows; the row of each pair ``(T, K)``;
        the weight of each row ``(P, 1)``.
    """
    ids_N = ids_TK.flatten()
    sorted_N, order_N = ids_N.sort(stable=True)
    pairs_E = ids_N.new_zeros(num_experts).scatter_add_(0, ids_N, torch.ones_like(ids_N))
    rows_E = (pairs_E + block - 1) // block * block
    padding_before_E = (rows_E - pairs_E).cumsum(0) - (rows_E - pairs_E)
    place_N = torch.arange(len(ids_N), device=ids_N.device) + padding_before_E[sorted_N]
    num_rows = len(ids_N) if block == 1 else int(rows_E.sum())
    token_P = ids_N.new_zeros(num_rows).scatter_(0, place_N, order_N // ids_TK.shape[1])
    place_of_N = torch.empty_like(place_N).scatter_(0, order_N, place_N)
    weight_P = weights_TK.new_zeros(num_rows).scatter(0, place_of_N, weights_TK.flatten())
    return rows_E, token_P, place_of_N.view_as(ids_TK), weight_P.unsqueeze(-1)


def _grouped_is_better(x_PD: Tensor, *weights_EXX: Tensor) -> bool:
    """Whether one grouped product for all experts is possible and faster.

    ``F.grouped_mm`` rejects fp64, no rows at all, rows that are not a multiple of 16 bytes, and all
    but bf16 when compiled. On a GPU it is one kernel in bf16 on compute capability 9 (H100) and
    10, where experts without rows get a wrong gradient (pytorch 172439); elsewhere it waits for the
    row counts in each product, :func:`experts_in_turn` once. On a CPU in fp32 many rows of one
    expert after the other are faster: 4 to 8 % of a step.
    """
    if x_PD.dtype not in _GROUPED_DTYPES or not len(x_PD):
        return False
    if x_PD.dtype != torch.bfloat16 and torch.compiler.is_compiling():
        return False
    if not all(w.shape[-1] * w.element_size() % 16 == 0 for w in weights_EXX):
        return False
    if x_PD.device.type == "cuda":
        capability = torch.cuda.get_device_capability(x_PD.device)
        return x_PD.dtype == torch.bfloat16 and capability[0] == 9
    if x_PD.dtype != torch.float32:
        return True
    return len(x_PD) < _ENOUGH_ROWS * len(weights_EXX[0])


def _grouped_experts(
    x_PD: Tensor, weight_P1: Tensor, rows_E: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor
) -> Tensor:
    ends_E = rows_E.cumsum(0).to(torch.int32)
    gate_up = F.grouped_mm(x_PD, gate_up_EFD.transpose(1, 2), offs=ends_E)
    return F.grouped_mm(swiglu(gate_up, weight_P1), down_EDF.transpose(1, 2), offs=ends_E)
