"""Experts that ranks share: the same run as one process, and the edges."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.forked import ForkServer
from tests.training.layouts import Layout, assert_equal_steps, row, run_rows

FEW = (
    "--steps=6", "--batch-size=2", "--eval-every=100", "--mtp", "--capacity-factor=1.0",
    "--router-noise=0.1",
)  # fmt: skip


def test_ranks_that_share_the_experts_drop_the_pairs_that_one_process_drops(
    fork_server: ForkServer, arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    found = {}
    for layouts in ([Layout()], [Layout(2, 2), Layout(2, 2, "fsdp")]):
        rows = [row(f"{one}", arguments(*FEW, f"--run={one}", *one.flags)) for one in layouts]
        found |= run_rows(fork_server, layouts[0].ranks, tmp_path, rows)
    one = found.pop("one")
    assert any(any(step["router"]["drop_rate"]) for step in one)
    for name, steps in found.items():
        assert [step["router"]["drop_rate"] for step in steps] == [
            step["router"]["drop_rate"] for step in one
        ], name
        assert_equal_steps(steps, one)
