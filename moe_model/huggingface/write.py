"""Write a model as a folder that ``AutoModelForCausalLM.from_pretrained`` loads.

Names, shapes and files are those of the published models: one tensor per expert, multi-token
prediction as layers after the last one, shards of a few gigabytes with an index.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor

from moe_model import (
    WEIGHTS,
    CharTokenizer,
    CheckpointError,
    LanguageModel,
    ModelConfig,
    PretrainedTokenizer,
    Tokenizer,
    UsageError,
    character_files,
    fresh_folder,
    say,
    stop_ids_of,
    write_description,
    write_tensors,
)
from moe_model.huggingface.config import CONFIG, published_fields
from moe_model.huggingface.read import GENERATION_CONFIG, INDEX, now_and_then, parts

SHARD_BYTES = 5_000_000_000
"""Largest size of a file; a larger tensor gets its own file."""
_NOT_KEPT = {"auto_map", "num_mtp_layers", "quantization_config", "transformers_version"}
"""Imported fields that an export drops: custom code, aliases of our fields, facts about the
imported files."""


@contextmanager
def errors_in_one_line(dst: Path) -> Iterator[None]:
    """Report the errors of a command that writes ``dst`` in one line.

    A write error is printed and ends the block without an exception: code after the block returns
    the exit code of a failure.

    Raises:
        UsageError: If the input is invalid, ``dst`` exists, or its parent is not a folder.
    """
    try:
        if not dst.parent.is_dir():
            raise UsageError(f"{dst.parent} is not a folder: create it first.")
        yield
    except (CheckpointError, FileExistsError) as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        say(f"{dst} was not written ({error}): free space, or choose another folder.")


def save_pretrained(
    model: LanguageModel,
    tokenizer: Tokenizer | None,
    folder: Path,
    *,
    stop_ids: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
    imported: Mapping[str, Any] | None = None,
) -> None:
    """Write ``model`` atomically as a new folder that transformers can load.

    Args:
        tokenizer: ``None`` to write none. One of characters becomes a ``tokenizer.json``.
        stop_ids: Tokens that end a text, in addition to that of the tokenizer.
        dtype: Data type of the weights, fp32 or bf16; routers and their bias stay fp32.
        imported: The ``config.json`` with which the model came; fields that do not contradict the
            model are kept.

    Raises:
        UsageError: If transformers' class cannot represent this model.
        OSError: If ``folder`` exists or cannot be written.
    """
    if isinstance(tokenizer, CharTokenizer):
        tokenizer = PretrainedTokenizer(character_files(tokenizer.vocabulary))
    ends = stop_ids_of(tokenizer, stop_ids)
    eos: int | list[int] | None = list(ends) if len(ends) > 1 else next(iter(ends), None)
    begin = None if tokenizer is None else tokenizer.bos_id
    # Always written: transformers defaults to 0 and 1, ordinary characters here.
    special_ids = {"bos_token_id": begin, "eos_token_id": eos}
    before = {
        name: value
        for name, value in (imported or {}).items()
        if name not in _NOT_KEPT and not name.startswith("_")
    }
    ids = {"pad_token_id": None, **special_ids}
    ids |= {name: before.get(name) for name, id_ in ids.items() if id_ is None}
    fields = {"use_cache": True, **before, **published_fields(model.config), **ids}
    # Up to 4.55 transformers read torch_dtype.
    kind = str(dtype).removeprefix("torch.")
    with fresh_folder(folder) as fresh:
        _write_json(fresh / CONFIG, fields | {"dtype": kind, "torch_dtype": kind})
        if ends:
            _write_json(fresh / GENERATION_CONFIG, special_ids)
        write_tokenizer(tokenizer, fresh)
        write_weights(fresh, model.config, model.state_dict(), dtype)


def write_checkpoint(
    folder: Path, model: LanguageModel, tokenizer: Tokenizer | None, **facts: Any
) -> None:
    """Write a model that was not trained here to the empty ``folder``, as a checkpoint of step 0.

    Args:
        tokenizer: ``None`` if it has none; such a checkpoint cannot generate text.
        facts: Further entries of ``checkpoint.json``.
    """
    write_tensors(folder / WEIGHTS, model.state_dict())
    write_tokenizer(tokenizer, folder)
    plain = None if tokenizer is None else tokenizer.to_dict()
    write_description(folder, model.config, step=0, tokenizer=plain, **facts)


def write_tokenizer(tokenizer: Tokenizer | None, folder: Path) -> None:
    """Its files, byte for byte; nothing for ``None`` or a tokenizer of characters."""
    for name, content in ({} if tokenizer is None else tokenizer.files).items():
        (folder / name).write_bytes(content)


def write_weights(
    folder: Path, config: ModelConfig, state: dict[str, Tensor], dtype: torch.dtype
) -> None:
    """Write the tensors of ``state``, our names, in ``dtype``; routers and their bias in fp32.

    Several files if there is more than ``SHARD_BYTES``. ``UsageError`` if the format cannot hold a
    tensor that has an effect.
    """
    for name, tensor in state.items():
        if tensor.any() and not any(parts(name, config)):
            raise UsageError(
                f"{name} is not zero, and a {config.model_type} has no such tensor: it cannot be "
                "exported. Train it with --balance aux."
            )
    state = state | _empty_shared_experts(config, state)
    source = {part.name: (ours, part.place) for ours in state for part in parts(ours, config)}
    # The choice of experts depends on differences that half precision cannot represent.
    exact = (".router.weight", ".router.expert_bias")
    dtypes = dict.fromkeys(source, dtype)
    dtypes |= {n: torch.float32 for n, (ours, _) in source.items() if ours.endswith(exact)}
    split = split_torch_state_dict_into_shards(
        {
            name: torch.empty(state[ours][place].shape, dtype=dtypes[name], device="meta")
            for name, (ours, place) in source.items()
        },
        max_shard_size=SHARD_BYTES,
        filename_pattern="model{suffix}.safetensors",
    )
    for file in now_and_then(split.filename_to_tensors, "wrote", "files"):
        tensors = {}
        for name in split.filename_to_tensors[file]:
            ours, place = source[name]
            tensors[name] = state[ours][place].to(dtypes[name]).cpu().contiguous()
        write_tensors(folder / file, tensors)
    if split.is_sharded:
        places = dict(sorted(split.tensor_to_filename.items()))
        _write_json(folder / INDEX, {"metadata": split.metadata, "weight_map": places})


def _empty_shared_experts(config: ModelConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Transformers expects them where there are none."""
    if config.n_shared_experts:
        return {}
    router = "router.weight"
    D = config.hidden_size
    sizes = {"gate_proj": (0, D), "up_proj": (0, D), "down_proj": (D, 0)}
    return {
        f"{name.removesuffix(router)}shared_experts.{matrix}.weight": torch.empty(size)
        for name in state
        if name.endswith(f".mlp.{router}")
        for matrix, size in sizes.items()
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False)
    path.write_text(text + "\n", "utf-8")
