"""Import from and export to Hugging Face: DeepSeek-V3, DeepSeek-V2, GLM-4.7-Flash, with tokenizer.

    python -m moe_model.huggingface import DOWNLOADED CHECKPOINT
    python -m moe_model.huggingface export checkpoints/RUN/best PUBLISHED

Both directions preserve the logits. Nothing is downloaded and no code of a published folder runs.
The output is written atomically.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from cyclopts import App

from moe_model import (
    FAILED,
    FINISHED,
    TOKENIZER,
    WEIGHTS,
    CharTokenizer,
    CheckpointError,
    LanguageModel,
    ModelConfig,
    PretrainedTokenizer,
    Tokenizer,
    UsageError,
    character_files,
    read_checkpoint,
    say,
    stop_ids_of,
    version,
    write_description,
    write_tensors,
)
from moe_model.fresh_folder import fresh_folder
from moe_model.huggingface.config import CONFIG, HuggingFaceError, read_config
from moe_model.huggingface.files import inside
from moe_model.huggingface.read import read_tokenizer, read_weights
from moe_model.huggingface.stop_tokens import read_stop_ids
from moe_model.huggingface.write import SHARD_BYTES, write_config, write_weights

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
DtypeName = Literal["fp32", "bf16"]


def load_pretrained(
    folder: Path, dtype: torch.dtype = torch.float32
) -> tuple[LanguageModel, PretrainedTokenizer | None]:
    """Load the published model in ``folder``, in evaluation mode, and its tokenizer if it has one.

    Args:
        folder: With ``config.json``, ``model.safetensors`` or shards with an index, and
            ``tokenizer.json``.
        dtype: Data type of the weights in memory; routers stay fp32.

    Raises:
        HuggingFaceError: If it is not such a folder, or has another architecture.
    """
    if not folder.is_dir():
        raise HuggingFaceError(
            f"{folder} is not a folder: name one with {CONFIG} and safetensors files."
        )
    published = read_config(inside(folder, CONFIG))
    tokenizer = read_tokenizer(folder, published.config.vocab_size)
    return read_weights(folder, published, dtype), tokenizer


def save_pretrained(
    model: LanguageModel,
    tokenizer: Tokenizer | None,
    folder: Path,
    *,
    stop_ids: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write ``model`` atomically as a new folder that transformers can load.

    Args:
        model: On any device.
        tokenizer: ``None`` omits its files.
        folder: Must not exist yet.
        stop_ids: Tokens that end a text, in addition to that of the tokenizer.
        dtype: Data type of the weights, fp32 or bf16; routers and their bias stay fp32.
        shard_bytes: Largest size of a file.

    Raises:
        HuggingFaceError: If transformers' class cannot represent this model.
        OSError: If ``folder`` exists or cannot be written.
    """
    with fresh_folder(folder) as fresh:
        _publish(model, tokenizer, stop_ids, fresh, dtype, shard_bytes)


def _publish(
    model: LanguageModel,
    tokenizer: Tokenizer | None,
    stop_ids: Sequence[int],
    folder: Path,
    dtype: torch.dtype,
    shard_bytes: int = SHARD_BYTES,
    imported: Mapping[str, Any] | None = None,
) -> None:
    if isinstance(tokenizer, CharTokenizer):
        tokenizer = PretrainedTokenizer(character_files(tokenizer.vocabulary))
    begin = None
    if isinstance(tokenizer, PretrainedTokenizer):
        begin = tokenizer.special_ids["bos_token_id"]
    ends = stop_ids_of(tokenizer, stop_ids)
    write_config(folder, model.config, dtype, begin, ends, imported)
    _write_tokenizer(tokenizer, folder)
    write_weights(folder, model.config, model.state_dict(), dtype, shard_bytes)


def _write_tokenizer(tokenizer: Tokenizer | None, folder: Path) -> None:
    for name, content in ({} if tokenizer is None else tokenizer.files).items():
        (folder / name).write_bytes(content)


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
    with _said_in_one_line(dst):
        with fresh_folder(dst) as fresh:
            model, tokenizer = load_pretrained(src, DTYPES[dtype])
            write_tensors(fresh / WEIGHTS, model.state_dict())
            _write_tokenizer(tokenizer, fresh)
            plain = None if tokenizer is None else tokenizer.to_dict()
            fields = read_config(inside(src, CONFIG)).fields
            ends = read_stop_ids(src, model.config.vocab_size)
            write_description(
                fresh, model.config, step=0, tokenizer=plain, published=fields, stop_ids=ends
            )
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
    with _said_in_one_line(dst):
        with fresh_folder(dst) as fresh:
            found = read_checkpoint(src)
            model, tokenizer = found.load_model(), found.tokenizer_if_any
            _publish(
                model,
                tokenizer,
                found.stop_ids,
                fresh,
                DTYPES[dtype],
                imported=found.published,
            )
        if tokenizer is None:
            say(f"{src} has no tokenizer: {dst} has none either.")
        if found.config.router_jitter_noise or found.config.capacity_factor is not None:
            say("router_jitter_noise, capacity_factor and drop_policy are for training: omitted.")
        say(f"{dst}: {_counted(found.config)}")
        return FINISHED
    return FAILED


@contextmanager
def _said_in_one_line(dst: Path) -> Iterator[None]:
    """Turn bad input into a usage error; print write errors and let the caller continue."""
    try:
        if not dst.parent.is_dir():
            raise UsageError(f"{dst.parent} is not a folder: create it first.")
        yield
    except (HuggingFaceError, CheckpointError, FileExistsError) as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        say(f"{dst} was not written ({error}): free space, or choose another folder.")


def _counted(config: ModelConfig) -> str:
    ahead = config.num_nextn_predict_layers
    return (
        f"{config.parameters():,} parameters in {config.num_hidden_layers} layers"
        f"{f', {ahead} more for multi-token prediction' if ahead else ''}."
    )
