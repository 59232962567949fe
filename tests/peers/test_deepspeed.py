"""The probe on DeepSpeed's own MoE layer: counts against those that the layer returns."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from microscope_tui.probe import attach
from tests.peers.alone import process_group
from tests.probe.layers import records

pytest.importorskip("deepspeed.moe.layer")
pytestmark = pytest.mark.filterwarnings("default")  # of the framework, not of the probe
EXPERTS, WIDTH = 4, 16


@pytest.fixture(autouse=True)
def together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import deepspeed.comm
    from deepspeed.utils import groups

    backend = importlib.import_module("deepspeed.comm.torch")
    monkeypatch.setattr(backend, "build_shm_op", lambda: None)  # compiles C++
    monkeypatch.setattr(deepspeed.comm.comm, "cdb", None)
    for name in ("_EXPERT_PARALLEL_GROUP", "_EXPERT_DATA_PARALLEL_GROUP"):
        monkeypatch.setattr(groups, name, {})
    with process_group(tmp_path):
        deepspeed.comm.init_distributed("gloo", auto_mpi_discovery=False)
        yield


class Model(nn.Module):
    def __init__(self, **options: Any) -> None:
        from deepspeed.moe.layer import MoE

        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(50, WIDTH)
        self.layers = nn.ModuleList(
            MoE(WIDTH, nn.Linear(WIDTH, WIDTH), num_experts=EXPERTS, min_capacity=1, **options)
            for _ in range(2)
        )
        for layer in self.layers:
            layer.set_deepspeed_parallelism()

    def forward(self, input_ids: Tensor, used_BS: Tensor | None = None) -> Tensor:
        x_BSD = self.embed(input_ids)
        self.counts = []
        for layer in self.layers:
            used_T = None if used_BS is None else used_BS.flatten()
            moved_BSD, _, counts_E = layer(x_BSD, used_T)
            self.counts.append(counts_E.tolist())
            x_BSD = x_BSD + moved_BSD
        return x_BSD


def step(model: Model, folder: Path, *given: Tensor) -> tuple[dict[str, Any], list[Any]]:
    outputs: list[Any] = []
    for layer in model.layers:
        layer.deepspeed_moe.gate.register_forward_hook(lambda m, args, out: outputs.append(out))
    with attach(model, folder / "run") as probe:
        model(torch.randint(50, (2, 16)), *given).square().mean().backward()
        probe.step()
    (line,) = records(folder / "run")
    return line, outputs


@pytest.mark.parametrize(
    "options",
    [
        {"k": 1},
        {"k": 1, "drop_tokens": False},
        {"k": 1, "drop_tokens": False, "noisy_gate_policy": "RSample"},
        {"k": 1, "drop_tokens": False, "noisy_gate_policy": "Jitter"},
        {"k": 2, "top2_2nd_expert_sampling": False},
        {"k": 2, "drop_tokens": False},
        {"k": 3},
        {"k": 3, "noisy_gate_policy": "RSample"},
    ],
    ids=str,
)
def test_counts_are_those_that_the_layer_returns(options: dict[str, Any], tmp_path: Path) -> None:
    model = Model(**options)
    line, outputs = step(model, tmp_path)
    assert records(tmp_path / "run", "run")[0]["model"]["layer_names"] == ["L0", "L1"]
    assert line["tokens_per_expert"] == model.counts
    for row, output in enumerate(outputs):
        run = int((output[3] >= 0).sum())
        assert ("drop_rate" in line["router"]) == options.get("drop_tokens", True)
        dropped = sum(model.counts[row]) - run
        if "drop_rate" in line["router"]:
            rate = line["router"]["drop_rate"][row]
            assert rate == pytest.approx(dropped / sum(model.counts[row]), rel=1e-4)
            assert dropped > 0
        gate = model.layers[row].deepspeed_moe.gate
        grad_norm = float(gate.wg.weight.grad.norm())
        assert line["router"]["grad_norm"][row] == pytest.approx(grad_norm, rel=1e-4)


def test_tokens_that_are_not_used_count_for_no_expert(tmp_path: Path) -> None:
    used_BS = torch.ones(2, 16)
    used_BS[1, 10:] = 0
    model = Model(k=1)
    line, _ = step(model, tmp_path, used_BS)
    assert line["tokens"] == 26
    assert line["tokens_per_expert"] == model.counts


@pytest.mark.parametrize("options", [{"k": 2}, {"k": 1, "noisy_gate_policy": "RSample"}])
def test_a_gate_that_samples_and_drops_is_refused(options: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"samples its choice.*and drops.*pass an Adapter"):
        attach(Model(**options), tmp_path / "run")


def test_the_mask_of_places_says_what_runs_where_no_routes_are_given(tmp_path: Path) -> None:
    from deepspeed.moe.sharded_moe import TopKGate

    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = TopKGate(WIDTH, EXPERTS, k=3, min_capacity=1)

        def forward(self, x: Tensor) -> Any:
            self.out = self.gate(x)
            return self.out[1]

    model = Alone()
    with attach(model, tmp_path / "run") as probe:
        model(torch.randn(32, WIDTH)).sum().backward()
        probe.step()
    (line,) = records(tmp_path / "run")
    assert line["tokens_per_expert"] == [model.out[3].tolist()]
    kept = int(model.out[2].sum())
    assert line["router"]["drop_rate"] == [pytest.approx(1 - kept / 96, rel=1e-4)]
