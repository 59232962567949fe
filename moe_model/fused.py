"""Functions with a hand-written backward pass, where autograd would make many passes over memory.

Matrix products take about 60 % of a training step on a CPU; most of the rest is small operations
on the same activations. Each function here does one group of them in as few passes as torch's
operators allow, and keeps only what the backward pass needs.
``torch.compile`` runs the plain function that :func:`_by` replaces, with which the tests compare.
"""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LONGEST_BLOCKWISE = {"training": 512, "half precision": 2048}
"""Tokens up to which attention in blocks is faster than torch's own on a CPU: while training, whose
backward pass computes everything again, and in half precision."""
BLOCK = 64
ROWS_AT_A_TIME = 512
"""Tokens whose hidden activations stay in the cache of a core from one product to the next."""


Plain = TypeVar("Plain", bound=Callable[..., Any])


def _by(function: Any, cpu_only: bool = False) -> Callable[[Plain], Plain]:
    """Compute a plain function by ``function``, except under ``torch.compile``."""

    def replace(plain: Plain) -> Any:
        @wraps(plain)
        def call(*inputs: Any) -> Any:
            if torch.compiler.is_compiling() or (cpu_only and inputs[0].device.type != "cpu"):
                return plain(*inputs)
            return function.apply(*inputs)

        return call

    return replace


class RMSNorm(nn.Module):
    """Returns the dtype of ``x``; under autocast the one that the next product needs."""

    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps, compute_dtype(x))


def compute_dtype(x: Tensor) -> torch.dtype:
    """The autocast dtype where autocast is on, else that of ``x``."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return torch.mul(x, scale).mul_(weight.to(wide)).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        wide = weight.to(scale.dtype)
        # With s = scale: grad_x = s · grad · w − x · s² · mean(s · grad · w · x)
        grad_x = torch.mul(grad, scale)
        product = torch.mul(grad_x, x)
        grad_weight = product.reshape(-1, x.shape[-1]).sum(dim=0)
        with torch.autocast(x.device.type, enabled=False):  # a product with a vector, but in fp32
            mean = (product @ wide).unsqueeze(-1).div_(-x.shape[-1]).mul_(scale).mul_(scale)
        grad_x = grad_x.mul_(wide).addcmul_(x, mean)
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), None, None


@_by(_RMSNorm, cpu_only=True)  # a GPU has one kernel
def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """``x · rsqrt(mean(x²) + eps) · weight`` over the last dimension, in fp32 or better."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.rms_norm(x.to(wide), weight.shape, weight.to(wide), eps).to(dtype)


class _QueriesWithPosition(torch.autograd.Function):
    """A rotation is a complex product; the gradient is rotated back by the conjugate."""

    @staticmethod
    def forward(ctx: Any, q_BSHd: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        turn_Sr = torch.complex(*table)
        ctx.save_for_backward(turn_Sr)
        return _turned_copy(q_BSHd.transpose(1, 2), turn_Sr)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHSd: Tensor) -> tuple[Tensor | None, ...]:
        (turn_Sr,) = ctx.saved_tensors
        back_S1r = turn_Sr.conj().unsqueeze(1)
        return _turned_copy(grad_BHSd.transpose(1, 2), back_S1r), None


@_by(_QueriesWithPosition)
def queries_with_position(q_BSHd: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the last part of every query by its position; heads first, ``(B, H, S, d)``.

    Args:
        q_BSHd: Queries whose last ``r`` dimensions are interleaved pairs.
        table: Cosine and sine ``(S, r / 2)``, see :func:`~moe_model.attention.rotary_table`.
    """
    rope = 2 * table[0].shape[-1]
    turned = rotate(q_BSHd[..., -rope:], table)
    return torch.cat((q_BSHd[..., :-rope], turned), dim=-1).transpose(1, 2)


class _KeysAndValues(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kv_BSHx: Tensor, k_rope_BSr: Tensor, table: tuple[Tensor, Tensor], v_dim: int
    ) -> tuple[Tensor, Tensor]:
        turn_Sr = torch.complex(*table)
        ctx.save_for_backward(turn_Sr)
        kv_BHSx = kv_BSHx.transpose(1, 2)
        k_nope, v_BHSv = kv_BHSx[..., :-v_dim], kv_BHSx[..., -v_dim:]
        k_BHSd = kv_BSHx.new_empty(*k_nope.shape[:3], k_nope.shape[3] + k_rope_BSr.shape[2])
        k_BHSd[..., : k_nope.shape[3]] = k_nope
        k_BHSd[..., k_nope.shape[3] :] = _turn(k_rope_BSr, turn_Sr).unsqueeze(1)
        return k_BHSd, v_BHSv.contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_k: Tensor, grad_v: Tensor) -> tuple[Tensor | None, ...]:
        (turn_Sr,) = ctx.saved_tensors
        rope = 2 * turn_Sr.shape[-1]
        B, H, S, d = grad_k.shape
        v_dim = grad_v.shape[-1]
        grad_kv = grad_k.new_empty(B, S, H, d - rope + v_dim)
        grad_kv[..., :-v_dim] = grad_k[..., :-rope].transpose(1, 2)
        grad_kv[..., -v_dim:] = grad_v.transpose(1, 2)
        grad_rope = _turn(grad_k[..., -rope:].sum(dim=1), turn_Sr.conj())
        return grad_kv, grad_rope.to(grad_k.dtype), None, None


@_by(_KeysAndValues)
def keys_and_values(
    kv_BSHx: Tensor, k_rope_BSr: Tensor, table: tuple[Tensor, Tensor], v_dim: int
) -> tuple[Tensor, Tensor]:
    """Keys of every head with the rotated part that all heads share, and values; heads first.

    Args:
        kv_BSHx: For every head its key without position, then its value.
        k_rope_BSr: The rotary key before rotation, in interleaved pairs.
        table: Cosine and sine ``(S, r / 2)``.
        v_dim: Width of a value.
    """
    k_nope, v_BSHv = kv_BSHx[..., :-v_dim], kv_BSHx[..., -v_dim:]
    turned = rotate(k_rope_BSr.unsqueeze(2), table).expand(*k_nope.shape[:3], -1)
    return torch.cat((k_nope, turned), dim=-1).transpose(1, 2), v_BSHv.transpose(1, 2)


def _turned_copy(x: Tensor, turn: Tensor) -> Tensor:
    rope = 2 * turn.shape[-1]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    y[..., :-rope] = x[..., :-rope]
    y[..., -rope:] = _turn(x[..., -rope:], turn)
    return y


def _turn(x: Tensor, turn: Tensor) -> Tensor:
    """Interleaved pairs times complex numbers, in the precision of the latter."""
    # Always a copy: a single token counts as contiguous at any offset, but a complex number needs
    # an even one.
    rows = x.to(turn.real.dtype, copy=True, memory_format=torch.contiguous_format)
    pairs = rows.view(*x.shape[:-1], x.shape[-1] // 2, 2)
    return torch.view_as_real(torch.view_as_complex(pairs) * turn).flatten(-2)


class _SwiGLU(torch.autograd.Function):
    """Keeps ``silu(gate)``, computed on a contiguous copy: on strided halves of rows, silu takes
    twice the time."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, weight_P1: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        silu = F.silu(gate.contiguous())
        ctx.save_for_backward(gate_up, silu, weight_P1)
        return (silu * up).mul_(weight_P1.to(up.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate_up, silu, weight_P1 = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        grad_weight = torch.linalg.vecdot(grad, silu * up).unsqueeze(-1).to(weight_P1.dtype)
        grad = grad * weight_P1.to(grad.dtype)
        grad_gate = torch.ops.aten.silu_backward(grad * up, gate.contiguous())
        return torch.cat((grad_gate, grad * silu), dim=-1), grad_weight


@_by(_SwiGLU)
def swiglu(gate_up: Tensor, weight_P1: Tensor) -> Tensor:
    """``silu(gate) · up`` times a weight per row (Shazeer, 2020).

    Args:
        gate_up: ``(P, 2F)``, F of the gate and F of up.
        weight_P1: Of each row, ``(P, 1)``.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up * weight_P1.to(up.dtype)


def dispatch(x_TD: Tensor, token_P: Tensor, place_TK: Tensor) -> Tensor:
    """Copy every token to its rows: ``x_TD[token_P]``.

    Autograd's own gradient of indexing is a scatter-add: slow, and not deterministic on a GPU. But
    every token has K rows that are known, so the gradient is a gather and a sum over K.

    Args:
        token_P: The token of each row.
        place_TK: The rows of each token; rows without a token pad an expert.
    """
    return _Rows.apply(x_TD, token_P, place_TK, False)  # type: ignore[no-untyped-call, no-any-return]


def combine(y_PD: Tensor, token_P: Tensor, place_TK: Tensor) -> Tensor:
    """Add up the rows of every token: the transpose of :func:`dispatch`.

    Rows that pad an expert get a gradient too. It ends at their weight, which is zero.
    """
    return _Rows.apply(y_PD, token_P, place_TK, True)  # type: ignore[no-untyped-call, no-any-return]


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, token_P: Tensor, place_TK: Tensor, back: bool) -> Tensor:
        ctx.save_for_backward(token_P, place_TK)
        ctx.back = back
        return _moved(x, token_P, place_TK, back)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        token_P, place_TK = ctx.saved_tensors
        return _moved(grad, token_P, place_TK, not ctx.back), None, None, None


def _moved(x: Tensor, token_P: Tensor, place_TK: Tensor, back: bool) -> Tensor:
    """From tokens to rows, or ``back``: the sum of the rows of each token."""
    if not back:
        return x.index_select(0, token_P)
    total_TD = x.index_select(0, place_TK[:, 0])
    for place_T in place_TK[:, 1:].unbind(dim=1):
        total_TD += x.index_select(0, place_T)
    return total_TD


@torch.compiler.disable  # type: ignore[untyped-decorator]
def experts_in_turn(
    x_PD: Tensor, weight_P1: Tensor, rows_E: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor
) -> Tensor:
    """One expert after the other, each from its first product to its last while it is in the cache.

    Not compiled: the row counts are other shapes in every step.

    Args:
        x_PD: Rows sorted by expert.
        weight_P1: What the output of each row is multiplied with.
        rows_E: Rows of each expert, in order; the host waits for them.
        gate_up_EFD: Gate and up of each expert, ``(E, 2F, D)``.
        down_EDF: Down of each expert.
    """
    return _ExpertsInTurn.apply(x_PD, weight_P1, rows_E.tolist(), gate_up_EFD, down_EDF)  # type: ignore[no-untyped-call, no-any-return]


class _ExpertsInTurn(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_PD: Tensor,
        weight_P1: Tensor,
        rows: list[int],
        gate_up_EFD: Tensor,
        down_EDF: Tensor,
    ) -> Tensor:
        y_PD = torch.empty_like(x_PD)
        hidden: list[Tensor] = []
        weight_P1 = weight_P1.to(x_PD.dtype)
        for block, gate_up_FD, down_DF in _in_turn(rows, gate_up_EFD, down_EDF):
            gate, up = (x_PD[block] @ weight_FD.t() for weight_FD in gate_up_FD.chunk(2))
            silu = F.silu(gate)
            y = torch.mul(silu, up).mul_(weight_P1[block])
            torch.mm(y, down_DF.t(), out=y_PD[block])
            hidden += [gate, up, silu, y]
        ctx.save_for_backward(x_PD, weight_P1, gate_up_EFD, down_EDF, *hidden)
        ctx.rows = rows
        return y_PD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_PD: Tensor) -> tuple[Tensor | None, ...]:
        x_PD, weight_P1, gate_up_EFD, down_EDF, *hidden = ctx.saved_tensors
        grad_x, grad_weight = torch.empty_like(x_PD), torch.empty_like(weight_P1)
        grad_gate_up, grad_down = torch.zeros_like(gate_up_EFD), torch.zeros_like(down_EDF)
        experts = _in_turn(ctx.rows, gate_up_EFD, down_EDF, grad_gate_up, grad_down)
        for i, (block, gate_up_FD, down_DF, to_gate_up, to_down) in enumerate(experts):
            gate, up, silu, y = hidden[4 * i : 4 * i + 4]
            grad = grad_PD[block]
            weight_N1 = weight_P1[block]
            torch.mm(grad.t(), y, out=to_down)
            grad_y = grad @ down_DF
            grad_silu = grad_y * up
            grad_weight[block, 0] = torch.linalg.vecdot(grad_silu, silu)
            grad_gate = torch.ops.aten.silu_backward(grad_silu.mul_(weight_N1), gate)
            grad_up = grad_y.mul_(silu).mul_(weight_N1)
            for part, to_part in zip((grad_gate, grad_up), to_gate_up.chunk(2), strict=True):
                torch.mm(part.t(), x_PD[block], out=to_part)
            gate_FD, up_FD = gate_up_FD.chunk(2)
            torch.mm(grad_gate, gate_FD, out=grad_x[block]).addmm_(grad_up, up_FD)
        return grad_x, grad_weight, None, grad_gate_up, grad_down


class _FeedForward(torch.autograd.Function):
    """Gradients of the weights are one product each, over all tokens: the cache does not help, and
    adding up blocks costs more than it saves."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
        y_TD = torch.empty_like(x_TD)
        hidden = [x_TD.new_empty(len(x_TD), len(gate_FD)) for _ in range(4)]
        for x, y, gate, up, silu, product in _row_blocks(x_TD, y_TD, *hidden):
            torch.mm(x, gate_FD.t(), out=gate)
            torch.mm(x, up_FD.t(), out=up)
            torch.ops.aten.silu.out(gate, out=silu)
            torch.mul(silu, up, out=product)
            torch.mm(product, down_DF.t(), out=y)
        ctx.save_for_backward(x_TD, gate_FD, up_FD, down_DF, *hidden)
        return y_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, ...]:
        x_TD, gate_FD, up_FD, down_DF, gate_TF, up_TF, silu_TF, product_TF = ctx.saved_tensors
        grad_TD = grad_TD.contiguous()
        grad_x = torch.empty_like(x_TD)
        grad_gate_TF, grad_up_TF = torch.empty_like(gate_TF), torch.empty_like(up_TF)
        whole = (grad_TD, gate_TF, up_TF, silu_TF, grad_x, grad_gate_TF, grad_up_TF)
        for grad, gate, up, silu, to_x, to_gate, to_up in _row_blocks(*whole):
            grad_product = grad @ down_DF
            torch.ops.aten.silu_backward.grad_input(grad_product * up, gate, grad_input=to_gate)
            torch.mul(grad_product, silu, out=to_up)
            torch.mm(to_gate, gate_FD, out=to_x).addmm_(to_up, up_FD)
        return grad_x, grad_gate_TF.t() @ x_TD, grad_up_TF.t() @ x_TD, grad_TD.t() @ product_TF


@_by(_FeedForward)
def feed_forward(x_TD: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
    """A SwiGLU for every token; on a CPU for some hundred at a time, which stay in the cache."""
    return F.linear(F.silu(F.linear(x_TD, gate_FD)) * F.linear(x_TD, up_FD), down_DF)


def _row_blocks(*tensors_TX: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of all tensors, :data:`ROWS_AT_A_TIME` at a time; on a GPU all at once."""
    on_cpu = tensors_TX[0].device.type == "cpu"
    rows = ROWS_AT_A_TIME if on_cpu else max(1, len(tensors_TX[0]))
    return zip(*(torch.split(tensor, rows) for tensor in tensors_TX), strict=True)


def _in_turn(rows: list[int], *weights_EXX: Tensor) -> Iterator[tuple[Any, ...]]:
    start = 0
    for count, *parts in zip(rows, *(weight.unbind() for weight in weights_EXX), strict=True):
        if count:
            yield (slice(start, start + count), *parts)
        start += count


def causal_attention(
    q_BHSd: Tensor, k_BHSd: Tensor, v_BHSv: Tensor, scale: float, visible_BSN: Tensor | None = None
) -> Tensor:
    """Softmax attention of every position to itself and the past, ``(B, H, S, v)``.

    Args:
        scale: What scores are multiplied with.
        visible_BSN: True where a token may attend, never to the future; ``None`` for all of the
            past.
    """
    if _blockwise_is_faster(q_BHSd):
        y: Tensor = _BlockwiseAttention.apply(q_BHSd, k_BHSd, v_BHSv, scale, visible_BSN)  # type: ignore[no-untyped-call]
        return y
    mask = None if visible_BSN is None else visible_BSN.unsqueeze(1)
    return F.scaled_dot_product_attention(
        q_BHSd, k_BHSd, v_BHSv, mask, is_causal=mask is None, scale=scale
    )


class _BlockwiseAttention(torch.autograd.Function):
    """Each block of queries sees the keys up to its own end, the rest is skipped. A batched product
    into a part of a tensor would run matrix by matrix, so results are joined."""

    @staticmethod
    def forward(
        ctx: Any,
        q_BHSd: Tensor,
        k_BHSd: Tensor,
        v_BHSv: Tensor,
        scale: float,
        visible_BSN: Tensor | None,
    ) -> Tensor:
        q, k, v = (part.flatten(0, 1) for part in (q_BHSd, k_BHSd, v_BHSv))
        shares, outputs = [], []
        for start, end in _blocks(q):
            share = torch.bmm(q[:, start:end], k[:, :end].transpose(1, 2)).mul_(scale)
            # A key can come after its query in the last block of keys only.
            future = torch.ones(end - start, end - start, dtype=torch.bool, device=q.device).triu(1)
            share[:, :, start:].masked_fill_(future, float("-inf"))
            if visible_BSN is not None:
                hidden_B1SN = ~visible_BSN[:, None, start:end, :end]
                by_head = share.view(*q_BHSd.shape[:2], *share.shape[1:])
                by_head.masked_fill_(hidden_B1SN, float("-inf"))
            shares.append(share.softmax(dim=-1))
            outputs.append(torch.bmm(shares[-1], v[:, :end]))
        ctx.save_for_backward(q, k, v, *shares)
        ctx.scale = scale
        ctx.heads = q_BHSd.shape[:2]
        out = torch.cat(outputs, dim=1)
        return out.view(*ctx.heads, *out.shape[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHSv: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *shares = ctx.saved_tensors
        grad = grad_BHSv.flatten(0, 1)
        grads_q: list[Tensor] = []
        grad_k = grad_v = None
        # From the last block, which sees all keys: the others add to a part of its gradients.
        for (start, end), share in zip(_blocks(q)[::-1], shares[::-1], strict=True):
            grad_out = grad[:, start:end]
            grad_share = torch.bmm(grad_out, v[:, :end].transpose(1, 2))
            grad_score = torch._softmax_backward_data(grad_share, share, -1, share.dtype)
            grad_score.mul_(ctx.scale)
            grads_q.append(torch.bmm(grad_score, k[:, :end]))
            to_k = torch.bmm(grad_score.transpose(1, 2), q[:, start:end])
            to_v = torch.bmm(share.transpose(1, 2), grad_out)
            if grad_k is None or grad_v is None:
                grad_k, grad_v = to_k, to_v
            else:
                grad_k[:, :end] += to_k
                grad_v[:, :end] += to_v
        assert grad_k is not None
        assert grad_v is not None
        parts = (torch.cat(grads_q[::-1], dim=1), grad_k, grad_v)
        return (*(part.view(*ctx.heads, *part.shape[1:]) for part in parts), None, None)


def _blockwise_is_faster(q_BHSd: Tensor) -> bool:
    if q_BHSd.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if torch.is_grad_enabled() and q_BHSd.requires_grad:
        return q_BHSd.shape[-2] <= LONGEST_BLOCKWISE["training"]
    half = q_BHSd.dtype in (torch.bfloat16, torch.float16)
    return half and q_BHSd.shape[-2] <= LONGEST_BLOCKWISE["half precision"]


def _blocks(q_XSd: Tensor) -> list[tuple[int, int]]:
    """Start and end of each block of queries; half precision needs larger products."""
    length = q_XSd.shape[1]
    size = BLOCK if q_XSd.element_size() > 2 else 2 * BLOCK
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs of ``x`` ``(B, S, heads, rope_dim)`` by the angles of their position."""
    cos, sin = (part.unsqueeze(-2) for part in table)
    real, imaginary = x.to(cos.dtype).reshape(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-1)
    return turned.flatten(-2).type_as(x)
