"""The routed experts as two stacked matrices, run with one grouped matrix product each.

Token-expert pairs are sorted by expert once, every expert then sees one contiguous block of rows,
and the results are put back and summed over k. No mask per expert, no capacity, no token dropped;
the time does not depend on how skewed the router is.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_model.config import ModelConfig

_HALF_DTYPES = (torch.bfloat16, torch.float16)
_GROUPED_DTYPES = (torch.float32, *_HALF_DTYPES)
_BLOCK_ON_CPU = 64
"""Half-precision products on a CPU build a kernel per shape, and the rows of an expert change every
step: rounded up to 64 there are few shapes. Measured: 200 ms a step of the tiny preset, not 390."""


class FeedForward(nn.Module):
    """SwiGLU: ``down(silu(gate(x)) · up(x))`` (Shazeer, 2020). Dense layers and shared experts."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, width, bias=False)
        self.up_proj = nn.Linear(hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


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

    def forward(self, x_TD: Tensor, expert_ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """Weighted sum of the chosen experts' outputs, ``(T, D)`` in the dtype of ``x_TD``."""
        dtype = _compute_dtype(x_TD)
        gate_up_EFD, down_EDF = self.gate_up_proj.to(dtype), self.down_proj.to(dtype)
        block = _BLOCK_ON_CPU if x_TD.device.type == "cpu" and dtype in _HALF_DTYPES else 1
        rows_E, token_P, place_TK = _sort_by_expert(expert_ids_TK, len(gate_up_EFD), block)

        x_PD: Tensor = _Dispatch.apply(x_TD.to(dtype), token_P, place_TK)  # type: ignore[no-untyped-call]
        if _grouped_mm_fits(x_PD, gate_up_EFD, down_EDF):
            y_PD = _grouped_experts(x_PD, rows_E, gate_up_EFD, down_EDF)
        else:
            y_PD = _looped_experts(x_PD, rows_E, gate_up_EFD, down_EDF)
        y_TKD: Tensor = _Combine.apply(y_PD, place_TK)  # type: ignore[no-untyped-call]
        return (y_TKD * weights_TK.to(dtype).unsqueeze(-1)).sum(dim=1).to(x_TD.dtype)


def _sort_by_expert(ids_TK: Tensor, num_experts: int, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where each (token, expert) pair goes, so that every expert owns a contiguous range of rows.

    Args:
        ids_TK: Chosen experts.
        num_experts: E.
        block: Round each expert's rows up to a multiple of this. The extra rows hold some token,
        their
            output is read by nobody, and so their gradient is zero.

    Returns:
        Rows per expert ``(E,)``; the token in each of the P rows; the row of each pair ``(T, K)``.
    """
    ids_N = ids_TK.flatten()
    sorted_N, order_N = ids_N.sort(stable=True)
    pairs_E = ids_N.new_zeros(num_experts).scatter_add_(0, ids_N, torch.ones_like(ids_N))
    rows_E = (pairs_E + block - 1) // block * block
    padding_before_E = (rows_E - pairs_E).cumsum(0) - (rows_E - pairs_E)
    place_N = torch.arange(len(ids_N), device=ids_N.device) + padding_before_E[sorted_N]
    num_rows = len(ids_N) if block == 1 else int(rows_E.sum())
    token_P = ids_N.new_zeros(num_rows).scatter_(0, place_N, order_N // ids_TK.shape[1])
    place_TK = torch.empty_like(place_N).scatter_(0, order_N, place_N).view_as(ids_TK)
    return rows_E, token_P, place_TK


class _Dispatch(torch.autograd.Function):
    """Copy tokens to the rows of their experts.

    Autograd's own gradient of indexing is a scatter-add: slow, and not deterministic on a GPU. But
    every token knows its K rows, so the gradient is a gather and a sum over K.
    """

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, token_P: Tensor, place_TK: Tensor) -> Tensor:
        ctx.save_for_backward(place_TK)
        return x_TD[token_P]

    @staticmethod
    def backward(ctx: Any, grad_PD: Tensor) -> tuple[Tensor, None, None]:
        (place_TK,) = ctx.saved_tensors
        return grad_PD[place_TK].sum(dim=1), None, None


class _Combine(torch.autograd.Function):
    """Fetch the K rows of every token; no row is fetched twice, so the gradient is a plain copy."""

    @staticmethod
    def forward(ctx: Any, y_PD: Tensor, place_TK: Tensor) -> Tensor:
        ctx.save_for_backward(place_TK)
        ctx.num_rows = len(y_PD)
        return y_PD[place_TK]

    @staticmethod
    def backward(ctx: Any, grad_TKD: Tensor) -> tuple[Tensor, None]:
        (place_TK,) = ctx.saved_tensors
        grad_PD = grad_TKD.new_zeros(ctx.num_rows, grad_TKD.shape[-1])
        grad_PD[place_TK.flatten()] = grad_TKD.flatten(0, 1)
        return grad_PD, None


def _compute_dtype(x: Tensor) -> torch.dtype:
    """The autocast dtype where autocast is on: ``grouped_mm`` does not know autocast itself."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def _grouped_mm_fits(x: Tensor, *weights_EXX: Tensor) -> bool:
    """``F.grouped_mm`` refuses fp64, rows of no multiple of 16 bytes, and fp32 when compiled."""
    if x.dtype not in _GROUPED_DTYPES:
        return False
    if x.dtype == torch.float32 and torch.compiler.is_compiling():
        return False
    return all(w.shape[-1] * w.element_size() % 16 == 0 for w in weights_EXX)


def _grouped_experts(x_PD: Tensor, rows_E: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor) -> Tensor:
    ends_E = rows_E.cumsum(0).to(torch.int32)
    gate, up = F.grouped_mm(x_PD, gate_up_EFD.transpose(1, 2), offs=ends_E).chunk(2, dim=-1)
    return F.grouped_mm(F.silu(gate) * up, down_EDF.transpose(1, 2), offs=ends_E)


def _looped_experts(x_PD: Tensor, rows_E: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor) -> Tensor:
    # unbind once: W[e] inside the loop would build a full-size zero gradient per expert.
    blocks = torch.split(x_PD, rows_E.tolist())
    outputs = []
    for x_ND, gate_up_FD, down_DF in zip(
        blocks, gate_up_EFD.unbind(), down_EDF.unbind(), strict=True
    ):
        gate, up = F.linear(x_ND, gate_up_FD).chunk(2, dim=-1)
        outputs.append(F.linear(F.silu(gate) * up, down_DF))
    return torch.cat(outputs)
