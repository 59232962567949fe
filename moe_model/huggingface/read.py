"""Read a published folder into a model.

Every shape is checked before any weight is allocated. Then tensors are read and copied one at a
time, so that there are never two copies of the weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Set
from pathlib import Path

import torch

from moe_model import (
    FILES,
    SETTINGS,
    TOKENIZER,
    LanguageModel,
    ModelConfig,
    PretrainedTokenizer,
    read_small_file,
    without_code,
)
from moe_model.huggingface.config import CONFIG, HuggingFaceError, Published
from moe_model.huggingface.files import PublishedTensors, inside, now_and_then
from moe_model.huggingface.names import Part, copies, interleave, parts, published_name


def read_weights(
    folder: Path, published: Published, dtype: torch.dtype = torch.float32
) -> LanguageModel:
    """The model of ``folder`` in evaluation mode, weights in ``dtype``, routers in fp32.

    Raises:
        HuggingFaceError: If a tensor is missing, too many, of another shape, or not finite.
    """
    with PublishedTensors(folder, published.fp8_block) as source:
        config = _with_what_is_there(published.config, source.names())
        model = _unfilled(config, dtype)
        _check(source, model)
        model = model.to_empty(device="cpu")
        with torch.no_grad():
            state = model.state_dict()
            for name in now_and_then(state, "read", "tensors"):
                found = list(_parts(name, source, config))
                for part in found:
                    state[name][part.place].copy_(source.read(part.name))
                if not found:  # the bias of a router that has none
                    state[name].zero_()
                if not published.interleaved:
                    interleave(name, state[name], config)
    return model.eval()


def read_tokenizer(folder: Path, vocab_size: int) -> PretrainedTokenizer | None:
    """The tokenizer of a published folder; ``None`` without a ``tokenizer.json``.

    Raises:
        HuggingFaceError: If it is damaged, has more ids than the model has rows, or is only a
            tiktoken vocabulary.
    """
    if not (folder / TOKENIZER).exists():
        _refuse_tiktoken(folder)
        return None
    try:
        names = [name for name in FILES if (folder / name).exists()]
        files = {name: read_small_file(inside(folder, name)) for name in names}
        if SETTINGS in files:
            files[SETTINGS] = without_code(files[SETTINGS])
        tokenizer = PretrainedTokenizer(files)
    except HuggingFaceError:
        raise
    except (ValueError, OSError) as error:
        raise HuggingFaceError(f"{folder}: {error}") from error
    if len(tokenizer) > vocab_size:
        raise HuggingFaceError(
            f"{folder / TOKENIZER} has ids up to {len(tokenizer) - 1}, but {CONFIG} has "
            f"vocab_size={vocab_size}: use the tokenizer of this model."
        )
    return tokenizer


def _refuse_tiktoken(folder: Path) -> None:
    """A tiktoken vocabulary lists byte strings by rank. The regular expression that splits a text
    beforehand is in the publisher's Python code, which is not run."""
    for path in sorted((*folder.glob("*.tiktoken"), *folder.glob("tiktoken.model"))):
        raise HuggingFaceError(
            f"{path} is a tiktoken vocabulary without the pattern that splits a text: the pattern "
            "is in the publisher's code, which is not run. Copy the pattern from there, create a "
            "tokenizer.json with transformers' TikTokenConverter(vocab_file, pattern) and put it "
            "beside the file; or remove the file to import only the weights."
        )


def _with_what_is_there(config: ModelConfig, names: Set[str]) -> ModelConfig:
    """``config``, without multi-token prediction if the files have no tensors of it.

    Transformers writes ``num_nextn_predict_layers`` but not those layers.
    """
    layers, ahead = config.num_hidden_layers, config.num_nextn_predict_layers
    if layers + ahead > len(names):  # before a billion layers are built
        raise HuggingFaceError(
            f"{CONFIG} has num_hidden_layers={layers} and num_nextn_predict_layers={ahead}, "
            f"but there are only {len(names)} tensors: use the {CONFIG} of these files."
        )
    prefixes = tuple(f"model.layers.{layers + depth}." for depth in range(ahead))
    if not any(name.startswith(prefixes) for name in names):
        config = dataclasses.replace(config, num_nextn_predict_layers=0)
    return config


def _unfilled(config: ModelConfig, dtype: torch.dtype) -> LanguageModel:
    try:
        with torch.device("meta"):
            model = LanguageModel(config).to(dtype)
    except (RuntimeError, OverflowError, TypeError) as error:
        raise HuggingFaceError(
            f"{CONFIG} describes a model too large for any memory ({error}): use the {CONFIG} of "
            "these files."
        ) from error
    for router in model.routers:
        router.float()
    return model


def _parts(name: str, source: PublishedTensors, config: ModelConfig) -> Iterable[Part]:
    """Whether a file holds the experts stacked, as transformers 5 does in memory."""
    apart, stacked = list(parts(name, config)), published_name(name, config)
    return [Part(stacked, ())] if apart and stacked in source.names() else apart


def _check(source: PublishedTensors, model: LanguageModel) -> None:
    """Check that every tensor of ``model`` exists in its shape, and that no other weights do."""
    wanted: set[str] = set()
    for name, tensor in model.state_dict().items():
        for part in _parts(name, source, model.config):
            source.require(part.name, tuple(tensor[part.place].shape))
            wanted.add(part.name)
    for copy, original in copies(model.config).items():
        if copy in source.names():
            first = source.read(original)
            if not torch.equal(source.read(copy).to(first.dtype), first):
                raise HuggingFaceError(f"{copy} differs from {original}, but must be a copy of it.")
            wanted.add(copy)
    wanted |= {scale for name in wanted if (scale := source.scale_of(name)) is not None}
    # transformers writes empty matrices for absent shared experts.
    extra = [
        name
        for name in source.names() - wanted
        if not name.endswith("rotary_emb.inv_freq") and 0 not in source.shape(name)
    ]
    if extra:
        name = min(extra)
        raise HuggingFaceError(
            f"{name} {source.shape(name)} and {len(extra) - 1} more tensors have no place in the "
            f"model that {CONFIG} describes: use the {CONFIG} of these files."
        )
