"""Starts ranks that check claims, over gloo: ``python -m tests.training.worlds KIND DIR``.

A claim is a function that every rank of a world calls. Most claims share a world of two or three
ranks (``together``); one in which a rank is lost has a world of its own (``apart``). What failed is
written to ``DIR/SIZE-RANK.json``, by the name of the claim.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path

import torch

from moe_model.training.world import join_world
from tests.forked import free_port
from tests.training import ranks, shards
from tests.training.losing_ranks import APART
from tests.training.ranks import CPU, Claim

TOGETHER = {size: own | shards.CLAIMS.get(size, {}) for size, own in ranks.CLAIMS.items()}
IN_TURN = {"together": TOGETHER, "shards": {2: shards.READS, 4: shards.READS}}
"""Worlds by kind; ``every_layout.py`` asks for ``shards``."""


def fork_ranks(size: int, one_rank: Callable[[int], None]) -> list[int]:
    """Fork ``size`` processes with the environment of ranks; their process ids."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(size)}
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            os.environ.update(place, RANK=str(rank), LOCAL_RANK=str(rank))
            code = 1
            try:
                one_rank(rank)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)  # a forked child must not run on into its parent's code
        children.append(child)
    return children


def check(claims: dict[str, Claim], name: str, folder: Path, timeout_s: float, rank: int) -> None:
    """Check ``claims`` as one rank of a world, and write which failed and why."""
    outcomes = {}
    with join_world(CPU, timeout_s) as world:
        for claim_name, claim in claims.items():
            try:
                claim(world, folder)
                outcomes[claim_name] = ""
            except BaseException:
                outcomes[claim_name] = traceback.format_exc()
    (folder / f"{name}-{rank}.json").write_text(json.dumps(outcomes), "utf-8")


def main(kind: str, folder: Path) -> None:
    torch.set_num_threads(1)
    import_module("torch._dynamo")  # an optimizer imports it, which takes a second: once for all
    if kind in IN_TURN:
        for size, claims in IN_TURN[kind].items():
            for child in fork_ranks(size, partial(check, claims, str(size), folder, 30.0)):
                os.waitpid(child, 0)
        return
    children = []
    for name, (size, claim, timeout_s) in APART.items():
        children += fork_ranks(size, partial(check, {name: claim}, name, folder, timeout_s))
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
