"""Expert parallelism of transformers beside ours, four ranks, two of which share the experts:
``python -m tests.training.transformers_ranks DIR`` writes what failed to ``DIR/oracle-RANK.json``.
"""

from __future__ import annotations

import os
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

from benchmarks.transformers_peer import their_name
from moe_model.huggingface.write import save_pretrained
from moe_model.training.parallel import parallelize, synchronised
from moe_model.training.world import World
from tests.training.ranks import all_sequences, make_model, whole
from tests.training.worlds import check, fork_ranks

RANKS, EXPERTS = 4, 2


def loss_and_gradients_are_those_of_transformers(world: World, folder: Path) -> None:
    ours: Any = make_model(small=True)
    if world.is_main:
        save_pretrained(ours, None, folder / "published")
    world.barrier()
    layout: Any = DistributedConfig(tp_size=1, fsdp_size=RANKS, ep_size=EXPERTS)
    theirs = AutoModelForCausalLM.from_pretrained(
        folder / "published", distributed_config=layout, dtype=torch.float32
    ).train()
    ids_BS = all_sequences()[world.rank :: RANKS]
    logits_BSV = theirs(input_ids=ids_BS[:, :-1], use_cache=False).logits
    expected = F.cross_entropy(logits_BSV.flatten(0, 1), ids_BS[:, 1:].flatten())
    expected.backward()  # the mean over ranks

    forward = parallelize(ours, "fsdp", world, EXPERTS)
    with synchronised(forward, last=True):
        logits_BSV = forward(ids_BS[:, :-1]).logits_BSV
        loss = F.cross_entropy(logits_BSV.flatten(0, 1), ids_BS[:, 1:].flatten())
        (loss / RANKS).backward()
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0)
    their_gradients = {name: whole(p.grad) for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            whole(parameter.grad), their_gradients[their_name(name)], atol=1e-6, rtol=1e-5, msg=name
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # what transformers says about itself
    claims = {"oracle": loss_and_gradients_are_those_of_transformers}
    rank = partial(check, claims, "oracle", Path(sys.argv[1]), 60.0)
    for child in fork_ranks(RANKS, rank):
        os.waitpid(child, 0)
