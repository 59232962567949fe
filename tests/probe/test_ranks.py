"""Two processes that train together: one log, and counts that are the sum of what both saw."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.probe.layers import records

END = """
dist.destroy_process_group()
sys.stderr.flush()
sys.stdout.flush()
os._exit(0)  # threads of torch abort the end of the interpreter now and then
"""
SCRIPT = """
import os, sys, json, pathlib, torch, torch.distributed as dist
from benchmarks.families.tiny import build
from microscope_tui.probe import attach

kind, broken, folder = sys.argv[1], sys.argv[2] == "broken", pathlib.Path(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=int(sys.argv[4]),
                        world_size=2)
rank = dist.get_rank()
model = build("mixtral")
if kind == "ddp":
    model = torch.nn.parallel.DistributedDataParallel(model)
else:
    from torch.distributed.fsdp import fully_shard
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
chosen, steps = [], []
inner = model.module if kind == "ddp" else model
for layer in inner.model.layers:
    layer.mlp.experts.register_forward_pre_hook(
        lambda module, args: chosen.append(args[1].clone()))
with attach(model, folder / "run") as probe:
    if broken and rank == 1:
        site = probe.sites[0]
        read, calls = site.read, []
        def fail_later(*args):
            calls.append(1)
            if len(calls) > 1:
                raise RuntimeError("made to fail")
            return read(*args)
        site.read = fail_later
    made = torch.Generator().manual_seed(rank)
    for step in range(3):
        ids = torch.randint(3, 90, (2, 6 + rank), generator=made)  # unequal numbers of tokens
        chosen.clear()
        output = model(input_ids=ids, labels=ids)
        steps.append([torch.bincount(c.flatten(), minlength=8).tolist() for c in chosen])
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        probe.step(loss=output.loss)
(folder / f"seen{rank}.json").write_text(json.dumps(steps))
"""


def run(script: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", script + END, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )


def train_on_two(kind: str, broken: str, folder: Path) -> list[str]:
    """Train three steps; what both processes said."""
    ranks = [run(SCRIPT, kind, broken, str(folder), str(rank)) for rank in range(2)]
    said = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    return said


def seen(folder: Path, rank: int) -> list[list[list[int]]]:
    steps: list[list[list[int]]] = json.loads((folder / f"seen{rank}.json").read_text())
    return steps


def added(one: list[list[int]], two: list[list[int]]) -> list[list[int]]:
    return [[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(one, two, strict=True)]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_ranks_write_one_log_with_the_sum_of_their_counts(kind: str, tmp_path: Path) -> None:
    train_on_two(kind, "sound", tmp_path)
    lines = records(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line, one, two in zip(lines, seen(tmp_path, 0), seen(tmp_path, 1), strict=True):
        assert line["tokens"] == 2 * 6 + 2 * 7
        assert line["tokens_per_expert"] == added(one, two)
        assert "incomplete" not in line


def test_training_continues_where_the_probe_of_one_rank_fails_and_lines_say_so(
    tmp_path: Path,
) -> None:
    said = train_on_two("fsdp", "broken", tmp_path)
    assert said[1].count("made to fail") == 1  # one warning, not one a step
    first, *rest = records(tmp_path / "run")
    assert "incomplete" not in first
    assert [line["step"] for line in rest] == [2, 3]
    for line, one in zip(rest, seen(tmp_path, 0)[1:], strict=True):
        assert line["incomplete"] == "1 ranks did not count"
        assert line["tokens_per_expert"] == one


PARTS = """
import os, sys, torch, torch.distributed as dist
from microscope_tui.probe import attach
from tests.probe.layers import ADAPTER, Model

folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
model = Model()
routers = {f"layers.{rank + 1}.gate": ADAPTER}  # as the stages of a pipeline have them
try:
    attach(model, f"{folder}/run", routers=routers)
except ValueError as error:
    print(error)
attach(model, f"{folder}/run", routers={"layers.1.gate": ADAPTER}).detach()
"""


def test_the_stages_of_a_pipeline_are_refused_on_all_ranks(tmp_path: Path) -> None:
    ranks = [run(PARTS, str(tmp_path), str(rank)) for rank in range(2)]
    for rank in ranks:
        told, errors = rank.communicate(timeout=60)
        assert rank.returncode == 0, errors
        assert "every rank must have all routers of the model (no pipeline parallelism)" in told
        assert "rank 0 has L1×6, rank 1 L2×6" in told


SHARDED = """
import json, os, pathlib, sys, torch, torch.distributed as dist
from transformers.distributed import DistributedConfig
from benchmarks.families.tiny import build
from microscope_tui.probe import attach

folder, rank = pathlib.Path(sys.argv[1]), sys.argv[2]
os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2")
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=int(rank), world_size=2)
whole = build("mixtral", output_router_logits=True)
if rank == "0":
    whole.save_pretrained(folder / "weights")
dist.barrier()
ids_BS = torch.randint(3, 90, (2, 8), generator=torch.Generator().manual_seed(0))
chosen = []
for layer in whole.model.layers:
    layer.mlp.gate.register_forward_hook(lambda m, args, out: chosen.append(
        torch.bincount(out[2].flatten(), minlength=8).tolist()))
whole.train()(input_ids=ids_BS, labels=ids_BS).loss.backward()
norms = [float(layer.mlp.gate.weight.grad.norm()) for layer in whole.model.layers]
for kind, sizes in {"tensor": {"tp_size": 2}, "expert": {"tp_size": 2, "ep_size": 2}}.items():
    model = type(whole).from_pretrained(
        folder / "weights", distributed_config=DistributedConfig(**sizes)).train()
    with attach(model, folder / kind) as probe:
        loss = model(input_ids=ids_BS, labels=ids_BS).loss
        loss.backward()
        probe.step(loss=loss)
(folder / f"seen{rank}.json").write_text(json.dumps([chosen, norms]))
"""


def test_tensor_and_expert_parallel_ranks_count_their_common_tokens_once(tmp_path: Path) -> None:
    ranks = [run(SHARDED, str(tmp_path), str(rank)) for rank in range(2)]
    for rank in ranks:
        _, errors = rank.communicate(timeout=120)
        assert rank.returncode == 0, errors
    chosen, norms = json.loads((tmp_path / "seen0.json").read_text())
    for kind in ("tensor", "expert"):
        (line,) = records(tmp_path / kind)
        assert line["tokens"] == 16
        assert line["tokens_per_expert"] == chosen
        assert line["router"]["grad_norm"] == pytest.approx(norms, rel=1e-3)
        assert "incomplete" not in line
