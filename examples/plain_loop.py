"""A training loop of your own: attach the probe, call ``probe.step`` after every optimizer step.

    python examples/plain_loop.py
    torchrun --nproc-per-node 2 examples/plain_loop.py    # the same, sharded with FSDP2

Trains a small Mixtral with random weights on text that comes with Python: no download. A token is
a byte, and the auxiliary loss of transformers pools all layers, so single layers become uneven:
expect a warning about them.
"""

import argparse
import os
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch.distributed.fsdp import fully_shard
from transformers import MixtralConfig, MixtralForCausalLM

from microscope_tui.probe import attach

BATCH, LENGTH = 8, 64


def main() -> None:
    """Train, and print what to open."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--logs", type=Path, default=Path("logs"))
    given = parser.parse_args()

    torch.manual_seed(0)
    model = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=256,  # a token is a byte
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=8,
            num_experts_per_tok=2,
            output_router_logits=True,  # without it transformers adds no auxiliary loss
            router_aux_loss_coef=0.01,
        )
    )
    if "RANK" in os.environ:  # under torchrun
        torch.distributed.init_process_group()
        for part in (*model.model.layers, model):
            fully_shard(part)
        torch.manual_seed(torch.distributed.get_rank())  # other text on every rank
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    text = torch.tensor(list("\n".join(topics.values()).encode()))

    run = given.logs / "plain-loop"
    with attach(model, run, start_step=1, planned_steps=given.steps) as probe:
        for _ in range(given.steps):
            starts = torch.randint(len(text) - LENGTH, (BATCH,))
            ids_BS = torch.stack([text[start : start + LENGTH] for start in starts])
            output = model(input_ids=ids_BS, labels=ids_BS)
            output.loss.backward()
            grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            # The model adds the auxiliary term to its loss: log the two apart.
            aux = output.aux_loss
            loss = output.loss - model.router_aux_loss_coef * aux
            probe.step(loss=loss, losses={"aux": aux}, grad_norm=grad_norm)
            optimizer.zero_grad()
    print(f"next: moe-microscope {run}")


if __name__ == "__main__":
    main()
