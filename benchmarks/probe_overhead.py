"""What the probe costs a step: pairs of steps with and without it, in swapped order.

    python -m benchmarks.probe_overhead [--every 10] [--pairs 60]

One Mixtral on one batch, whose step takes at least 200 ms. Quote nothing from a busy machine.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import MixtralConfig, MixtralForCausalLM

from microscope_tui.probe import attach

LEAST_S = 0.2


def main() -> None:
    """Print the ratio of a step with the probe to one without."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=1024)
    given = parser.parse_args()
    model, ids_BS = made(given.width, given.tokens)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    ratios, plain = [], []
    with tempfile.TemporaryDirectory() as folder:
        for pair in range(given.pairs + 1):
            # As many steps a side as there are between two logged ones.
            sides = [bare, probed] if pair % 2 else [probed, bare]
            seconds = {
                side: side(model, optimizer, ids_BS, given.every, Path(folder) / f"{pair}")
                for side in sides
            }
            if pair:  # the first warms up
                ratios.append(seconds[probed] / seconds[bare])
                plain.append(seconds[bare] / given.every)
    step_s = statistics.median(plain)
    if step_s < LEAST_S:
        print(f"a step takes {step_s * 1000:.0f} ms: raise --width or --tokens to reach 200 ms")
    ratios.sort()
    low, high = ratios[len(ratios) // 4], ratios[(3 * len(ratios)) // 4]
    print(
        f"step {step_s * 1000:.0f} ms, every {given.every}: median ratio "
        f"{statistics.median(ratios):.4f} (quartiles {low:.4f} to {high:.4f}, {len(ratios)} pairs)"
    )


def made(width: int, tokens: int) -> tuple[Any, torch.Tensor]:
    """The model and its batch."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=2048,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        num_local_experts=8,
        output_router_logits=True,
    )
    return MixtralForCausalLM(config), torch.randint(2048, (4, tokens // 4))


def train(model: Any, optimizer: Any, ids_BS: torch.Tensor) -> Any:
    """One optimizer step."""
    output = model(input_ids=ids_BS, labels=ids_BS)
    output.loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return output.loss


def bare(model: Any, optimizer: Any, ids_BS: torch.Tensor, steps: int, folder: Path) -> float:
    """Seconds without the probe."""
    start = time.perf_counter()
    for _ in range(steps):
        train(model, optimizer, ids_BS).item()
    return time.perf_counter() - start


def probed(model: Any, optimizer: Any, ids_BS: torch.Tensor, steps: int, folder: Path) -> float:
    """Seconds with it; opening and closing the log, once a run, are not timed."""
    with attach(model, folder, every=steps, start_step=1) as probe:
        for _ in range(steps):  # opens the log
            probe.step(loss=train(model, optimizer, ids_BS).detach())
        start = time.perf_counter()
        for _ in range(steps):
            probe.step(loss=train(model, optimizer, ids_BS).detach())
        return time.perf_counter() - start


if __name__ == "__main__":
    main()
