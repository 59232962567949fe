"""Read a published folder: weights (FP8 is de-quantised), tokenizer, end-of-text tokens.

Only files inside the folder are opened: no pickles, and links must not leave it. Every shape is
checked before any weight is allocated. Then tensors are copied one at a time.

In memory the experts of a layer are two stacked tensors; in a file every expert has three matrices.
So each of our tensors consists of parts.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Iterator, Set
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from moe_model import (
    SETTINGS,
    TOKENIZER,
    WEIGHTS,
    LanguageModel,
    ModelConfig,
    PretrainedTokenizer,
    UsageError,
    json_object,
    say,
    shown,
)
from moe_model.huggingface.config import CONFIG, read_config
from moe_model.tokenizer import FILES, read_small_file, without_code

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


class Part(NamedTuple):
    """A published tensor and its index in one of our tensors."""

    name: str
    place: tuple[int | slice, ...]
    """Empty for the whole tensor."""


def published_name(name: str, config: ModelConfig) -> str:
    """The transformers name of our tensor ``name``, with stacked experts; multi-token prediction is
    layers after the last one."""
    if name.startswith("mtp."):
        _, depth, rest = name.split(".", 2)
        rest = rest.removeprefix("layer.")
        rest = "shared_head.norm.weight" if rest == "norm.weight" else rest
        name = f"layers.{config.num_hidden_layers + int(depth)}.{rest}"
    name = name.replace(".mlp.router.weight", ".mlp.gate.weight")
    name = name.replace(".mlp.router.expert_bias", ".mlp.gate.e_score_correction_bias")
    return name if name == HEAD else f"model.{name}"


def parts(name: str, config: ModelConfig) -> Iterator[Part]:
    """The published tensors of which our tensor ``name`` consists.

    Experts are separate there, and so are gate and up; none for a bias that has no effect.
    """
    if name.endswith(".router.expert_bias") and config.topk_method != "noaux_tc":
        return
    published = published_name(name, config)
    experts, of_experts, matrix = published.partition(".mlp.experts.")
    width = config.moe_intermediate_size
    rows = {"gate_proj": slice(0, width), "up_proj": slice(width, 2 * width)}
    if not of_experts:
        yield Part(published, ())
        return
    for expert in range(config.n_routed_experts):
        prefix = f"{experts}.mlp.experts.{expert}"
        if matrix == "down_proj":
            yield Part(f"{prefix}.down_proj.weight", (expert,))
        else:
            yield from (Part(f"{prefix}.{n}.weight", (expert, r)) for n, r in rows.items())


def copies(config: ModelConfig) -> dict[str, str]:
    """Published tensors that duplicate another: the name of the original by that of the copy.

    Copies are optional in a file, but must be equal.
    """
    head = EMBEDDING if config.tie_word_embeddings else HEAD
    repeated = {HEAD: EMBEDDING} if config.tie_word_embeddings else {}
    for depth in range(config.num_nextn_predict_layers):
        layer = f"model.layers.{config.num_hidden_layers + depth}"
        repeated |= {
            f"{layer}.embed_tokens.weight": EMBEDDING,
            f"{layer}.shared_head.head.weight": head,
        }
    return repeated


GENERATION_CONFIG = "generation_config.json"

INDEX = "model.safetensors.index.json"
PLAIN_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SECONDS_BETWEEN_LINES = 5.0
T = TypeVar("T")


def load_pretrained(
    folder: Path, dtype: torch.dtype = torch.float32
) -> tuple[LanguageModel, PretrainedTokenizer | None]:
    """Load the published model in ``folder``, in evaluation mode, and its tokenizer if it has one.

    Args:
        dtype: Data type of the weights in memory; routers stay fp32.

    Raises:
        UsageError: If it is not such a folder, has another architecture, or a tensor is missing,
            unknown, of another shape or not finite.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder: name one with {CONFIG} and safetensors files.")
    published = read_config(inside(folder, CONFIG))
    tokenizer = read_tokenizer(folder, published.config.vocab_size)
    source = PublishedTensors(folder, published.fp8_block)
    config = _with_what_is_there(published.config, source.names())
    try:
        with torch.device("meta"):
            model = LanguageModel(config).to(dtype)
    except (RuntimeError, OverflowError, TypeError) as error:
        raise UsageError(
            f"{CONFIG} describes a model too large for any memory ({error}): use the {CONFIG} of "
            "these files."
        ) from error
    for router in model.routers:
        router.float()
    _check(source, model)
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        state = model.state_dict()
        for name in now_and_then(state, "read", "tensors"):
            found = list(parts(name, config))
            for part in found:
                state[name][part.place].copy_(source.read(part.name))
            if not found:  # the bias of a router that has none
                state[name].zero_()
    return model.eval(), tokenizer


def read_tokenizer(folder: Path, vocab_size: int) -> PretrainedTokenizer | None:
    """The tokenizer of a published model; ``None`` without a ``tokenizer.json``.

    Custom code is dropped. ``UsageError`` if it is damaged, or has more ids than the model has
    rows.
    """
    if not (folder / TOKENIZER).exists():
        return None
    try:
        names = [name for name in FILES if (folder / name).exists()]
        files = {name: read_small_file(inside(folder, name)) for name in names}
        if SETTINGS in files:
            files[SETTINGS] = without_code(files[SETTINGS])
        tokenizer = PretrainedTokenizer(files)
    except UsageError:
        raise
    except (ValueError, OSError) as error:
        raise UsageError(f"{folder}: {error}") from error
    if len(tokenizer) > vocab_size:
        raise UsageError(
            f"{folder / TOKENIZER} has ids up to {len(tokenizer) - 1}, but {CONFIG} has "
            f"vocab_size={vocab_size}: use the tokenizer of this model."
        )
    return tokenizer


def _with_what_is_there(config: ModelConfig, names: Set[str]) -> ModelConfig:
    """Transformers writes ``num_nextn_predict_layers`` but not those layers."""
    layers, ahead = config.num_hidden_layers, config.num_nextn_predict_layers
    if layers + ahead > len(names):  # before a billion layers are built
        raise UsageError(
            f"{CONFIG} has num_hidden_layers={layers} and num_nextn_predict_layers={ahead}, "
            f"but there are only {len(names)} tensors: use the {CONFIG} of these files."
        )
    prefixes = tuple(f"model.layers.{layers + depth}." for depth in range(ahead))
    if not any(name.startswith(prefixes) for name in names):
        config = dataclasses.replace(config, num_nextn_predict_layers=0)
    return config


def _check(source: PublishedTensors, model: LanguageModel) -> None:
    """Check that every tensor of ``model`` exists in its shape, and that no other weights do."""
    wanted: set[str] = set()
    for name, tensor in model.state_dict().items():
        for part in parts(name, model.config):
            source.require(part.name, tuple(tensor[part.place].shape))
            wanted.add(part.name)
    for copy, original in copies(model.config).items():
        if copy in source.names():
            first = source.read(original)
            if not torch.equal(source.read(copy).to(first.dtype), first):
                raise UsageError(f"{copy} differs from {original}, but must be a copy of it.")
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
        raise UsageError(
            f"{name} {source.shape(name)} and {len(extra) - 1} more tensors have no place in the "
            f"model that {CONFIG} describes: use the {CONFIG} of these files."
        )


def read_stop_ids(folder: Path, vocab_size: int) -> list[int]:
    """Every ``eos_token_id`` of ``generation_config.json`` and ``config.json``, each once.

    ``UsageError`` if a file is damaged, or names a token that the model does not have.
    """
    found: list[int] = []
    for name in (GENERATION_CONFIG, CONFIG):
        if not (folder / name).exists():
            continue
        path = inside(folder, name)
        try:
            ends = json_object("it", read_small_file(path)).get("eos_token_id")
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: {error}") from error
        alone = [] if ends is None else [ends]
        ids = ends if isinstance(ends, list) else alone
        if not all(type(token) is int and 0 <= token < vocab_size for token in ids):
            raise UsageError(
                f"{path}: eos_token_id={shown(ends)}: it must be a token from 0 to "
                f"{vocab_size - 1}, a list of them, or null."
            )
        found += ids
    return list(dict.fromkeys(found))


class PublishedTensors:
    """The tensors of all shards by name."""

    def __init__(self, folder: Path, fp8_block: tuple[int, int] | None) -> None:
        """``UsageError`` if a shard is missing or damaged."""
        self.fp8_block = fp8_block
        self._shard_of: dict[str, Any] = {}
        for path in _shards(folder):
            try:
                shard: Any = safe_open(path, framework="pt")
                names = list(shard.keys())
            except (SafetensorError, OSError) as error:
                raise UsageError(
                    f"{path} is truncated or not a safetensors file ({error}): download it again."
                ) from error
            for name in names:
                if name in self._shard_of:
                    raise UsageError(f"{path} contains {name}, as another file does: remove one.")
                self._shard_of[name] = shard

    def names(self) -> Set[str]:
        return self._shard_of.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that the file declares; the tensor is not read."""
        return tuple(self._shard_of[name].get_slice(name).get_shape())

    def require(self, name: str, shape: tuple[int, ...]) -> None:
        """``UsageError`` unless there is a tensor ``name`` of ``shape``."""
        if name not in self._shard_of:
            raise UsageError(
                f"{name} {shape} is missing: download the files again, or correct {CONFIG}."
            )
        if self.shape(name) != shape:
            raise UsageError(
                f"{name} has shape {self.shape(name)}, but {CONFIG} requires {shape}: use the "
                f"{CONFIG} of these files."
            )

    def scale_of(self, name: str) -> str | None:
        """Name of the tensor with the scales of an FP8 tensor; ``None`` for another data type."""
        fp8 = self._shard_of[name].get_slice(name).get_dtype() == "F8_E4M3"
        return f"{name}_scale_inv" if fp8 else None

    def read(self, name: str) -> Tensor:
        """The tensor ``name``: FP8 becomes fp32, other data types stay.

        ``UsageError`` if it is damaged, not finite, or of a data type that cannot be imported.
        """
        try:
            tensor: Tensor = self._shard_of[name].get_tensor(name)
        except SafetensorError as error:
            raise UsageError(f"{name} cannot be read ({error}): download it again.") from error
        if (scale := self.scale_of(name)) is not None:
            tensor = self._dequantised(name, tensor, scale)
        elif tensor.dtype not in PLAIN_DTYPES:
            raise UsageError(
                f"{name} is {tensor.dtype}: only fp32, bf16, fp16 and FP8 (e4m3) can be imported."
            )
        return _finite(name, tensor)

    def _dequantised(self, name: str, quantised: Tensor, scale_name: str) -> Tensor:
        """``W = q · scale``, one scale per block; blocks at the edges are truncated."""
        if self.fp8_block is None or quantised.dim() != 2:
            raise UsageError(
                f"{name} {tuple(quantised.shape)} is FP8, but {CONFIG} has no "
                "quantization_config with weight_block_size, or it is not a matrix: use a complete "
                "copy of the published folder."
            )
        rows, columns = quantised.shape
        high, wide = self.fp8_block
        self.require(scale_name, (-(-rows // high), -(-columns // wide)))
        scale = _finite(scale_name, self._shard_of[scale_name].get_tensor(scale_name).float())
        scale = scale.repeat_interleave(high, 0)[:rows].repeat_interleave(wide, 1)[:, :columns]
        return quantised.float() * scale


def now_and_then(names: Collection[T], done: str, what: str) -> Iterator[T]:
    """Iterate; every few seconds print the progress, such as "read 3 of 9 tensors"."""
    last = time.monotonic()
    for number, name in enumerate(names):
        if time.monotonic() - last > SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(f"{done} {number} of {len(names)} {what}")
        yield name


def inside(folder: Path, name: str) -> Path:
    """The file ``name`` of ``folder``; ``UsageError`` if it is outside, except in the hub's
    cache, whose snapshots link to the blobs beside them."""
    path = folder / name
    home = folder.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    missing = UsageError(f"{folder}: {name!r} is missing or not a file: download it again.")
    try:
        found = path.resolve()
        is_file = found.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, with a NUL, a loop of links
        raise missing from error
    if found.parent not in allowed:
        raise UsageError(f"{folder}: {name!r} is outside the folder: only files inside are read.")
    if not is_file:
        raise missing
    return path


def _shards(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).exists():
        return [inside(folder, WEIGHTS)]
    if not (folder / INDEX).exists():
        raise UsageError(
            f"{folder} has neither {WEIGHTS} nor {INDEX} (pickles can execute code and are not "
            "read): name a folder with a published model."
        )
    path = inside(folder, INDEX)
    try:
        names = sorted(set(json_object("it", path.read_bytes())["weight_map"].values()))
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError("weight_map lists no files")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path} is not an index of safetensors files ({error}): download it again."
        ) from error
    return [inside(folder, name) for name in names]


def _finite(name: str, tensor: Tensor) -> Tensor:
    if not tensor.isfinite().all():
        raise UsageError(
            f"{name} contains NaN or infinity: the file is damaged, or the training diverged."
        )
    return tensor
