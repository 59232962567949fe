"""Plain processes that each train a part, as the actors of Ray do: one folder of runs.

    python examples/actors.py

Each attaches a probe to its own model and writes its own run, without a process group. With Ray
``train`` is a method of the actor, and the folder is on a disk that all share.
"""

import argparse
import multiprocessing
from pathlib import Path

import torch
from transformers import MixtralConfig, MixtralForCausalLM

from microscope_tui.probe import attach

PARTS = ("policy", "critic")


def train(part: str, steps: int, folder: Path) -> None:
    """Train one part in this process."""
    torch.manual_seed(PARTS.index(part))
    sizes = dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size"), 64)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    model = MixtralForCausalLM(MixtralConfig(output_router_logits=True, **sizes, **heads))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with attach(model, folder / part, start_step=1, planned_steps=steps) as probe:
        for _ in range(steps):
            ids_BS = (torch.randint(64, (8, 1)) + 3 * torch.arange(64)) % 64  # count in threes
            loss = model(input_ids=ids_BS, labels=ids_BS).loss
            loss.backward()
            optimizer.step()
            probe.step(loss=loss)
            optimizer.zero_grad()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--logs", type=Path, default=Path("logs"))
    given = parser.parse_args()
    folder, spawn = given.logs / "actors", multiprocessing.get_context("spawn")
    actors = [spawn.Process(target=train, args=(part, given.steps, folder)) for part in PARTS]
    for actor in actors:
        actor.start()
    for actor in actors:
        actor.join()
    if any(actor.exitcode for actor in actors):
        raise SystemExit("an actor has failed: its messages are above")
    print(f"next: moe-microscope {folder}")
