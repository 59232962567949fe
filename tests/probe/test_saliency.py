"""Readings of experts and gradients, against fp64 computations that share no code with them."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.families.tiny import build
from benchmarks.families.trial import batch
from microscope_tui.probe import attach
from tests.probe.layers import records

EXPERTS, TOP_K = 8, 2


def loss(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Of the real tokens only; a function of every router."""
    logits_BSV = model(**inputs).logits
    return (logits_BSV.square().mean(-1) * inputs["attention_mask"]).sum()


def one_step(model: Any, micro_batches: list[dict[str, Tensor]], folder: Path) -> dict[str, Any]:
    with attach(model, folder, saliency=True) as probe:
        for inputs in micro_batches:
            loss(model, inputs).backward()
        probe.step()
    (line,) = records(folder)
    return line


def in_fp64(model: Any) -> Any:
    exact = copy.deepcopy(model).double()
    exact.set_experts_implementation("eager")  # the grouped product has no fp64
    return exact


def expert_output(experts: Any, expert: int, x_D: Tensor) -> Tensor:
    gate_F, up_F = (experts.gate_up_proj[expert] @ x_D).chunk(2)
    return experts.down_proj[expert] @ (gate_F * gate_F.sigmoid() * up_F)


def brute_force(model: Any, micro_batches: list[dict[str, Tensor]]) -> list[tuple[Any, Any]]:
    """Mean weight and mean output norm of every expert of every layer, token by token in fp64."""
    calls: list[tuple[Any, Any]] = []
    for module in model.modules():
        if hasattr(module, "gate_up_proj"):
            module.register_forward_pre_hook(lambda m, args: calls.append((m, args)))
    found: dict[int, tuple[list[list[float]], list[list[float]]]] = {}
    for inputs in micro_batches:
        calls.clear()
        model(**inputs)
        real = inputs["attention_mask"].flatten().tolist()
        for experts, (x_TD, ids_TK, weights_TK) in calls:
            empty = ([[] for _ in range(EXPERTS)], [[] for _ in range(EXPERTS)])
            weights, norms = found.setdefault(id(experts), empty)
            for t in (t for t, is_real in enumerate(real) if is_real):
                for k in range(TOP_K):
                    e = int(ids_TK[t, k])
                    weights[e].append(float(weights_TK[t, k]))
                    norms[e].append(float(expert_output(experts, e, x_TD[t]).norm()))
    return list(found.values())


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_saliency_is_what_single_experts_give_to_single_tokens(family: str, tmp_path: Path) -> None:
    model = build(family)
    exact = in_fp64(model)
    micro_batches = [batch(family, model, padding, 0)[0] for padding in ("left", "right")]
    line = one_step(model, micro_batches, tmp_path)
    with torch.no_grad():
        expected = brute_force(exact, micro_batches)
    assert len(expected) == len(line["mean_weight"])
    for row, parts in enumerate(expected):
        for name, values in zip(("mean_weight", "mean_output_norm"), parts, strict=True):
            means = [sum(v) / len(v) if v else None for v in values]
            assert line[name][row] == [
                None if mean is None else pytest.approx(mean, rel=1e-3) for mean in means
            ]


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
def test_the_gradient_norm_of_a_router_is_that_of_an_fp64_copy(family: str, tmp_path: Path) -> None:
    model = build(family, num_hidden_layers=2, first_k_dense_replace=1)
    micro_batches = [batch(family, model, "left", seed)[0] for seed in range(2)]
    exact = in_fp64(model)
    line = one_step(model, micro_batches, tmp_path)
    for inputs in micro_batches:
        loss(exact, inputs).backward()
    norm = float(exact.model.layers[-1].mlp.gate.weight.grad.norm())
    assert norm > 0
    assert line["router"]["grad_norm"][-1] == pytest.approx(norm, rel=1e-4)


def test_where_no_expert_is_asked_no_activations_are_held_between_steps(tmp_path: Path) -> None:
    model = build("mixtral")
    with attach(model, tmp_path, saliency=True) as probe:
        for site in probe.sites:
            site.experts = None
        loss(model, batch("mixtral", model, "left", 0)[0]).backward()
        assert not probe.hooks._counted
        probe.step()
    assert records(tmp_path)[0]["mean_weight"]
