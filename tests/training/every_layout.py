"""``make test-ranks``: every way to divide ranks and experts makes the run of one process.

Not part of ``make test``, which runs some rows of ``test_expert_parallel.py``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.forked import ForkServer
from tests.training.conftest import SMALL, last_of_each, log_of
from tests.training.layouts import Layout, assert_equal_steps, row, run_rows
from tests.training.test_ranks import check
from tests.training.test_training_over_ranks import end, start_as_ranks

LAYOUTS = [
    Layout(ranks, experts, kind)
    for ranks, experts in ((2, 1), (2, 2), (4, 1), (4, 2), (4, 4))
    for kind in ("ddp", "fsdp")
]
WAYS = {
    "dropless": ["--balance=aux", "--seq-aux-weight=0", "--z-loss-weight=1e-3"],
    "dropless-mtp": ["--mtp", "--activation-checkpointing"],
    "capacity": ["--capacity-factor=1.0", "--balance=none", "--seq-aux-weight=0"],
    "capacity-mtp": ["--capacity-factor=1.0", "--mtp"],
}
"""Not ``--drop-policy weight``: equal tokens have equal weights, so the last bit would decide."""
STEPS = 50
HALF = {"bf16": ["--dtype=bf16", "--steps=1"], "fp16": ["--dtype=fp16", "--steps=1"]}
HOPS = [
    Layout(), Layout(2, 2), Layout(4, 2, "fsdp"), Layout(4, 4), Layout(2, 2, "fsdp"),
    Layout(4, 1, "fsdp"), Layout(4, 2), Layout(4, 4, "fsdp"), Layout(2, 1), Layout(),
]  # fmt: skip
"""Each resumes the run of the one before: into every layout, and out of it."""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layouts")


@pytest.fixture(scope="session")
def flags(folder: Path, text_file: Path) -> Callable[..., list[str]]:
    common = [
        *SMALL, f"--data={text_file}", "--batch-size=2", f"--steps={STEPS}", "--eval-every=1000",
        "--save-every=1000", "--seq-aux-weight=1e-2", f"--log-dir={folder / 'logs'}",
        f"--checkpoint-dir={folder / 'ck'}",
    ]  # fmt: skip
    return lambda name, *more: last_of_each([*common, f"--run={name}", *more])


@pytest.fixture(scope="session")
def steps_of(
    fork_server: ForkServer, folder: Path, flags: Callable[..., list[str]]
) -> Callable[[int], Any]:
    """What all runs of a world returned, by name: ``LAYOUT-WAY``."""

    @cache
    def made(ranks: int) -> Any:
        rows = []
        for layout in LAYOUTS if ranks > 1 else [Layout()]:
            for way, more in (WAYS | HALF).items():
                if layout.ranks == ranks:
                    name = f"{layout}-{way}"
                    rows.append(row(name, flags(name, *layout.flags, *more)))
        return run_rows(fork_server, ranks, folder, rows)

    return made


@pytest.mark.parametrize(("layout", "way"), [*product(LAYOUTS, WAYS)], ids=str)
def test_every_layout_is_one_process(steps_of: Callable[[int], Any], layout: Any, way: str) -> None:
    found = steps_of(layout.ranks)[f"{layout}-{way}"]
    assert len(found) == STEPS
    assert_equal_steps(found, steps_of(1)[f"one-{way}"])


@pytest.mark.parametrize(("layout", "way"), [*product(LAYOUTS, HALF)], ids=str)
def test_half_precision_begins_alike(steps_of: Callable[[int], Any], layout: Any, way: str) -> None:
    (found,), (expected,) = steps_of(layout.ranks)[f"{layout}-{way}"], steps_of(1)[f"one-{way}"]
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-3)
    assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-2)


def test_transformers_has_equal_loss_and_gradients(fork_server: ForkServer, tmp_path: Path) -> None:
    program = fork_server.start("-m", "tests.training.transformers_ranks", str(tmp_path))
    assert program.wait() == 0
    check(tmp_path, "oracle", "oracle", 4)


def test_shards_are_read_by_every_layout_of_four(fork_server: ForkServer, tmp_path: Path) -> None:
    program = fork_server.start("-m", "tests.training.worlds", "shards", str(tmp_path))
    assert program.wait() == 0
    check(tmp_path, "4", "every_layout_reads_the_shards_of_any_other_and_of_one_rank", 4)


HOT = """
import sys, train
real = train.prepare
def prepare(options, world):
    run = real(options, world)
    for router in run.model.routers:
        router.expert_bias[2:4] += 0.05
    return run
train.prepare = prepare
sys.exit(train.run_command(train.app, sys.argv[1:]))
"""


def test_a_hot_rank_is_named_and_another_placement_relieves_it_later(
    fork_server: ForkServer, folder: Path, flags: Callable[..., list[str]]
) -> None:
    given = flags("hot", *Layout(4, 4).flags, "--steps=200", "--balance=none", "--seq-aux-weight=0")
    codes, errors = end(start_as_ranks(fork_server, *[given] * 4, program=["-c", HOT]))
    assert codes == [0] * 4, errors
    log = folder / "logs" / "hot"
    assert log_of(log)[0]["expert_parallel_size"] == 4
    check = fork_server.start("-m", "microscope_tui", "check", str(log)).communicate()[0]
    assert "4 ranks" in check
    assert "busiest rank (1)" in check
    assert "rank 1 (experts 2 to 3) of 4 expert-parallel ranks has" in check
    placed = fork_server.start("-m", "microscope_tui", "placement", str(log), "--json")
    found = json.loads(placed.communicate()[0])
    assert placed.returncode == 0
    assert found["pays"]
    assert found["chosen"]["held_out"] > found["today"]["held_out"] + 0.05


def test_a_run_hops_from_layout_to_layout(
    steps_of: Callable[[int], Any],
    fork_server: ForkServer,
    folder: Path,
    flags: Callable[..., list[str]],
) -> None:
    found: list[Any] = []
    for place, layout in enumerate(HOPS):
        last = place + 1 == len(HOPS)
        more = [*layout.flags, "--mtp", *([] if place == 0 else ["--resume=auto"])]
        rows = [row("hops", flags("hops", *more), None if last else 2 * place + 2)]
        found += run_rows(fork_server, layout.ranks, folder, rows)["hops"]
    assert_equal_steps(found, steps_of(1)["one-dropless-mtp"])
    shutil.rmtree(folder / "ck" / "hops")
