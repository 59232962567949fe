"""TRL's supervised fine-tuning with LoRA: the same callback as for the Trainer.

    pip install '.[hf]' trl peft
    python examples/sft_lora.py

Tunes a small Mixtral with random weights on text that comes with Python: no download.
"""

import argparse
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from microscope_tui.probe import MicroscopeCallback

TEXT = "\n".join(topics.values())[:100_000]
VOCABULARY = 600


def byte_pairs() -> PreTrainedTokenizerFast:
    """A tokenizer of the text itself."""
    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer, pairs.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pairs.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=pairs, pad_token="<pad>", eos_token="<eos>")


def small_mixtral() -> MixtralForCausalLM:
    """Random weights; embeddings that are large enough to distinguish tokens."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=8,
        num_experts_per_tok=2,
        initializer_range=0.2,
        output_router_logits=True,  # without it transformers adds no auxiliary loss
        router_aux_loss_coef=0.02,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    return MixtralForCausalLM(config)


def main() -> None:
    """Tune, and print what to open."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=110)
    parser.add_argument("--logs", type=Path, default=Path("logs"))
    given = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        SFTTrainer(
            small_mixtral(),
            SFTConfig(
                output_dir=folder,
                run_name="sft-lora",  # names the run in the log
                max_steps=given.steps,
                max_length=64,
                per_device_train_batch_size=8,
                learning_rate=1e-3,
                logging_steps=20,
                save_strategy="no",
                report_to="none",
                use_cpu=True,
            ),
            train_dataset=Dataset.from_list(
                [{"text": TEXT[at : at + 120]} for at in range(0, len(TEXT), 120)]
            ),
            processing_class=byte_pairs(),
            peft_config=LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
            callbacks=[MicroscopeCallback(given.logs)],
        ).train()
    print(f"next: moe-microscope {given.logs / 'sft-lora'}")


if __name__ == "__main__":
    main()
