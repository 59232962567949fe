"""Hand-written backward passes: each equals the plain twin that stands beside it, and gradcheck."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from moe_model import fused


def random(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def table(positions: int, pairs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    angles = random(positions, pairs, seed=9, dtype=torch.float64)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def cases(name: str, dtype: torch.dtype) -> tuple[list[Tensor], tuple[Any, ...]]:
    """Tensors that have a gradient, and the other arguments behind them."""

    def leaf(*shape: int, seed: int = 0) -> Tensor:
        return random(*shape, seed=seed, dtype=dtype).requires_grad_()

    wide = torch.promote_types(dtype, torch.float32)
    if name == "rms_norm":
        return [leaf(2, 3, 6), leaf(6, seed=1)], (1e-6, dtype)
    if name == "swiglu":
        return [leaf(5, 8), leaf(5, 1, seed=1)], ()
    if name == "queries_with_position":
        return [leaf(2, 5, 3, 7)], (table(5, 2, wide),)
    if name == "keys_and_values":
        return [leaf(2, 5, 3, 8), leaf(2, 5, 4, seed=1)], (table(5, 2, wide), 5)
    if name == "causal_attention":
        return [leaf(2, 2, 7, 4, seed=s) for s in range(2)] + [leaf(2, 2, 7, 3, seed=2)], (0.4,)
    if name == "experts_in_turn":
        weights = [leaf(3, 6, 4, seed=2), leaf(3, 4, 3, seed=3)]
        return [leaf(5, 4), leaf(5, 1, seed=1), *weights], ()
    if name == "feed_forward":
        weights = [leaf(6, 4, seed=1), leaf(6, 4, seed=2), leaf(4, 6, seed=3)]
        return [leaf(7, 4), *weights], ()
    raise KeyError(name)


NAMES = [
    "rms_norm",
    "swiglu",
    "queries_with_position",
    "keys_and_values",
    "causal_attention",
    "feed_forward",
]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven tokens are two blocks and a half."""
    monkeypatch.setattr(fused, "BLOCK", 3)
    monkeypatch.setattr(fused, "ROWS_AT_A_TIME", 3)


def call(function: Callable[..., Any], leaves: list[Tensor], rest: tuple[Any, ...]) -> Any:
    if function.__name__.endswith("experts_in_turn"):
        x_PD, weight_P1, gate_up, down = leaves
        return function(x_PD, weight_P1, [2, 0, 3], gate_up, down)
    return function(*leaves, *rest)


@pytest.mark.parametrize("name", [*NAMES, "experts_in_turn"])
def test_gradients_are_right_in_fp64(name: str) -> None:
    leaves, rest = cases(name, torch.float64)
    assert torch.autograd.gradcheck(lambda *x: call(getattr(fused, name), list(x), rest), leaves)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 6e-2)], ids=["fp32", "bf16"]
)
@pytest.mark.parametrize("name", [*NAMES, "experts_in_turn"])
def test_equals_its_plain_twin(name: str, dtype: torch.dtype, tolerance: float) -> None:
    results = []
    for function in (getattr(fused, name), getattr(fused, f"plain_{name}")):
        leaves, rest = cases(name, dtype)
        y = call(function, leaves, rest)
        parts = y if isinstance(y, tuple) else (y,)
        loss = sum((p.float() * (1 + i + p.detach().float())).mean() for i, p in enumerate(parts))
        results.append([*parts, *torch.autograd.grad(loss, leaves)])
    for ours, plain in zip(*results, strict=True):
        assert ours.dtype == plain.dtype
        torch.testing.assert_close(ours, plain, atol=tolerance, rtol=tolerance)


def test_norm_is_as_exact_when_the_backward_pass_runs_inside_autocast() -> None:
    grads = []
    for inside in (False, True):
        (x, weight), rest = cases("rms_norm", torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            loss = (100 * fused.rms_norm(x + 100, weight, *rest)).square().sum()
            grads.append(torch.autograd.grad(loss, (x, weight)))
    for outside, within in zip(*grads, strict=True):
        torch.testing.assert_close(within, outside, rtol=1e-5, atol=1e-5)


def test_second_derivatives_are_refused_rather_than_wrong() -> None:
    leaves, rest = cases("causal_attention", torch.float64)
    loss = fused.causal_attention(*leaves, *rest).square().sum()
    first = torch.autograd.grad(loss, leaves[0], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_tokens_go_to_their_rows_and_back() -> None:
    """Row 3 is padding of an expert and belongs to no token."""
    token_P, place_TK = torch.tensor([0, 1, 2, 0, 0, 1, 2]), torch.tensor([[0, 4], [1, 5], [2, 6]])
    x_TD = random(3, 4, seed=0, dtype=torch.float64).requires_grad_()
    y_PD = random(7, 4, seed=1, dtype=torch.float64).requires_grad_()
    real_P1 = torch.ones(7, 1, dtype=torch.float64)
    real_P1[3] = 0
    arguments = (token_P, place_TK)
    assert torch.equal(fused.dispatch(x_TD, *arguments), fused.plain_dispatch(x_TD, *arguments))
    torch.testing.assert_close(
        fused.combine(y_PD, *arguments), fused.plain_combine(y_PD, *arguments)
    )
    # As they are used: what reaches a padding row on the way back is multiplied by zero.
    y_TD = fused.combine(fused.dispatch(x_TD, *arguments) * real_P1, *arguments)
    plain_TD = fused.plain_combine(fused.plain_dispatch(x_TD, *arguments) * real_P1, *arguments)
    grads = [torch.autograd.grad((y * y).sum(), x_TD)[0] for y in (y_TD, plain_TD)]
    torch.testing.assert_close(*grads)


def test_every_hand_written_function_has_a_plain_twin() -> None:
    public = {
        name
        for name, function in inspect.getmembers(fused, inspect.isfunction)
        if function.__module__ == fused.__name__ and not name.startswith("_")
    } - {"compute_dtype", "rotate"}
    assert {f"plain_{name}" for name in public if not name.startswith("plain_")} == {
        name for name in public if name.startswith("plain_")
    }
