"""The probe on torchtitan's own DeepSeek-V3: counts against the counters of its layers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from microscope_tui.probe import attach
from tests.probe.layers import records

pytest.importorskip("torchtitan.models.deepseek_v3")
pytestmark = pytest.mark.filterwarnings("default")  # of the framework, not of the probe


class Same(nn.Module):
    """In place of the attention, which torchtitan compiles for a GPU."""

    def forward(self, x_BSD: Tensor, *args: Any, **more: Any) -> Tensor:
        return x_BSD


def build(**router: Any) -> Any:
    from torchtitan.models.deepseek_v3 import deepseekv3_configs

    torch.manual_seed(0)
    config = deepseekv3_configs["debugmodel"]("flex", "standard")
    config.layers = config.layers[:3]
    for layer in config.layers[1:]:
        for name, value in router.items():
            setattr(layer.moe.router, name, value)
    model = config.build()
    model.init_states()
    for layer in model.layers.values():
        layer.attention = Same()
    for moe in layers(model):
        moe.expert_bias_E.normal_(std=0.05)
    return model


def layers(model: Any) -> list[Any]:
    return [layer.moe for name, layer in model.layers.items() if name != "0"]


@pytest.mark.parametrize(
    "router",
    [
        {},
        {"score_func": "sigmoid", "route_norm": True},
        {"score_func": "sigmoid", "num_expert_groups": 4, "num_limited_groups": 2},
    ],
)
def test_counts_are_those_that_move_its_bias(router: dict[str, Any], tmp_path: Path) -> None:
    model = build(**router)
    seen: list[Tensor] = []
    for moe in layers(model):
        moe.router.register_forward_hook(lambda m, args, out: seen.append(out[2].detach().double()))
    ids_BS = torch.randint(2048, (2, 16))
    with attach(model, tmp_path) as probe:
        model(ids_BS).float().logsumexp(-1).mean().backward()
        probe.step()
    (run,), (line,) = records(tmp_path, "run"), records(tmp_path)
    assert run["model"]["layer_names"] == ["L1", "L2"]
    assert run["model"]["score_function"] == router.get("score_func", "softmax")
    assert run["balance"]["bias_update_rate"] == layers(model)[0].load_balance_coeff
    assert line["tokens"] == 32
    for row, moe in enumerate(layers(model)):
        assert line["tokens_per_expert"][row] == moe.tokens_per_expert_E.tolist()
        assert line["expert_bias"][row] == pytest.approx(moe.expert_bias_E.tolist(), rel=1e-3)
        shares_TE = seen[row].flatten(0, 1)
        shares_TE = shares_TE / shares_TE.sum(-1, keepdim=True)
        entropy = torch.special.entr(shares_TE).sum(-1).mean()
        assert line["router"]["entropy"][row] == pytest.approx(float(entropy), rel=1e-4)
        grad_norm = float(moe.router.gate.weight.grad.norm())
        assert line["router"]["grad_norm"][row] == pytest.approx(grad_norm, rel=1e-4)
    assert ("margin" in line["router"]) == ("num_expert_groups" not in router)
