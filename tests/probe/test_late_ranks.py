"""Ranks that come late, or miss a call: no training waits for them longer than its own sums do.

``python -m tests.probe.test_late_ranks FOLDER RANK KIND`` is one rank of two.
"""

import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from microscope_tui.probe import attach, ranks
from microscope_tui.probe.alignment import Alignment, OptimizerSteps, alignment_of
from tests.forked import ForkServer
from tests.probe.layers import ROUTERS, TOP_K, Model, records

LIMIT_S = 1
LATE_S = 2.2
STEPS = 7


def main(folder: Path, rank: int, kind: str) -> None:
    """A training of seven steps over two ranks; what is odd in it follows from ``kind``."""
    warnings.simplefilter("default")  # those of torch are not our errors
    logging.basicConfig()
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    ranks.LIMIT_S = LIMIT_S if "late" in kind else 60
    ranks.WORD_S = ranks.AGAIN_S = 1
    if kind == "every":
        with pytest.raises(ValueError, match="every is 1 on rank 0 and 2 on rank 1: pass the same"):
            attach(Model(), folder / kind, routers=ROUTERS, every=1 + rank)
        return
    if kind == "attach" and rank == 1:
        time.sleep(LATE_S)
    if kind == "absent" and rank == 1:
        time.sleep(60)
    ranks.ATTACH_S = 2 if kind == "absent" else 60
    every = 3 if "every third" in kind else 1
    model = Model()
    probe = attach(model, folder / kind, routers=ROUTERS, every=every)
    train(model, probe, rank, kind)
    probe.detach()
    sys.stderr.write("trained\n")


def train(model: Any, probe: Any, rank: int, kind: str) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)  # replicas stay equal
    steps = {"one step": 1, "every third": 18}.get(kind, STEPS)
    for step in range(1, steps + 1):
        if kind != "late alone":
            dist.barrier()  # as gradients of other ranks do
        ids = torch.full((1 + rank, 10 * step), 3)
        model(ids).sum().backward()
        skips = {"skips": (1, 3), "skips on most": (0, 3)}  # as a loss scale in fp16 does
        if (rank, step) != skips.get(kind):
            optimizer.step()
        if kind == "two steps each" and rank == 1:
            optimizer.step()
        optimizer.zero_grad()
        if rank == 1 and (kind, step) in (("late", 1), ("late alone", 1), ("late later", 4)):
            time.sleep(LATE_S)
        misses = {"missed": (1, 3), "writer": (0, 3), "first": (1, 1), "numbered": (1, 3)}
        if (rank, step) == misses.get(kind) or (kind, rank, step) == ("every third", 1, 4):
            continue
        probe.step(step=step if kind == "numbered" else None)


def run(server: ForkServer, folder: Path, kind: str) -> list[str]:
    """What the ranks print; both end in time, and without an exception."""
    module = "tests.probe.test_late_ranks"
    both = [server.start("-m", module, str(folder), str(rank), kind) for rank in (0, 1)]
    printed = [one.communicate(timeout=50)[1] for one in both]
    assert [one.returncode for one in both] == [0, 0], "\n".join(printed)
    return printed


def tokens_of(folder: Path) -> dict[int, tuple[int, str]]:
    """Step → its tokens per router, and what its line lacks."""
    return {
        line["step"]: (sum(line["tokens_per_expert"][0]) // TOP_K, line.get("incomplete", ""))
        for line in records(folder)
    }


def whole(step: int) -> tuple[int, str]:
    return 30 * step, ""


@pytest.mark.parametrize("kind", ["late", "late later"])
def test_a_rank_that_others_wait_for_in_the_training_loses_no_line(
    kind: str, fork_server: ForkServer, tmp_path: Path
) -> None:
    run(fork_server, tmp_path, kind)
    found = tokens_of(tmp_path / kind)
    assert found == {step: whole(step) for step in range(1, STEPS + 1)}


def test_a_rank_that_is_too_late_ends_the_probe_on_all_and_no_training(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    first, second = run(fork_server, tmp_path, "late alone")
    assert "these ranks are behind: rank 1 (step 0)" in first
    assert first.endswith("trained\n")
    assert second.endswith("trained\n")


def test_a_single_step_is_written_by_detach(fork_server: ForkServer, tmp_path: Path) -> None:
    run(fork_server, tmp_path, "one step")
    assert tokens_of(tmp_path / "one step") == {1: whole(1)}


def test_another_every_on_a_rank_is_refused_on_all(fork_server: ForkServer, tmp_path: Path) -> None:
    run(fork_server, tmp_path, "every")


def test_attach_names_the_ranks_that_it_waits_for(fork_server: ForkServer, tmp_path: Path) -> None:
    first, second = run(fork_server, tmp_path, "attach")
    assert first.count("s for rank 1: call it on every rank") in (1, 2)
    assert "call it on every rank" not in second
    assert len(tokens_of(tmp_path / "attach")) == STEPS


def test_attach_gives_up_on_a_rank_that_does_not_call_it(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    module = "tests.probe.test_late_ranks"
    both = [fork_server.start("-m", module, str(tmp_path), str(n), "absent") for n in (0, 1)]
    errors = both[0].communicate(timeout=50)[1]
    both[1].kill()
    assert both[0].returncode == 1
    assert "RuntimeError: attach has waited 2 s for rank 1" in errors


@pytest.mark.parametrize(
    ("kind", "lacking"),
    [
        ("missed", {3: (30 + 60 + 80, "rank 1 counted step 4"), 4: (40, "rank 1 did not count")}),
        ("numbered", {3: (30 + 60 + 80, "rank 1 counted step 4"), 4: (40, "rank 1 did not count")}),
        ("writer", {3: (60 + 30 + 40, "rank 0 counted step 4"), 4: (80, "rank 0 did not count")}),
        (
            "first",
            {
                1: (10 + 20 + 40, "rank 1 counted step 2"),
                2: (20 + 60, "rank 1 counted step 3"),
                3: (30, "rank 1 did not count"),
            },
        ),
    ],
)
def test_after_a_missed_call_only_lines_that_mix_steps_or_lack_a_rank_are_incomplete(
    kind: str, lacking: dict[int, tuple[int, str]], fork_server: ForkServer, tmp_path: Path
) -> None:
    first, _ = run(fork_server, tmp_path, kind)
    found = tokens_of(tmp_path / kind)
    assert found == {step: lacking.get(step, whole(step)) for step in range(1, STEPS + 1)}
    if kind != "numbered":
        rank = int(kind != "writer")
        assert first.count(f"rank {rank} has not called probe.step once for every step") == 1


def test_a_missed_call_between_logged_steps_moves_the_later_ones_of_its_rank(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    run(fork_server, tmp_path, "every third")
    found = tokens_of(tmp_path / "every third")
    mixed = {6: 7, 9: 10, 12: 13}  # by then the optimizer has proved steady
    assert {step: one[1] for step, one in found.items()} == {
        step: f"rank 1 counted step {mixed[step]}" if step in mixed else ""
        for step in (3, 6, 9, 12, 15, 18)
    }
    assert found[15] == whole(15)


@pytest.mark.parametrize("kind", ["skips", "skips on most", "two steps each"])
def test_optimizers_that_step_otherwise_move_no_rank(
    kind: str, fork_server: ForkServer, tmp_path: Path
) -> None:
    first, _ = run(fork_server, tmp_path, kind)
    found = tokens_of(tmp_path / kind)
    doubtful = (1, 2) if kind == "two steps each" else ()
    assert {step: one[0] for step, one in found.items()} == {
        step: 30 * step for step in range(1, STEPS + 1)
    }
    assert {step for step, one in found.items() if one[1]} == {*doubtful}
    assert "has not called probe.step" not in first


def aligned(*sent: tuple[int, int, int], begin: int = 0) -> Alignment:
    return alignment_of([float(one) for rank in sent for one in rank], begin)


def test_without_an_optimizer_the_numbers_of_the_steps_alone_are_compared() -> None:
    found = aligned((5, -1, 1), (6, -1, 1), (5, -1, 1))
    assert found.corrections == {}
    assert found.text() == "rank 1 counted step 6"
    assert [found.ahead(rank) for rank in range(3)] == [0, 1, 0]


def test_a_rank_without_routers_or_with_another_optimizer_counts_no_steps() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    for sites in ([], [mock.Mock(router=torch.nn.Linear(1, 1))]):
        counted = OptimizerSteps(sites)
        torch.optim.SGD([weight]).step()
        assert counted.sent(1, numbered=False) == (1, -1, 1)
        counted.forget()


def test_a_rank_is_corrected_once_its_optimizer_is_steady() -> None:
    assert aligned((5, 5, 2), (5, 6, 2), (5, 5, 2)).corrections == {1: 1}
    unsteady = aligned((5, 5, 2), (5, 6, 1), (5, 5, 2))
    assert (unsteady.corrections, unsteady.text()) == ({}, "rank 1 counted step 6")


def test_steps_that_optimizers_skip_change_nothing() -> None:
    for ranks_sent in ([3, 3, 3], [3, 5, 5], [3, 3, 5], [0, 0, 5]):
        found = aligned(*((5, made, 2) for made in ranks_sent))
        assert (found.corrections, found.text()) == ({}, "")


def test_of_equally_many_ranks_those_that_began_with_the_others_are_right() -> None:
    assert aligned((5, 6, 2), (5, 5, 2)).corrections == {0: 1}
    assert aligned((5, 5, 2), (5, 6, 2)).corrections == {1: 1}
    assert aligned((15, 6, 2), (15, 5, 2), begin=10).corrections == {0: 1}


def test_all_ranks_may_make_two_steps_for_each_of_the_trainer() -> None:
    found = aligned((5, 10, 2), (5, 11, 2), (5, 10, 2))
    assert found.corrections == {1: 1}
    assert aligned((5, 10, 1), (5, 10, 1)).text() == ""


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
