"""Import from and export to Hugging Face: DeepSeek-V3, DeepSeek-V2, GLM-4.7-Flash, with tokenizer.

    python -m moe_model.huggingface import DOWNLOADED CHECKPOINT
    python -m moe_model.huggingface export checkpoints/RUN/best PUBLISHED

Both directions preserve the logits. Nothing is downloaded and no code of a published folder runs.
The output is written atomically.
"""

import sys
from pathlib import Path
from typing import Literal

from cyclopts import App

from moe_model import need_packages

if __name__ == "__main__":
    need_packages("python -m moe_model.huggingface")

import torch

from moe_model import (
    FAILED,
    FINISHED,
    TOKENIZER,
    ModelConfig,
    fresh_folder,
    read_checkpoint,
    run_command,
    say,
    version,
)
from moe_model.huggingface.config import CONFIG, read_config
from moe_model.huggingface.read import inside, load_pretrained, read_stop_ids
from moe_model.huggingface.write import errors_in_one_line, save_pretrained, write_checkpoint

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
DtypeName = Literal["fp32", "bf16"]

app = App(
    name="python -m moe_model.huggingface",
    help="Import from and export to Hugging Face: DeepSeek-V3, DeepSeek-V2 and GLM-4.7-Flash.",
    version=version,
)


@app.command(name="import")
def import_(src: Path, dst: Path, /, *, dtype: DtypeName = "fp32") -> int:
    """Convert a published model to a checkpoint.

    Args:
        src: Folder with config.json, safetensors and tokenizer.json of a DeepseekV3ForCausalLM,
            DeepseekV2ForCausalLM or Glm4MoeLiteForCausalLM.
        dst: Checkpoint folder to create.
        dtype: Data type of the weights in the checkpoint.
    """
    with errors_in_one_line(dst):
        with fresh_folder(dst) as fresh:
            model, tokenizer = load_pretrained(src, DTYPES[dtype])
            fields = read_config(inside(src, CONFIG)).fields
            ends = read_stop_ids(src, model.config.vocab_size)
            write_checkpoint(fresh, model, tokenizer, published=fields, stop_ids=ends)
        if tokenizer is None:
            say(f"{src} has no {TOKENIZER}: {dst} cannot generate text.")
        say(f"{dst}: {_counted(model.config)}")
        return FINISHED
    return FAILED


@app.command
def export(src: Path, dst: Path, /, *, dtype: DtypeName = "fp32") -> int:
    """Export a checkpoint to a folder that transformers loads, with the model type it came from.

    Args:
        src: Checkpoint folder such as checkpoints/RUN/best, or a run for its latest checkpoint.
        dst: Folder to create.
        dtype: Data type of the weights; routers and their bias are always fp32.
    """
    with errors_in_one_line(dst):
        found = read_checkpoint(src)
        tokenizer = found.tokenizer_if_any
        save_pretrained(
            found.load_model(),
            tokenizer,
            dst,
            stop_ids=found.stop_ids,
            dtype=DTYPES[dtype],
            imported=found.description.get("published"),
        )
        if tokenizer is None:
            say(f"{src} has no tokenizer: {dst} has none either.")
        if found.config.router_jitter_noise or found.config.capacity_factor is not None:
            say("router_jitter_noise, capacity_factor and drop_policy are for training: omitted.")
        say(f"{dst}: {_counted(found.config)}")
        return FINISHED
    return FAILED


def _counted(config: ModelConfig) -> str:
    ahead = config.num_nextn_predict_layers
    more = f", {ahead} more for multi-token prediction" if ahead else ""
    return f"{config.parameters():,} parameters in {config.num_hidden_layers} layers{more}."


if __name__ == "__main__":
    sys.exit(run_command(app, None))
