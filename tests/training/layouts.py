"""Runs of the trainer on several ranks, forked once for many runs:
``python -m tests.training.layouts RANKS FOLDER``.

Standard input is JSON: for each run its name, its flags, a port, and the step after which rank 0
gets SIGTERM (or null). Rank 0 writes what its steps returned, unrounded, to ``FOLDER/NAME.json``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.forked import ForkServer, free_port
from tests.training.worlds import fork_ranks

MICRO_BATCHES = 4
"""In a step, over all ranks: what makes layouts comparable, also with a capacity."""


@dataclass(frozen=True)
class Layout:
    """How many ranks, how many of them share the experts, and what all else does."""

    ranks: int = 1
    experts: int = 1
    kind: str = "ddp"

    def __str__(self) -> str:
        return f"{self.kind}-{self.ranks}-{self.experts}" if self.ranks > 1 else "one"

    @property
    def flags(self) -> list[str]:
        accumulate = f"--grad-accum={MICRO_BATCHES // self.ranks}"
        if self.ranks == 1:
            return [accumulate]
        return [accumulate, f"--parallel={self.kind}", f"--expert-parallel={self.experts}"]


Row = tuple[str, Sequence[str], str, int | None]


def row(name: str, flags: Sequence[str], until: int | None = None) -> Row:
    return name, flags, free_port(), until


def run_rows(server: ForkServer, ranks: int, folder: Path, rows: Sequence[Row]) -> dict[str, Any]:
    """The steps of each run by name; fails if a rank of any failed."""
    given = json.dumps(rows).encode()
    program = server.start("-m", "tests.training.layouts", str(ranks), str(folder), given=given)
    code = program.wait(timeout=1800)
    assert code == 0, program.printed()
    return {name: json.loads((folder / f"{name}.json").read_text("utf-8")) for name, *_ in rows}


def assert_equal_steps(found: list[Any], expected: list[Any], exactly: int = 10) -> None:
    """The same run: losses, and the gradient norms, those of the first steps more ``exactly``."""
    assert len(found) == len(expected) > 0
    for step, (here, there) in enumerate(zip(found, expected, strict=True), 1):
        for exact in ("tokens", "tokens_per_expert", "expert_bias"):
            assert here[exact] == there[exact], (step, exact)
        assert here["loss"] == pytest.approx(there["loss"], abs=1e-5), step
        assert here["losses"] == pytest.approx(there["losses"], abs=1e-5), step
        close = 1e-5 if step <= exactly else 2e-4
        assert here["grad_norm"] == pytest.approx(there["grad_norm"], rel=close), step


def one_rank(rank: int, ranks: int, rows: list[Row], folder: Path) -> None:
    trainer = import_module("train")
    console = import_module("moe_model.training.console")
    console.SAMPLE_TOKENS = 4
    plain, records = trainer.optimizer_step, []

    def step(run: Any, at: int) -> dict[str, Any]:
        record: dict[str, Any] = plain(run, at)
        records.append({k: v.tolist() if hasattr(v, "tolist") else v for k, v in record.items()})
        if at == until and rank == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return record

    trainer.optimizer_step = step
    for name, flags, port, until in rows:
        records.clear()
        os.environ["MASTER_PORT"] = port
        if ranks == 1:
            os.environ.pop("RANK", None)
        code = trainer.run_command(trainer.app, flags)
        assert code == (0 if until is None else 75), (name, code)
        if rank == 0:
            (folder / f"{name}.json").write_text(json.dumps(records, default=float), "utf-8")


def main(ranks: int, folder: Path) -> int:
    torch.set_num_threads(1)
    import_module("torch._dynamo")
    rows = json.load(sys.stdin)
    children = fork_ranks(ranks, partial(one_rank, ranks=ranks, rows=rows, folder=folder))
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2])))
