"""Read the files of a published model tensor by tensor, with FP8 de-quantised.

Only files inside the folder are opened: plain names, no pickles, and links must not leave the
folder.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Set
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from moe_model import say
from moe_model.huggingface.config import CONFIG, HuggingFaceError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
PLAIN_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SECONDS_BETWEEN_LINES = 5.0
T = TypeVar("T")


class PublishedTensors:
    """The tensors of all shards by name. A context manager that keeps the files open."""

    def __init__(self, folder: Path, fp8_block: tuple[int, int] | None) -> None:
        """Open every shard; ``HuggingFaceError`` if one is missing or damaged."""
        self.fp8_block = fp8_block
        self._open = ExitStack()
        self._shard_of: dict[str, Any] = {}
        try:
            for path in _shards(folder):
                self._add(path)
        except BaseException:
            self._open.close()
            raise

    def __enter__(self) -> PublishedTensors:
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def _add(self, path: Path) -> None:
        try:
            shard = self._open.enter_context(safe_open(path, framework="pt"))
            names = list(shard.keys())
        except (SafetensorError, OSError) as error:
            raise HuggingFaceError(
                f"{path} is truncated or not a safetensors file ({error}): download it again."
            ) from error
        for name in names:
            if name in self._shard_of:
                raise HuggingFaceError(f"{path} contains {name}, as another file does: remove one.")
            self._shard_of[name] = shard

    def names(self) -> Set[str]:
        """All names in the files."""
        return self._shard_of.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that the file declares."""
        return tuple(self._shard_of[name].get_slice(name).get_shape())

    def require(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise ``HuggingFaceError`` unless there is a tensor ``name`` of ``shape``."""
        if name not in self._shard_of:
            raise HuggingFaceError(
                f"{name} {shape} is missing: download the files again, or correct {CONFIG}."
            )
        if self.shape(name) != shape:
            raise HuggingFaceError(
                f"{name} has shape {self.shape(name)}, but {CONFIG} requires {shape}: use the "
                f"{CONFIG} of these files."
            )

    def scale_of(self, name: str) -> str | None:
        """The name of the scales of an FP8 tensor, ``None`` for other tensors."""
        fp8 = self._shard_of[name].get_slice(name).get_dtype() == "F8_E4M3"
        return f"{name}_scale_inv" if fp8 else None

    def read(self, name: str) -> Tensor:
        """One tensor, de-quantised if it is FP8; ``HuggingFaceError`` if not finite."""
        try:
            tensor: Tensor = self._shard_of[name].get_tensor(name)
        except SafetensorError as error:
            raise HuggingFaceError(
                f"{name} cannot be read ({error}): download it again."
            ) from error
        if (scale := self.scale_of(name)) is not None:
            tensor = self._dequantised(name, tensor, scale)
        elif tensor.dtype not in PLAIN_DTYPES:
            raise HuggingFaceError(
                f"{name} is {tensor.dtype}: only fp32, bf16, fp16 and FP8 (e4m3) can be imported."
            )
        return _finite(name, tensor)

    def _dequantised(self, name: str, quantised: Tensor, scale_name: str) -> Tensor:
        """``W = q · scale``, one scale per block; blocks at the edges are truncated."""
        if self.fp8_block is None or quantised.dim() != 2:
            raise HuggingFaceError(
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
    """Iterate over ``names``; print the progress on standard error every few seconds."""
    spoke = time.monotonic()
    for number, name in enumerate(names):
        if time.monotonic() - spoke > SECONDS_BETWEEN_LINES:
            spoke = time.monotonic()
            say(f"{done} {number} of {len(names)} {what}")
        yield name


def inside(folder: Path, name: str) -> Path:
    """The file ``name`` of ``folder``; ``HuggingFaceError`` if it is outside the folder.

    The only exception is the hub's cache, whose snapshots link to the blobs beside them.
    """
    path, home = folder / name, folder.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    missing = HuggingFaceError(f"{folder}: {name!r} is missing or not a file: download it again.")
    try:
        found = path.resolve()
        is_file = found.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, with a NUL, a loop of links
        raise missing from error
    if found.parent not in allowed:
        raise HuggingFaceError(
            f"{folder}: {name!r} is outside the folder: only files inside are read."
        )
    if not is_file:
        raise missing
    return path


def _shards(folder: Path) -> list[Path]:
    if not (folder / INDEX).exists() and not (folder / WEIGHTS).exists():
        pickles = sorted(path.name for kind in PICKLES for path in folder.glob(kind))
        if pickles:
            raise HuggingFaceError(
                f"{folder} has {pickles[0]} but no safetensors: pickles can execute code and are "
                "not read; convert it to safetensors if you trust it."
            )
        raise HuggingFaceError(
            f"{folder} has neither {WEIGHTS} nor {INDEX}: name a folder with a published model."
        )
    if (folder / WEIGHTS).exists():
        return [inside(folder, WEIGHTS)]
    path = inside(folder, INDEX)
    try:
        files = json.loads(path.read_bytes())["weight_map"].values()
        names = sorted(set(files))
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError("weight_map lists no files")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise HuggingFaceError(
            f"{path} is not an index of safetensors files ({error}): download it again."
        ) from error
    return [inside(folder, name) for name in names]


def _finite(name: str, tensor: Tensor) -> Tensor:
    if not tensor.isfinite().all():
        raise HuggingFaceError(
            f"{name} contains NaN or infinity: the file is damaged, or the training diverged."
        )
    return tensor
