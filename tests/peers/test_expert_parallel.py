"""The probe on the expert parallelism of DeepSpeed and torchtitan: four processes, two of them with
each expert.

``python -m tests.peers.test_expert_parallel KIND FOLDER RANK`` is one of them.
"""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from microscope_tui.probe import attach
from tests.peers.test_torchtitan import build, layers
from tests.probe.layers import records

WIDTH, EXPERTS = 16, 4


class DeepSpeed(nn.Module):
    def __init__(self) -> None:
        from deepspeed.moe.layer import MoE

        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(50, WIDTH)
        options = {"num_experts": EXPERTS, "ep_size": 2, "k": 1, "drop_tokens": False}
        self.layers = nn.ModuleList(MoE(WIDTH, nn.Linear(WIDTH, WIDTH), **options) for _ in "12")
        for layer in self.layers:
            layer.set_deepspeed_parallelism()

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden, self.counts = self.embed(input_ids), list[Any]()
        for layer in self.layers:
            moved, _, counts_E = layer(hidden)
            self.counts.append(counts_E.tolist())
            hidden = hidden + moved
        return hidden


def deepspeed() -> Any:
    import deepspeed.comm

    backend = importlib.import_module("deepspeed.comm.torch")
    backend.build_shm_op = lambda: None  # compiles C++
    deepspeed.comm.init_distributed("gloo", auto_mpi_discovery=False)
    return DeepSpeed()


def torchtitan() -> Any:
    from torchtitan.distributed.utils import set_spmd_backend
    from torchtitan.models.common.token_dispatcher import AllToAllTokenDispatcher

    set_spmd_backend("default")
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "ep"))["ep"]
    model = build()
    for moe in layers(model):
        experts = moe.routed_experts
        router = moe.router
        config = AllToAllTokenDispatcher.Config(num_experts=router.num_experts, top_k=router.top_k)
        experts.token_dispatcher = AllToAllTokenDispatcher(config)
        experts.token_dispatcher.wire_meshes(ep_mesh=mesh)
        for name, weight in list(experts.inner_experts.named_parameters()):
            split = nn.Parameter(distribute_tensor(weight.data, mesh, [Shard(0)]))
            experts.inner_experts.register_parameter(name, split)
    return model


def main(kind: str, folder: Path, rank: int) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="4")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=4)
    model = {"deepspeed": deepspeed, "torchtitan": torchtitan}[kind]()
    ids = torch.randint(50, (2, 16), generator=torch.Generator().manual_seed(rank))
    with attach(model, folder / "run") as probe:
        model(ids).square().mean().backward()
        probe.step()
    if kind == "torchtitan":
        model.counts = [moe.tokens_per_expert_E.tolist() for moe in layers(model)]
    (folder / f"seen{rank}.json").write_text(json.dumps(model.counts))
    dist.barrier()
    os._exit(0)


@pytest.mark.parametrize("kind", ["deepspeed", "torchtitan"])
def test_counts_are_the_sum_of_those_that_the_layers_have(kind: str, tmp_path: Path) -> None:
    pytest.importorskip({"deepspeed": "deepspeed.moe.layer"}.get(kind, "torchtitan.models"))
    command = [sys.executable, "-m", "tests.peers.test_expert_parallel", kind, str(tmp_path)]
    ranks = [subprocess.Popen([*command, str(rank)]) for rank in range(4)]
    assert [rank.wait(timeout=300) for rank in ranks] == [0] * 4
    seen = [json.loads((tmp_path / f"seen{rank}.json").read_text()) for rank in range(4)]
    (run,), (line,) = records(tmp_path / "run", "run"), records(tmp_path / "run")
    assert run["expert_parallel_size"] == 2
    assert line["tokens_per_expert"] == torch.tensor(seen).sum(dim=0).tolist()
    assert "incomplete" not in line


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
