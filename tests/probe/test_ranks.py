"""Two processes that train together: one log, and counts that are the sum of what both saw.

``python -m tests.probe.test_ranks FOLDER RANK`` is one of them; what it saw is in ``FOLDER``.
"""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn

from benchmarks.families.tiny import build
from microscope_tui.probe import attach
from tests.forked import ForkServer
from tests.probe.layers import records
from tests.probe.real_text import small_mixtral
from tests.probe.test_still import Setup, changed, looks, run, step_in_backward, without_gradients

Counts = list[list[int]]
"""Of the layers and their experts."""


def main(folder: Path, rank: int) -> None:
    """All that the tests look at, one after the other in the same two processes."""
    warnings.simplefilter("default")  # those of torch are not our errors
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    plain = build("mixtral")
    seen = {"ddp": train(nn.parallel.DistributedDataParallel(plain), plain, folder / "ddp")}
    for kind in ("fsdp", "broken"):
        model = sharded(build("mixtral"))
        seen[kind] = train(model, model, folder / kind, breaks=kind == "broken" and rank == 1)
    for kind, setup in STILL.items():
        model = sharded(setup.model()) if "fsdp" in kind else setup.model()
        run(setup, folder / kind, model)
    seen["alone"], seen["norms"] = split_models(folder, rank)
    split_numbers(folder / "numbers", rank)
    (folder / f"seen{rank}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()
    sys.stderr.flush()
    os._exit(0)  # threads of torch abort the end of the interpreter now and then


def ddp() -> Any:
    return nn.parallel.DistributedDataParallel(small_mixtral())


STILL = {
    "still ddp": Setup(ddp),
    "still fsdp": Setup(),
    "still fsdp, no gradients": Setup(changed(without_gradients)),
    "still fsdp, in backward": Setup(in_backward=step_in_backward),
}


def sharded(model: Any) -> Any:
    from torch.distributed.fsdp import fully_shard

    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train(model: Any, inner: Any, folder: Path, breaks: bool = False) -> list[Counts]:
    """Three steps; what the experts of this rank got. The probe ``breaks`` in the second."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    chosen: list[Any] = []
    for layer in inner.model.layers:
        layer.mlp.experts.register_forward_pre_hook(lambda _, args: chosen.append(args[1].clone()))
    made = torch.Generator().manual_seed(dist.get_rank())
    steps = []
    with attach(model, folder) as probe:
        for number in range(3):
            if breaks and number == 1:
                probe.sites[0].read = mock.Mock(side_effect=RuntimeError("made to fail"))
            ids = torch.randint(3, 90, (2, 6 + dist.get_rank()), generator=made)
            chosen.clear()
            output = model(input_ids=ids, labels=ids)
            steps.append([torch.bincount(c.flatten(), minlength=8).tolist() for c in chosen])
            output.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            probe.step(loss=output.loss)
    return steps


def split_models(folder: Path, rank: int) -> tuple[Counts, list[float]]:
    """A step of the same model and tokens, tensor parallel and expert parallel; what the routers of
    the whole model choose, and the norms of their gradients."""
    from transformers.distributed import DistributedConfig

    whole = build("mixtral", output_router_logits=True)
    if rank == 0:
        whole.save_pretrained(folder / "weights")
    dist.barrier()
    ids = torch.randint(3, 90, (2, 8), generator=torch.Generator().manual_seed(0))
    gates, chosen = [layer.mlp.gate for layer in whole.model.layers], []
    for gate in gates:
        gate.register_forward_hook(lambda module, args, out: chosen.append(out[2].flatten()))
    whole.train()(input_ids=ids, labels=ids).loss.backward()
    for kind, sizes in {"tensor": {"tp_size": 2}, "expert": {"tp_size": 2, "ep_size": 2}}.items():
        config = DistributedConfig(**sizes)
        model = type(whole).from_pretrained(folder / "weights", distributed_config=config).train()
        with attach(model, folder / kind) as probe:
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            probe.step(loss=loss)
    counts = [torch.bincount(ids, minlength=8).tolist() for ids in chosen]
    return counts, [float(gate.weight.grad.norm()) for gate in gates]


def split_numbers(folder: Path, rank: int) -> None:
    """Two steps whose numbers are DTensors made by hand, of which each rank has a part."""
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
    from torch.distributed.tensor._ops._math_ops import _NormPartial

    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))

    def part(own: float, placement: Any) -> Any:
        return DTensor.from_local(torch.tensor(own), mesh, [placement], run_check=False)

    model = build("mixtral")
    with attach(model, folder) as probe:
        for step in (1, 2):
            ids = torch.randint(3, 90, (2, 8))
            model(input_ids=ids, labels=ids).loss.backward()
            losses = {"sum": part(1.0 + rank, Partial()), "avg": part(1.0 + rank, Partial("avg"))}
            losses |= {"same": part(2.5, Replicate()), "largest": part(1.0, Partial("max"))}
            if rank:
                losses["of one rank"] = part(1.0, Partial())
            if step == 2:
                losses["later"] = part(1.0, Partial())
            split = DTensor.from_local(torch.ones(1), mesh, [Shard(0)], run_check=False)
            probe.step(
                loss=part(2.0 * rank, Partial()),
                losses=losses,
                grad_norm=part(5.49, _NormPartial(2)),
                learning_rate=split,
            )


class Trained(NamedTuple):
    folder: Path
    seen: list[dict[str, Any]]
    """By rank."""
    errors: list[str]
    """Standard error of each rank."""


@pytest.fixture(name="trained", scope="module")
def _trained(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("ranks")
    module = "tests.probe.test_ranks"
    ranks = [fork_server.start("-m", module, str(folder), str(rank)) for rank in (0, 1)]
    errors = [rank.communicate()[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(errors)
    seen = [json.loads((folder / f"seen{rank}.json").read_text()) for rank in (0, 1)]
    return Trained(folder, seen, errors)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_ranks_write_one_log_with_the_sum_of_their_counts(kind: str, trained: Trained) -> None:
    lines = records(trained.folder / kind)
    assert [line["step"] for line in lines] == [1, 2, 3]
    first, second = (torch.tensor(seen[kind]) for seen in trained.seen)
    assert [line["tokens_per_expert"] for line in lines] == (first + second).tolist()
    for line in lines:
        assert line["tokens"] == 2 * 6 + 2 * 7
        assert "incomplete" not in line


@pytest.mark.parametrize("kind", STILL)
def test_gradients_of_other_ranks_count(kind: str, trained: Trained) -> None:
    found = (17, 16 if "no gradients" in kind else 0)
    for row in looks(trained.folder / kind)[2:]:
        # FSDP2 runs the optimizers itself: those gradients are not seen.
        assert all(one[1] == 0 for one in row) if "in backward" in kind else row == [found] * 2


def test_training_continues_if_a_probe_fails_and_lines_are_incomplete(trained: Trained) -> None:
    assert trained.errors[1].count("made to fail") == 1  # one warning, not one per step
    _, *rest = lines = records(trained.folder / "broken")
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert [line.get("incomplete") for line in lines] == [None] + ["1 ranks did not count"] * 2
    assert [line["tokens_per_expert"] for line in rest] == trained.seen[0]["broken"][1:]


@pytest.mark.parametrize("kind", ["tensor", "expert"])
def test_parallel_ranks_count_their_common_tokens_once(kind: str, trained: Trained) -> None:
    (line,) = records(trained.folder / kind)
    assert line["tokens"] == 16
    assert line["tokens_per_expert"] == trained.seen[0]["alone"]
    assert line["router"]["grad_norm"] == pytest.approx(trained.seen[0]["norms"], rel=1e-3)
    assert "incomplete" not in line


def test_numbers_that_are_split_over_ranks_are_logged_whole(trained: Trained) -> None:
    for line in records(trained.folder / "numbers"):
        assert "incomplete" not in line
        assert line["loss"] == pytest.approx(2.0)
        assert line["grad_norm"] == pytest.approx(7.764, abs=1e-3)  # not 10.98
        assert line["losses"] == pytest.approx({"sum": 3.0, "avg": 1.5, "same": 2.5})
    warnings = trained.errors[0]
    assert warnings.count("losses.largest is a DTensor of parts that are not added up") == 1
    assert warnings.count("learning_rate is a DTensor that is split") == 1
    assert warnings.count("losses.later was not split like this in the first logged step") == 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
