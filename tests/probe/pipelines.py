"""Four processes that train one model in a pipeline, and one process that trains it alone.

``python -m tests.probe.pipelines FOLDER CASE…`` forks the four; what they print on standard error
is in ``FOLDER/RANK.txt``.
"""

import os
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import pipelining
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, distribute_tensor

from benchmarks.families.tiny import VOCABULARY, build
from microscope_tui.probe import attach, ranks
from tests.probe.layers import ADAPTER, ROUTERS, VOCABULARY as VOCABULARY_HERE, WIDTH, Block, Model
from tests.training.worlds import fork_ranks

LAYERS, BATCHES, STEPS = 8, 4, int(os.environ.get("PIPELINE_STEPS", "3"))
HOT = 4
"""From this expert on, layer 2 has a bias: they are those of the second of two ranks."""


class Stage(nn.Module):
    """Some layers of a DeepSeek-V3, under their numbers or, ``anew``, counted from 0."""

    def __init__(self, numbers: Sequence[int], first: bool, last: bool, anew: bool = False) -> None:
        super().__init__()
        whole = deepseek().double()
        whole.set_experts_implementation("eager")  # others do not take fp64
        self._can_record_outputs = whole._can_record_outputs
        whole.model.layers[2].mlp.gate.e_score_correction_bias[HOT:] += 1
        self.embed = whole.model.embed_tokens if first else None
        self.rotary, layers = whole.model.rotary_emb, whole.model.layers
        self.layers: Any = nn.ModuleList(layers[n] for n in numbers)
        if not anew:
            self.layers = nn.ModuleDict({str(n): layers[n] for n in numbers})
        is_end = last and LAYERS - 1 in numbers and not anew
        self.mtp_layers = nn.ModuleList(layers[LAYERS:] if is_end else ())
        self.head = nn.Sequential(whole.model.norm, whole.lm_head) if last else None

    def forward(self, hidden: Tensor, attention_mask: Any = None) -> Tensor:
        if self.embed is not None:
            hidden = self.embed(hidden)
        places = torch.arange(hidden.shape[1])[None]
        where = {"position_ids": places, "position_embeddings": self.rotary(hidden, places)}
        layers = self.layers.values() if isinstance(self.layers, nn.ModuleDict) else self.layers
        for layer in layers:
            hidden = layer(hidden, **where)
        if self.head is None:
            return hidden
        logits = self.head(hidden)
        for layer in self.mtp_layers:
            logits = logits + self.head(layer(hidden, **where))
        return logits


def deepseek() -> Any:
    torch.manual_seed(0)
    return build("deepseek_v3", num_hidden_layers=LAYERS + 1, n_group=1, topk_group=1)


def loss_of(logits: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())


def batch(step: int) -> Tensor:
    made = torch.Generator().manual_seed(step)
    return torch.randint(2, VOCABULARY, (2 * BATCHES, 16), generator=made)


def mask(step: int) -> Tensor:
    return torch.arange(16) < torch.arange(9, 17)[:, None] - step % 2


def move_biases(modules: Sequence[nn.Module], step: int) -> None:
    """As a trainer that balances by bias would, in a way that does not depend on the stage."""
    for module in modules:
        for part in module.modules():
            if hasattr(part, "e_score_correction_bias"):
                part.e_score_correction_bias += 0.01 * torch.linspace(-1, 1, 8) * (-1) ** step


def alone(folder: Path, steps: int) -> None:
    model = Stage(range(LAYERS), True, True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with attach(model, folder, saliency=True) as probe:
        for step in range(1, steps + 1):
            losses = []
            for ids in batch(step).split(2):
                loss = loss_of(model(ids), ids)
                (loss / BATCHES).backward()
                losses.append(loss.detach())
            optimizer.step()
            move_biases([model], step)
            probe.step(loss=torch.stack(losses).mean())
            optimizer.zero_grad()


CUTS = [[0], [1, 2, 3], [4], [5, 6, 7]]
"""Layers of four stages: uneven, and the first has no router."""
SINGLE = {"gpipe": pipelining.ScheduleGPipe, "1f1b": pipelining.Schedule1F1B}
SEVERAL = {
    "interleaved": pipelining.ScheduleInterleaved1F1B,
    "zero bubble": pipelining.ScheduleInterleavedZeroBubble,
    "zbv": pipelining.schedules.ScheduleZBVZeroBubble,
}

EVALUATES = ("ScheduleGPipe", "Schedule1F1B", "ScheduleInterleaved1F1B")
"""Others cannot, nor a stage under DDP."""


def made(numbers: Sequence[int]) -> list[Any]:
    """The stages of these numbers, of as many as there are layers: one layer each."""
    return [
        pipelining.PipelineStage(
            Stage([n], n == 0, n == LAYERS - 1), n, LAYERS, torch.device("cpu")
        )
        for n in numbers
    ]


def train(
    schedule: Any,
    stages: Sequence[Any],
    folder: Path,
    given: Any,
    share: tuple[int, int] = (0, 1),
    after: Any = lambda: None,
    masks: str = "",
) -> None:
    """``share``: number of this rank among those that share the batch, and how many they are;
    ``after``: called before the optimizer step."""
    modules = [stage.submod for stage in stages]
    parameters = [p for module in modules for p in module.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1, foreach=False)
    first, last = any(s.is_first for s in stages), any(s.is_last for s in stages)
    with attach(given, folder, saliency=True) as probe:
        for step in range(1, 3 if masks else STEPS + 1):
            ids, losses = batch(step).chunk(share[1])[share[0]], list[Tensor]()
            inputs, target = [ids] if first else [], ids if last else None
            more = {"attention_mask": mask(step)} if first and masks == "mask of the first" else {}
            if masks == "mask given":
                probe.mask(mask(step))
            schedule.step(*inputs, target=target, losses=losses, **more)
            after()
            optimizer.step()
            move_biases(modules, step)
            probe.step(loss=torch.stack(losses).mean() if losses else None)
            optimizer.zero_grad()
            if step == 2 and type(schedule).__name__ in EVALUATES and share[1] == 1:
                schedule.eval(*inputs, target=target)


def shapes(first: bool, last: bool) -> dict[str, Tensor]:
    """Of what a stage takes and gives; without them torch runs a pass to find them."""
    hidden = torch.zeros(2, 16, 32, dtype=torch.float64, requires_grad=True)
    logits = torch.zeros(2, 16, VOCABULARY, dtype=torch.float64)
    ids = torch.zeros(2, 16, dtype=torch.long)
    return {"input_args": ids if first else hidden, "output_args": logits if last else hidden}


def single(kind: str, folder: Path, rank: int) -> None:
    module = Stage(CUTS[rank], rank == 0, rank == 3)
    given = {} if kind == "1f1b" else shapes(rank == 0, rank == 3)
    stage = pipelining.PipelineStage(module, rank, 4, torch.device("cpu"), **given)
    schedule = SINGLE[kind](stage, BATCHES, loss_fn=loss_of)
    train(schedule, [stage], folder, stage if kind == "1f1b" else module)


def several(kind: str, folder: Path, rank: int) -> None:
    stages = made([rank, 7 - rank] if kind == "zbv" else [rank, rank + 4])
    train(SEVERAL[kind](stages, BATCHES, loss_fn=loss_of), stages, folder, stages)


def combined(kind: str, folder: Path, rank: int) -> None:
    """Two stages, and two ranks that share the batch or also the experts."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("stages", kind))
    stage, share = mesh.get_local_rank("stages"), mesh.get_local_rank(kind)
    module: Any = Stage([[0, 1, 2], range(3, LAYERS)][stage], stage == 0, stage == 1)
    group = mesh.get_group(kind)
    if kind == "experts":
        split_experts(module, mesh)
    else:
        module = nn.parallel.DistributedDataParallel(module, process_group=group)

    def average() -> None:
        for parameter in module.parameters() if kind == "experts" else ():
            if hasattr(parameter.grad, "to_local"):
                parameter.grad.to_local().div_(2)
            else:
                dist.all_reduce(parameter.grad, op=dist.ReduceOp.SUM, group=group)
                parameter.grad.div_(2)

    staged = pipelining.PipelineStage(
        module, stage, 2, torch.device("cpu"), group=mesh.get_group("stages"),
        **shapes(stage == 0, stage == 1),
    )  # fmt: skip
    schedule = pipelining.Schedule1F1B(staged, BATCHES // 2, loss_fn=loss_of)
    train(schedule, [staged], folder, staged, (share, 2), average)


def split_experts(module: Stage, mesh: Any) -> None:
    """As transformers splits them over ranks with different tokens."""
    from transformers.distributed.expert_parallel import apply_expert_parallelism

    alone = init_device_mesh("cpu", (4, 1), mesh_dim_names=("all", "tp"))["tp"]
    for number in module.layers:
        experts = f"layers.{number}.mlp.experts"
        if number != "0":
            plan = {f"{experts}.{name}": "grouped_gemm" for name in ("gate_up_proj", "down_proj")}
            plan[experts] = "ep_dispatch_experts"
            apply_expert_parallelism(module, mesh["experts"], alone, plan)


class Split(Model):
    """A model without attention, whose layers see a part of the sequences or all of them."""

    def __init__(self, mesh: Any, of_sequence: bool) -> None:
        super().__init__()
        self.mesh, self.of_sequence = mesh, of_sequence
        self.mark = nn.Parameter(distribute_tensor(torch.zeros(2), mesh, [Replicate()]))

    def forward(self, input_ids: Tensor, attention_mask: Any = None, **more: Any) -> Tensor:
        hidden = self.embed(input_ids)
        if self.of_sequence:
            hidden = hidden.chunk(self.mesh.size(), dim=1)[self.mesh.get_local_rank()]
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


def flat(kind: str, folder: Path, rank: int) -> None:
    """Without stages: the sequences, or the work on them, are split over ranks, or all ranks do the
    same and one is told to count."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    is_split = kind in ("tensor", "sequence")
    model = Split(mesh["tp"], kind == "sequence") if is_split else Model()
    ids, real = batch(1) % VOCABULARY_HERE, mask(1)
    parts = [t.chunk(2)[rank // 2] if is_split else t for t in (ids, real)]
    if kind == "context":
        parts = [t.chunk(4, dim=1)[rank] for t in parts]
    counts = rank == 2 if kind == "told" else None
    with attach(model, folder, routers=ROUTERS, counts=counts) as probe:
        model(parts[0], attention_mask=parts[1]).sum().backward()
        probe.step()


def masked(kind: str, folder: Path, rank: int) -> None:
    stages = made([rank, 7 - rank])
    schedule = SEVERAL["zbv"](stages, BATCHES, loss_fn=loss_of)
    train(schedule, stages, folder, stages, masks=kind)


def wrong(kind: str, folder: Path, rank: int) -> None:
    """Every rank has layers of its own, and trains them alone; the probe does not know more."""
    torch.manual_seed(rank)
    model = Stage([[1, 2], [3, 4], [5, 6], [7]][rank], True, True, anew=kind != "falls behind")
    depths = {f"layers.{n}": 1 + 2 * rank + n for n in range(len(model.layers))}
    given = {"depths": depths} if kind in ("depths", "fails") else {}
    sums = mock.Mock(side_effect=dist.all_reduce)
    with attach(model, folder, **given) as probe, mock.patch.object(dist, "all_reduce", sums):
        for step in range(1, 5):
            if kind == "fails" and rank == 2 and step == 2:
                probe.sites[4].read = mock.Mock(side_effect=RuntimeError("made to fail"))
            if kind == "falls behind" and step == 4:
                ranks.LIMIT_S = 1
            loss_of(model(batch(step)), batch(step)).backward()
            if kind != "falls behind" or rank < 3 or step < 3:
                sums.reset_mock()
                probe.step(step=step)
                started = [0, 2, 1, 1][step - 1]  # the first is started with the second
                assert sums.call_count == (not probe.is_over) * started
    sys.stderr.write(f"{kind}: trained {step} steps\n")


WARM_UPS = ("warm-up 1", "warm-up 2", "warm-up 3", "given depths, warm-up 1")


def warms_up(kind: str, folder: Path, rank: int) -> None:
    """Every rank trains the same weights alone; the first steps, their number in ``kind``, leave
    them as they are."""
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    depths = {"layers.1": 1, "layers.2": 2} if "given depths" in kind else None
    with attach(model, folder, routers=ROUTERS, depths=depths) as probe:
        for step in range(1, 6):
            optimizer.param_groups[0]["lr"] = 0.1 * (step > int(kind[-1]))
            optimizer.zero_grad()
            model(batch(4 * step + rank) % VOCABULARY_HERE).square().mean().backward()
            optimizer.step()
            probe.step()
    sys.stderr.write(f"{kind}: trained {step} steps\n")


class Small(nn.Module):
    """One layer, under its number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        torch.manual_seed(number)
        self.layers = nn.ModuleDict({str(number): Block()})

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layers.values():
            hidden = layer(hidden)
        return hidden


def small(kind: str, folder: Path, rank: int) -> None:
    """Rank 1 compiles its layer, or its whole stage before or after ``attach``; or all stages have
    equal paths and weights."""
    number = 0 if kind == "equal stages" else rank
    module: Any = Small(number)
    layer, options = module.layers[str(number)], {"backend": "eager", "fullgraph": True}
    if kind == "compiled layer" and rank == 1:
        layer.compile(**options)
    is_whole = kind == "compiled stage" and rank == 1
    given = torch.compile(module, **options) if is_whole else module
    stage = pipelining.PipelineStage(given, rank, 4, torch.device("cpu"))
    schedule = pipelining.ScheduleGPipe(stage, BATCHES, loss_fn=lambda out, _: out.square().mean())
    try:
        probe = attach(stage, folder, routers={f"layers.{number}.gate": ADAPTER})
    except ValueError as error:
        sys.stderr.write(f"{kind}: {error}\n")
        return
    if kind == "compiled later" and rank == 1:
        module.compile(**options)
    inputs = [torch.randn(2 * BATCHES, 5, WIDTH)] if rank == 0 else []
    with probe:
        for _ in range(2):
            schedule.step(*inputs, target=torch.zeros(2 * BATCHES))
            probe.step()
            schedule.eval(*inputs, target=torch.zeros(2 * BATCHES))


CASES: dict[str, Any] = {
    **dict.fromkeys(SINGLE, single),
    **dict.fromkeys(SEVERAL, several),
    **dict.fromkeys(("data", "experts"), combined),
    **dict.fromkeys(("context", "tensor", "sequence", "told"), flat),
    **dict.fromkeys(("mask given", "mask of the first"), masked),
    **dict.fromkeys(("compiled layer", "compiled stage", "compiled later", "equal stages"), small),
    **dict.fromkeys(WARM_UPS, warms_up),
    **dict.fromkeys(("same names", "depths", "fails", "falls behind"), wrong),
}


def one_rank(folder: Path, cases: Sequence[str], rank: int) -> None:
    os.dup2(os.open(folder / f"{rank}.txt", os.O_WRONLY | os.O_CREAT), sys.stderr.fileno())
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=4)
    for case in cases:
        CASES[case](case, folder / case, rank)
        dist.barrier()
    sys.stderr.flush()


def main(folder: Path, cases: Sequence[str]) -> int:
    warnings.simplefilter("default")  # those of torch are not our errors
    deepseek()  # imports much, once for all
    children = fork_ranks(4, partial(one_rank, folder, cases))
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
