"""Hand-written backward passes: each equals its plain twin, and finite differences."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moe_model import fused
from moe_model.attention import visible_in_documents

PLAIN = ("rms_norm", "queries_with_position", "keys_and_values", "swiglu", "feed_forward")
TWINS: dict[str, Any] = {
    **{n: fused_one.__wrapped__ for n, fused_one in vars(fused).items() if n in PLAIN},
    "causal_attention": lambda q, k, v, scale, visible_BSN: F.scaled_dot_product_attention(
        q, k, v, visible_BSN.unsqueeze(1), scale=scale
    ),
    "dispatch": lambda x_TD, token_P, place_TK: x_TD[token_P],
    "combine": lambda y_PD, token_P, place_TK: y_PD[place_TK].sum(dim=1),
}
NAMES = (*TWINS, "experts_in_turn")
"""The experts' twin is the naive sum in test_expert_compute."""


def random(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def cases(name: str, dtype: torch.dtype) -> tuple[list[Tensor], tuple[Any, ...]]:
    """Tensors that have a gradient, and the other arguments behind them."""

    def leaf(*shape: int, seed: int = 0) -> Tensor:
        return random(*shape, seed=seed, dtype=dtype).requires_grad_()

    wide = torch.promote_types(dtype, torch.float32)
    angles = random(5, 2, seed=9, dtype=torch.float64)
    table = (angles.cos().to(wide), angles.sin().to(wide))
    places = (torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([[0, 3], [1, 4], [2, 5]]))
    matrices = [leaf(6, 4, seed=1), leaf(6, 4, seed=2), leaf(4, 6, seed=3)]
    starts_BS = torch.tensor([[0, 1, 0, 0, 1, 0, 0], [0, 0, 0, 1, 0, 0, 0]])
    queries_keys_values = [leaf(2, 2, 7, size, seed=size) for size in (4, 4, 3)]
    return {
        "rms_norm": ([leaf(2, 3, 6), leaf(6, seed=1)], (1e-6, dtype)),
        "swiglu": ([leaf(5, 8), leaf(5, 1, seed=1)], ()),
        "queries_with_position": ([leaf(2, 5, 3, 7)], (table,)),
        "keys_and_values": ([leaf(2, 5, 3, 8), leaf(2, 5, 4, seed=1)], (table, 5)),
        "causal_attention": (queries_keys_values, (0.4, visible_in_documents(starts_BS))),
        "experts_in_turn": (
            [leaf(5, 4), leaf(5, 1, seed=1), leaf(3, 6, 4, seed=2), leaf(3, 4, 3, seed=3)],
            (torch.tensor([2, 0, 3]),),
        ),
        "feed_forward": ([leaf(7, 4), *matrices], ()),
        "dispatch": ([leaf(3, 4)], places),
        "combine": ([leaf(6, 4)], places),
    }[name]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "BLOCK", 3)
    monkeypatch.setattr(fused, "ROWS_AT_A_TIME", 3)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    leaves, rest = cases(name, torch.float64)
    after = 2 if name == "experts_in_turn" else len(leaves)  # its rows are in the middle
    assert torch.autograd.gradcheck(
        lambda *x: getattr(fused, name)(*x[:after], *rest, *x[after:]), leaves
    )


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 6e-2)], ids=["fp32", "bf16"]
)
@pytest.mark.parametrize("name", TWINS)
def test_equals_its_plain_twin(name: str, dtype: torch.dtype, tolerance: float) -> None:
    results = []
    leaves, rest = cases(name, dtype)
    for function in (getattr(fused, name), TWINS[name]):
        y = function(*leaves, *rest)
        parts = y if isinstance(y, tuple) else (y,)
        loss = sum((p.float() * (1 + i + p.detach().float())).mean() for i, p in enumerate(parts))
        results.append([*parts, *torch.autograd.grad(loss, leaves)])
    for ours, plain in zip(*results, strict=True):
        assert ours.dtype == plain.dtype
        torch.testing.assert_close(ours, plain, atol=tolerance, rtol=tolerance)


def test_norm_is_as_exact_when_the_backward_pass_runs_inside_autocast() -> None:
    grads = []
    (x, weight), rest = cases("rms_norm", torch.float32)
    for inside in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            loss = (100 * fused.rms_norm(x + 100, weight, *rest)).square().sum()
            grads.append(torch.autograd.grad(loss, (x, weight)))
    for outside, within in zip(*grads, strict=True):
        torch.testing.assert_close(within, outside, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_norm_is_hand_written_on_a_cpu_only(device: str) -> None:
    weight = torch.ones(6, device=device, requires_grad=True)
    y = fused.rms_norm(weight[None], weight, 1e-6, torch.float32)
    assert y.grad_fn is not None
    assert (y.grad_fn.name() == "_RMSNormBackward") is (device == "cpu")


def test_second_derivatives_are_refused_rather_than_wrong() -> None:
    leaves, rest = cases("causal_attention", torch.float64)
    loss = fused.causal_attention(*leaves, *rest).square().sum()
    first = torch.autograd.grad(loss, leaves[0], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_rows_that_pad_an_expert_belong_to_no_token() -> None:
    """What reaches a padding row, here the fourth, on the way back is multiplied by zero."""
    places = (torch.tensor([0, 1, 2, 0, 0, 1, 2]), torch.tensor([[0, 4], [1, 5], [2, 6]]))
    x_TD = random(3, 4, seed=0, dtype=torch.float64).requires_grad_()
    real_P1 = torch.ones(7, 1, dtype=torch.float64)
    real_P1[3] = 0
    y_TD = fused.combine(fused.dispatch(x_TD, *places) * real_P1, *places)
    plain_TD = TWINS["combine"](TWINS["dispatch"](x_TD, *places) * real_P1, *places)
    torch.testing.assert_close(y_TD, plain_TD)
    grads = [torch.autograd.grad((y * y).sum(), x_TD)[0] for y in (y_TD, plain_TD)]
    torch.testing.assert_close(*grads)
