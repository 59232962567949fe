"""Token ids on disk, mapped into memory: text is encoded once, and ids may exceed the memory.

``KEY.ids`` holds the ids as in memory, ``KEY.json`` their description. The key is the SHA-256 of
text and tokenizer, so entries never become stale. A file is used only after every byte was verified
against its description.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import json
import mmap
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe_model import PretrainedTokenizer, Tokenizer, force_to_disk, say

FORMAT = "moe-microscope tokens"
FORMAT_VERSION = 1
"""Part of the key; increase it when the format changes, or how documents become ids."""

DTYPES = {"uint16": torch.uint16, "int32": torch.int32}
_CHUNK = 1 << 22
_DAY_S = 24 * 3600.0


class DamagedError(ValueError):
    """A file of the cache is damaged; the message contains the reason."""


def dtype_name(vocabulary: int) -> str:
    """The smallest of ``DTYPES`` that holds every id below ``vocabulary``."""
    return "uint16" if vocabulary <= 1 << 16 else "int32"


def cache_key(digest: str, tokenizer: Tokenizer) -> str:
    """SHA-256, in hexadecimal, of everything that determines the ids.

    Args:
        digest: Hash of the documents.
        tokenizer: Its description, its files and the version of the library enter the hash.
    """
    known = {"format": FORMAT_VERSION, "documents": digest, "tokenizer": tokenizer.to_dict()}
    known["files"] = {
        name: hashlib.sha256(content).hexdigest() for name, content in tokenizer.files.items()
    }
    if isinstance(tokenizer, PretrainedTokenizer):
        known["library"] = importlib.metadata.version("tokenizers")
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def kept_tokens(
    folder: Path, key: str, vocabulary: int, encode: Callable[[], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """The ids and document starts of ``key``: from ``folder``, or from ``encode``, then cached.

    Damaged files are rewritten. If the folder is not writable, the ids stay in memory and a line is
    printed.
    """
    try:
        return read_tokens(folder, key, vocabulary)
    except DamagedError as error:
        say(f"{folder / key}.ids is damaged ({error}): encoding again.")
    except OSError:  # not there yet; on any other problem writing fails too
        pass
    ids, starts = encode()
    if not len(ids):
        return ids, starts
    try:
        write_tokens(folder, key, vocabulary, ids, starts)
        return read_tokens(folder, key, vocabulary)
    except (OSError, DamagedError) as error:
        reason = getattr(error, "strerror", None) or error
        say(f"{folder} cannot store token ids ({reason}): keeping them in memory for this run.")
    return ids, starts


def read_tokens(folder: Path, key: str, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Ids ``(tokens,)``, mapped and read-only, and document starts ``(documents,)``, int64.

    Raises:
        FileNotFoundError: If ``key`` is not cached.
        OSError: If it cannot be read.
        DamagedError: If it is truncated, changed, or belongs to another key.
    """
    name = dtype_name(vocabulary)
    said = _read_description(folder / f"{key}.json", {"key": key, "dtype": name})
    ids = _map(folder / f"{key}.ids", DTYPES[name], said["tokens"])
    found = hashlib.sha256()
    for chunk in torch.split(ids, _CHUNK):
        found.update(chunk.numpy().data)
        low, high = (int(value) for value in chunk.to(torch.int64).aminmax())
        if low < 0 or high >= vocabulary:
            raise DamagedError(f"an id of {low or high} is not below the vocabulary {vocabulary}")
    if found.hexdigest() != said["sha256"]:
        raise DamagedError("its SHA-256 differs")
    return ids, torch.tensor(said["starts"], dtype=torch.int64)


def write_tokens(folder: Path, key: str, vocabulary: int, ids: Tensor, starts: Tensor) -> None:
    """Store ``ids``, at least one, under ``key``; ``OSError`` if it cannot be written.

    Concurrent readers and writers see complete files. The description is written last; without it
    an entry does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _remove_left_over(folder)
    content = ids.numpy().data
    description = {
        "format": FORMAT,
        "key": key,
        "dtype": dtype_name(vocabulary),
        "tokens": len(ids),
        "sha256": hashlib.sha256(content).hexdigest(),
        "starts": starts.tolist(),
    }
    _replace(folder / f"{key}.ids", content)
    _replace(folder / f"{key}.json", memoryview(json.dumps(description).encode()))


def _read_description(path: Path, expected: dict[str, str]) -> dict[str, Any]:
    try:
        said = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path.name} is not JSON") from error
    expected = {"format": FORMAT, **expected}
    if not isinstance(said, dict) or any(said.get(name) != v for name, v in expected.items()):
        raise DamagedError(f"{path.name} describes something else")
    tokens, starts = said.get("tokens"), said.get("starts")
    if type(tokens) is not int or not isinstance(starts, list) or not starts:
        raise DamagedError(f"{path.name} lacks the number of tokens, or the documents")
    bounds = [*starts, tokens]
    if any(type(n) is not int for n in bounds) or starts[0] != 0 or not _rises(bounds):
        raise DamagedError(f"{path.name} has documents that are out of order")
    return said


def _rises(numbers: list[int]) -> bool:
    return all(first < second for first, second in itertools.pairwise(numbers))


def _map(path: Path, dtype: torch.dtype, tokens: int) -> Tensor:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size != tokens * dtype.itemsize:
            raise DamagedError(f"it has {size} bytes instead of {tokens * dtype.itemsize}")
        # Not torch.from_file: its mapping could be written, and Linux refuses one of those that is
        # larger than the memory.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # intended
        return torch.frombuffer(mapped, dtype=dtype)


def _replace(path: Path, content: memoryview) -> None:
    # A unique name: ranks that start together all write.
    descriptor, name = tempfile.mkstemp(".partial", f".{path.name}-", path.parent)
    aside = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        force_to_disk(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def _remove_left_over(folder: Path) -> None:
    """Remove partial files of killed processes."""
    for path in folder.glob(".*.partial"):
        if path.stat().st_mtime < time.time() - _DAY_S:
            path.unlink(missing_ok=True)
