"""What ranks see that do not agree: ``python -m tests.training.ranks_that_differ CLAIM FOLDER``."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from moe_model import UsageError, run_command
from moe_model.training import World, agree
from tests.training.conftest import ROOT, SMALL
from tests.training.worlds import fork_ranks, world_of

Step = Callable[[World], Any]
NO_TEXT = b"caf\xe9".decode("utf-8", "surrogateescape")


def faults(world: World, folder: Path) -> dict[str, Any]:
    """Every kind of fault in one world: after each the ranks are still in step."""
    seen: dict[str, Any] = {}
    for name, found_by in FOUND_BY.items():
        seen[name] = ended(world, lambda world, found_by=found_by: together(world, found_by))
        seen[f"{name} first"] = ended(
            world, lambda world, found_by=found_by: first(world, found_by)
        )
    seen["in step"] = world.any(world.rank == 1)
    return seen


FOUND_BY: dict[str, dict[int, Exception]] = {
    "nobody": {},
    "usage of all": {rank: UsageError("--steps 0 is too few.") for rank in range(3)},
    "usage of 2": {2: UsageError("--steps 0 is too few.")},
    "usage of 1 and 2": {rank: UsageError("--lr 0 is out of range.") for rank in (1, 2)},
    "two usages": {0: UsageError("--lr 0"), 2: UsageError("--steps 0")},
    "disk of 1": {1: OSError(28, "No space left on device")},
    "disk of 0": {0: OSError(28, "No space left on device")},
    "disk of all": {rank: OSError(28, "No space left on device") for rank in range(3)},
    "no text": {1: UsageError(f"--data {NO_TEXT}")},
    "no words": {1: KeyError()},
}


def together(world: World, found_by: dict[int, Exception]) -> str:
    with world.together():
        if world.rank in found_by:
            raise found_by[world.rank]
    return "well"


def first(world: World, found_by: dict[int, Exception]) -> str:
    entered = False
    try:
        with world.main_first():
            entered = True
            if world.rank in found_by:
                raise found_by[world.rank]
    finally:
        if not entered:
            NOT_ENTERED.append(world.rank)
    return "well"


NOT_ENTERED: list[int] = []


def ended(world: World, step: Step) -> list[Any]:
    """Kind and words of what ``step`` raised, and whether this rank stayed out of the block."""
    NOT_ENTERED.clear()
    try:
        return ["returned", step(world), False]
    except (Exception, SystemExit) as error:
        words = error.code if isinstance(error, SystemExit) else str(error)
        return [type(error).__name__, ascii(words), bool(NOT_ENTERED)]


def facts(world: World, folder: Path) -> dict[str, Any]:
    """The same facts, other ones, and one that a rank does not have."""
    mine = {"--seed": "0", "--lr": "0.1" if world.rank == 1 else "0.001", "--run": "räume"}
    missing = {"--seed": "0"} if world.rank == 2 else {"--seed": "0", "--mtp": "True"}
    return {
        "same": ended(world, lambda world: agree(world, {"--seed": "0"})),
        "other": ended(world, lambda world: agree(world, mine)),
        "missing": ended(world, lambda world: agree(world, missing)),
        "turns": turns(world, folder),
    }


def turns(world: World, folder: Path) -> bool:
    """Whether rank 0 was in the block before this one."""
    file = folder / "downloaded"
    with world.main_first():
        before = file.exists()
        file.touch()
    return before


def runs(folder: Path) -> None:
    """Whole runs of two ranks whose command lines, or folders of their own, differ."""
    spec = importlib.util.spec_from_file_location("train", ROOT / "train.py")
    assert spec is not None
    assert spec.loader is not None
    trainer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(trainer)
    lines = [f"{n} of {n * 7 % 13} routers sends token {n * n % 97}.\n" for n in range(100)]
    for own, text in (("own-0", lines), ("own-1", lines[::-1])):
        (folder / own).mkdir()
        (folder / own / "text.txt").write_text("".join(text), "utf-8")

    def run(name: str, *of_each: Sequence[str]) -> None:
        def one_rank(rank: int) -> int:
            os.chdir(folder / f"own-{rank}")
            said = os.open(folder / f"{name}-{rank}.txt", os.O_WRONLY | os.O_CREAT)
            os.dup2(said, 2)
            flags = [*SMALL, "--steps=2", "--parallel=ddp", f"--log-dir={folder / 'logs'}"]
            flags += [f"--data={folder / 'own-0' / 'text.txt'}", f"--run={name}"]
            flags += of_each[min(rank, len(of_each) - 1)]
            return run_command(trainer.app, list({f.split("=")[0]: f for f in flags}.values()))

        codes = fork_ranks(2, one_rank)
        (folder / f"{name}.json").write_text(str(codes), "utf-8")

    shared = f"--checkpoint-dir={folder / 'ck'}"
    run("lr", [shared], [shared, "--lr=0.1"])
    run("range", [shared, "--lr=0"])
    run("nofile", [shared, "--data=nofile"])
    # One spelling, another folder for each: as on machines that share no disk.
    run("order", [shared, "--data=/proc/self/cwd/text.txt"])
    own = "--checkpoint-dir=/proc/self/cwd/ck"
    run("begun", [own])
    run("gone", [own, "--run=begun", "--resume=auto"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    claim, folder = sys.argv[1], Path(sys.argv[2])
    if claim == "worlds":
        world_of(3, faults, folder)
        world_of(3, facts, folder)
    else:
        runs(folder)
