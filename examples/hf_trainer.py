"""The Hugging Face Trainer: one callback more.

    pip install '.[hf]'    # with accelerate, which the Trainer needs
    python examples/hf_trainer.py

Trains a small Mixtral with random weights on text that comes with Python: no download. A token is
a byte, and the auxiliary loss of transformers pools all layers, so single layers become uneven:
expect a warning about them.
"""

import argparse
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

import torch
from transformers import MixtralConfig, MixtralForCausalLM, Trainer, TrainingArguments, set_seed

from microscope_tui.probe import MicroscopeCallback

LENGTH = 64


class Text(torch.utils.data.Dataset):
    """Pieces of a text; a token is a byte."""

    def __init__(self) -> None:
        whole = torch.tensor(list("\n".join(topics.values()).encode()))
        self.pieces_NS = whole[: len(whole) // LENGTH * LENGTH].view(-1, LENGTH)

    def __len__(self) -> int:
        return len(self.pieces_NS)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.pieces_NS[index], "labels": self.pieces_NS[index]}


def main() -> None:
    """Train, and print what to open."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--logs", type=Path, default=Path("logs"))
    given = parser.parse_args()

    set_seed(0)
    model = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=8,
            num_experts_per_tok=2,
            initializer_range=0.2,
            output_router_logits=True,  # without it transformers adds no auxiliary loss
            router_aux_loss_coef=0.02,
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            run_name="hf-trainer",  # names the run in the log
            max_steps=given.steps,
            per_device_train_batch_size=8,
            learning_rate=5e-4,
            lr_scheduler_type="constant",
            logging_steps=20,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
        )
        callbacks = [MicroscopeCallback(given.logs)]
        Trainer(model, arguments, train_dataset=Text(), callbacks=callbacks).train()
    print(f"next: moe-microscope {given.logs / 'hf-trainer'}")


if __name__ == "__main__":
    main()
