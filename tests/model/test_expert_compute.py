"""The grouped product, one expert after the other and a naive sum are the same function."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode

from moe_model import ModelConfig, experts as experts_module
from moe_model.experts import Experts
from tests.model.conftest import make_config

T, K = 33, 2


def make_inputs(config: ModelConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_TD = torch.randn(T, config.hidden_size, generator=generator).to(dtype)
    # Expert 3 gets no token: an empty group must give zero gradients and not garbage.
    allowed = torch.tensor([0, 1, 2, 4, 5, 6, 7])
    ids_TK = torch.stack([allowed[torch.randperm(7, generator=generator)[:K]] for _ in range(T)])
    weights_TK = torch.rand(T, K, generator=generator)
    return x_TD.requires_grad_(), ids_TK, weights_TK.requires_grad_()


def make_experts(config: ModelConfig, dtype: torch.dtype) -> Experts:
    experts = Experts(config)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    return experts.to(dtype)


def naive(experts: Experts, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
    """Every expert on every token, then weighted: slow and obvious."""
    y_TD = torch.zeros_like(x_TD)
    for expert, (gate_up, down) in enumerate(
        zip(experts.gate_up_proj, experts.down_proj, strict=True)
    ):
        gate, up = F.linear(x_TD, gate_up).chunk(2, dim=-1)
        weight_T1 = (weights_TK * (ids_TK == expert)).sum(dim=-1, keepdim=True)
        y_TD = y_TD + weight_T1 * F.linear(F.silu(gate) * up, down)
    return y_TD


@pytest.mark.parametrize("grouped", [True, False], ids=["grouped", "in turn"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 8e-2)], ids=["fp32", "bf16"]
)
def test_output_and_gradients_are_those_of_the_naive_sum(
    grouped: bool, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the inputs, the weights of the pairs and the matrices; the loss is not a plain sum."""
    monkeypatch.setattr(experts_module, "_grouped_is_better", lambda *_: grouped)
    config = make_config()
    experts, inputs = make_experts(config, dtype), make_inputs(config, dtype)
    leaves = [inputs[0], inputs[2], *experts.parameters()]
    results = []
    for y_TD in (experts(*inputs), naive(experts, *inputs).to(dtype)):
        results.append([y_TD, *torch.autograd.grad(y_TD.float().square().mean(), leaves)])
    for ours, expected in zip(*results, strict=True):
        assert ours.dtype == expected.dtype
        torch.testing.assert_close(ours, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ("tokens", "changes", "dtype", "grouped"),
    [
        (64, {}, torch.float32, True),
        (4096, {}, torch.bfloat16, True),
        (4096, {}, torch.float32, False),
        (64, {"moe_intermediate_size": 23}, torch.float32, False),
        (64, {}, torch.float64, False),
    ],
    ids=["few rows", "bf16", "many rows", "width of no 16 bytes", "fp64"],
)
def test_the_grouped_product_is_used_where_it_is_possible_and_faster(
    tokens: int, changes: Any, dtype: torch.dtype, grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(**changes)
    taken = []
    for name in ("_grouped_experts", "experts_in_turn"):
        run_it = getattr(experts_module, name)
        monkeypatch.setattr(
            experts_module, name, lambda *a, n=name, f=run_it: taken.append(n) or f(*a)
        )
    ids_TK = torch.randint(8, (tokens, K), generator=torch.Generator().manual_seed(0))
    x_TD = torch.randn(tokens, config.hidden_size).to(dtype)
    make_experts(config, dtype)(x_TD, ids_TK, torch.rand(tokens, K))
    assert taken == ["_grouped_experts" if grouped else "experts_in_turn"]


@pytest.mark.parametrize(
    ("capability", "dtype", "grouped"),
    [
        ((9, 0), torch.bfloat16, True),
        ((10, 0), torch.bfloat16, False),
        ((12, 0), torch.bfloat16, False),
        ((8, 0), torch.bfloat16, False),
        ((9, 0), torch.float16, False),
        ((9, 0), torch.float32, False),
    ],
)
def test_a_gpu_groups_only_where_it_has_one_right_kernel_for_all_experts(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype, grouped: bool
) -> None:
    """Elsewhere torch runs the experts in turn inside the grouped product, and waits for each; on
    10.x an expert without rows gets a gradient that is not zero (pytorch 172439)."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    with FakeTensorMode():
        x_PD = torch.empty(4096, 64, dtype=dtype, device="cuda:0")
        weights = [torch.empty(4, 64, 64, dtype=dtype, device="cuda:0") for _ in range(2)]
        assert experts_module._grouped_is_better(x_PD, *weights) is grouped


def test_autocast_decides_the_number_format_and_the_input_that_of_the_output() -> None:
    config = make_config()
    experts, inputs = make_experts(config, torch.float32), make_inputs(config, torch.float32)
    exact = experts(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = experts(*inputs)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, atol=0.1, rtol=0.1)


@pytest.mark.filterwarnings("ignore")  # what the compiler says about itself
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_changing_row_counts_do_not_recompile(dtype: torch.dtype) -> None:
    """Row counts as Python numbers would be other constants of the graph in every step."""
    torch._dynamo.reset()
    counter = CompileCounter()
    experts = make_experts(make_config(), dtype)
    experts.compile(backend=counter)
    compiled = []
    for seed in range(3):
        ids_TK = torch.randint(0, 8, (T, K), generator=torch.Generator().manual_seed(seed))
        x_TD = torch.randn(T, experts.down_proj.shape[1]).to(dtype)
        experts(x_TD, ids_TK, torch.rand(T, K)).float().sum().backward()
        compiled.append(counter.frame_count)
    assert compiled[0] > 0
    assert len(set(compiled)) == 1, compiled
