"""A run that is stopped in the middle and resumed with the selection bias of its routers lost.

    python -m benchmarks.real.resumed --run NAME --folder DIR --scratch DIR [--steps 600]

Model, data and optimizer step are those of ``train.py``. The second half starts from what
``torch.save`` wrote of the first, with every expert bias set to zero: what a loader that knows
parameters only does.
"""

import argparse
from pathlib import Path

import torch

from microscope_tui.probe import RunRecorder
from moe_model.training import Options, Run, World, describe, prepare, resolve
from moe_model.training.options import ModelOverrides
from train import optimizer_step

SHAPE = ModelOverrides(
    hidden_size=96,
    num_hidden_layers=5,
    intermediate_size=256,
    moe_intermediate_size=64,
    num_attention_heads=3,
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    options = resolve(
        Options(
            run=asked.run,
            steps=asked.steps,
            seed=asked.seed,
            batch_size=8,
            seq_len=96,
            device="cpu",
            dtype="fp32",
            log_dir=asked.folder,
            checkpoint_dir=asked.scratch,
            model=SHAPE,
        )
    )
    middle = asked.steps // 2
    first, second = prepare(options, World()), prepare(options, World())
    train(first, 1, middle, "stopped")
    asked.scratch.mkdir(parents=True, exist_ok=True)
    saved = asked.scratch / f"{asked.run}.pt"
    torch.save(
        {
            "model": first.model.state_dict(),
            "optimizer": first.optimizer.state_dict(),
            "batches": torch.tensor(first.batches.drawn),
        },
        saved,
    )
    load_without_bias(second, saved)
    train(second, middle + 1, asked.steps, "finished")


def load_without_bias(run: Run, saved: Path) -> None:
    """Everything of the checkpoint but the buffers of the routers."""
    state = torch.load(saved)
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.batches.drawn = int(state["batches"])
    for router in run.model.routers:
        router.expert_bias.zero_()


def train(run: Run, first: int, last: int, reason: str) -> None:
    """Steps ``first`` to ``last``; a run that does not begin at 1 says that it is resumed."""
    recorder = RunRecorder(
        run.options.log_dir / run.options.run,
        **{**describe(run), "resumed_at_step": first if first > 1 else None},
    )
    for step in range(first, last + 1):
        recorder.record_step(**optimizer_step(run, step))
    recorder.close(step=last, reason=reason)


if __name__ == "__main__":
    main()
