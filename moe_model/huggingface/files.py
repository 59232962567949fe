"""The files of a published model: found, opened, read tensor by tensor, FP8 de-quantised.

A file is opened only where it belongs: by a plain name inside the folder, never a pickle, and what
a link points to must be there as well.
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

from moe_model.command import say
from moe_model.huggingface.config import CONFIG, HuggingFaceError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
PLAIN_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SECONDS_BETWEEN_LINES = 5.0
T = TypeVar("T")


class PublishedTensors:
    """The tensors of all shards by name. A context manager: the files stay open inside."""

    def __init__(self, folder: Path, fp8_block: tuple[int, int] | None) -> None:
        """Open every shard; ``HuggingFaceError`` where one is missing, damaged or no shard."""
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
                f"{path} is no safetensors file, or was cut short ({error}): fetch it again."
            ) from error
        for name in names:
            if name in self._shard_of:
                raise HuggingFaceError(f"{path} repeats {name} of another file: remove one.")
            self._shard_of[name] = shard

    def names(self) -> Set[str]:
        """Everything in the files."""
        return self._shard_of.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that the file declares."""
        return tuple(self._shard_of[name].get_slice(name).get_shape())

    def require(self, name: str, shape: tuple[int, ...]) -> None:
        """``HuggingFaceError`` unless there is a tensor ``name`` of ``shape``."""
        if name not in self._shard_of:
            raise HuggingFaceError(
                f"{name} {shape} is missing from the files: fetch them again, or correct {CONFIG}."
            )
        if self.shape(name) != shape:
            raise HuggingFaceError(
                f"{name} has shape {self.shape(name)}, but {CONFIG} makes it {shape}: use the "
                f"{CONFIG} of these files."
            )

    def scale_of(self, name: str) -> str | None:
        """The name of the scales of an FP8 tensor, none for any other."""
        fp8 = self._shard_of[name].get_slice(name).get_dtype() == "F8_E4M3"
        return f"{name}_scale_inv" if fp8 else None

    def read(self, name: str) -> Tensor:
        """One tensor, as it is stored or de-quantised; ``HuggingFaceError`` if not finite."""
        try:
            tensor: Tensor = self._shard_of[name].get_tensor(name)
        except SafetensorError as error:
            raise HuggingFaceError(f"{name} cannot be read ({error}): fetch it again.") from error
        if (scale := self.scale_of(name)) is not None:
            tensor = self._dequantised(name, tensor, scale)
        elif tensor.dtype not in PLAIN_DTYPES:
            raise HuggingFaceError(
                f"{name} is {tensor.dtype}: only fp32, bf16, fp16 and FP8 (e4m3) can be imported."
            )
        return _finite(name, tensor)

    def _dequantised(self, name: str, quantised: Tensor, scale_name: str) -> Tensor:
        """``W = q · scale``, one scale a block; the blocks at the edges are cut off."""
        if self.fp8_block is None or quantised.dim() != 2:
            raise HuggingFaceError(
                f"{name} {tuple(quantised.shape)} is FP8, but {CONFIG} has no "
                "quantization_config with weight_block_size, or it is no matrix: use a complete "
                "copy of the published folder."
            )
        rows, columns = quantised.shape
        high, wide = self.fp8_block
        self.require(scale_name, (-(-rows // high), -(-columns // wide)))
        scale = _finite(scale_name, self._shard_of[scale_name].get_tensor(scale_name).float())
        scale = scale.repeat_interleave(high, 0)[:rows].repeat_interleave(wide, 1)[:, :columns]
        return quantised.float() * scale


def now_and_then(names: Collection[T], done: str, what: str) -> Iterator[T]:
    """The same, and every few seconds a line on standard error that says how many are through."""
    spoke = time.monotonic()
    for number, name in enumerate(names):
        if time.monotonic() - spoke > SECONDS_BETWEEN_LINES:
            spoke = time.monotonic()
            say(f"{done} {number} of {len(names)} {what}")
        yield name


def inside(folder: Path, name: str) -> Path:
    """The file ``name`` of ``folder``; ``HuggingFaceError`` where that leads out of it.

    The hub's own cache is the one exception: its snapshots are links to the blobs beside them.
    """
    path, home = folder / name, folder.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    missing = HuggingFaceError(f"{folder}: {name!r} is missing, or no file: fetch it again.")
    try:
        found = path.resolve()
        is_file = found.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, with a NUL, a loop of links
        raise missing from error
    if found.parent not in allowed:
        raise HuggingFaceError(
            f"{folder}: {name!r} leads out of the folder: only files in it are read."
        )
    if not is_file:
        raise missing
    return path


def _shards(folder: Path) -> list[Path]:
    if not (folder / INDEX).exists() and not (folder / WEIGHTS).exists():
        pickles = sorted(path.name for kind in PICKLES for path in folder.glob(kind))
        if pickles:
            raise HuggingFaceError(
                f"{folder} holds {pickles[0]} and no safetensors: a pickle runs what its maker "
                "put in it, so none is read; convert it to safetensors where you trust it."
            )
        raise HuggingFaceError(
            f"{folder} holds neither {WEIGHTS} nor {INDEX}: name a folder with a published model."
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
            f"{path} is no index of safetensors files ({error}): fetch it again."
        ) from error
    return [inside(folder, name) for name in names]


def _finite(name: str, tensor: Tensor) -> Tensor:
    if not tensor.isfinite().all():
        raise HuggingFaceError(
            f"{name} holds NaN or infinity: the file is damaged, or training was."
        )
    return tensor
