"""Two processes that train together: one log, and counts that are the sum of what both saw."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.forked import ForkServer
from tests.probe.layers import records

SCRIPT = """
import sys, json, pathlib, torch, torch.distributed as dist
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
dist.destroy_process_group()
"""


@pytest.fixture
def train_on_two(fork_server: ForkServer, tmp_path: Path) -> Callable[[str, str], list[str]]:
    """Train three steps; what both processes printed on standard error."""

    def run(kind: str, broken: str) -> list[str]:
        words = ("-c", SCRIPT, kind, broken, str(tmp_path))
        ranks = [fork_server.start(*words, str(rank)) for rank in range(2)]
        errors = [rank.communicate()[1] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0, 0], errors
        return errors

    return run


def seen(folder: Path, rank: int) -> list[list[list[int]]]:
    import json

    steps: list[list[list[int]]] = json.loads((folder / f"seen{rank}.json").read_text())
    return steps


def added(one: list[list[int]], two: list[list[int]]) -> list[list[int]]:
    return [[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(one, two, strict=True)]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_ranks_write_one_log_with_the_sum_of_their_counts(
    kind: str, train_on_two: Callable[[str, str], list[str]], tmp_path: Path
) -> None:
    train_on_two(kind, "sound")
    lines = records(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line, one, two in zip(lines, seen(tmp_path, 0), seen(tmp_path, 1), strict=True):
        assert line["tokens"] == 2 * 6 + 2 * 7
        assert line["tokens_per_expert"] == added(one, two)
        assert "incomplete" not in line


def test_training_continues_where_the_probe_of_one_rank_fails_and_lines_say_so(
    train_on_two: Callable[[str, str], list[str]], tmp_path: Path
) -> None:
    errors = train_on_two("fsdp", "broken")
    assert errors[1].count("made to fail") == 1  # one warning, not one a step
    first, *rest = records(tmp_path / "run")
    assert "incomplete" not in first
    assert [line["step"] for line in rest] == [2, 3]
    for line, one in zip(rest, seen(tmp_path, 0)[1:], strict=True):
        assert line["incomplete"] == "1 ranks did not count"
        assert line["tokens_per_expert"] == one
