"""The contents of a checkpoint folder, and how to read and write it.

``checkpoint.json`` describes the model and lists the other files with their size and SHA-256.
``model.safetensors`` has the weights, ``training.safetensors`` the state of the optimizer and the
data sampler, which an imported model lacks. A tokenizer other than characters has its own files.
Reading executes nothing: no pickle.

The ``sha256`` of ``checkpoint.json`` covers all its other entries as ASCII JSON with sorted keys
and no spaces, so that it may be reformatted. A file without it (older, or hand-made) is accepted.
It is not a signature: every value is validated as untrusted input.
"""

import hashlib
import json
import math
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from moe_model.config import ModelConfig, count, shown
from moe_model.model import LanguageModel
from moe_model.tokenizer import KIND, CharTokenizer, PretrainedTokenizer, Tokenizer, stop_ids_of

FORMAT = "moe-microscope checkpoint"
FORMAT_VERSION = 1
DESCRIPTION = "checkpoint.json"
MOST_BYTES = 16 * 2**20
"""Size limit of ``checkpoint.json``, mostly a vocabulary of characters."""

UNREADABLE = (
    ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError, OSError,
    SafetensorError,
)  # fmt: skip
"""Errors that reading an untrusted file can raise."""

WEIGHTS = "model.safetensors"
TRAINING_STATE = "training.safetensors"


class CheckpointError(ValueError):
    """The folder is not a checkpoint, or is damaged; the message names the cause and what to do."""


@contextmanager
def _blamed_on(path: Path, what: str) -> Iterator[None]:
    """Turn what reading an untrusted file can raise into ``CheckpointError``."""
    try:
        yield
    except CheckpointError:
        raise
    except UNREADABLE as error:
        missing = isinstance(error, KeyError)
        reason = f"{shown(error.args[0])} is missing" if missing else str(error)
        if isinstance(error, OSError):
            reason = error.strerror or reason
        raise CheckpointError(f"{path} {what} ({reason}): use another checkpoint.") from error


def read_plain_description(folder: Path) -> dict[str, Any]:
    """The entries of ``checkpoint.json``, ``options`` among them, without a look at other files.

    Raises:
        CheckpointError: If the file is missing, damaged, too large, of another version or not the
            description of a checkpoint.
    """
    path = folder / DESCRIPTION
    with _blamed_on(path, "is not a description of a checkpoint"):
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_BYTES:
            raise ValueError(f"it is not a file of at most {MOST_BYTES} bytes")
        text = path.read_bytes().decode("utf-8")
        plain = json.loads(text, parse_float=_finite, parse_constant=_finite)
        if not isinstance(plain, dict) or plain.get("format") != FORMAT:
            raise ValueError(f"it lacks format={FORMAT!r}")
        version = plain["format_version"]
        if type(version) is not int or version != FORMAT_VERSION:
            raise ValueError(
                f"format_version={shown(version)}, but only {FORMAT_VERSION} is supported"
            )
        digest = digest_of(plain)
        if plain.get("sha256", digest) != digest:
            raise ValueError("it is damaged: its checksum does not match")
        count("step", plain["step"])
        if not isinstance(plain.get("options"), dict):
            plain["options"] = {}
    return plain


def _finite(number: str) -> float:
    """``ValueError`` for what Python accepts but JSON does not: NaN, Infinity, 1e999."""
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number[:20]} is not a finite number")
    return value


def digest_of(description: dict[str, Any]) -> str:
    """SHA-256, in hexadecimal, of all entries but ``sha256``, as the module describes."""
    rest = {name: value for name, value in description.items() if name != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint: all files exist and are unchanged."""

    folder: Path
    """Links resolved, so that it stays readable if one is replaced."""
    step: int
    """Optimizer steps completed."""
    config: ModelConfig
    tokenizer_if_any: Tokenizer | None
    """``None`` if the model was imported without one."""
    stop_ids: tuple[int, ...]
    """The tokens that end a text."""
    description: dict[str, Any]
    """All of ``checkpoint.json``; ``published`` is the ``config.json`` of an imported model."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model; ``CheckpointError`` if there is none."""
        if self.tokenizer_if_any is None:
            raise CheckpointError(
                f"{self.folder} has no tokenizer: the model was imported without one. Copy its "
                "tokenizer.json beside its config.json and import it again."
            )
        return self.tokenizer_if_any

    def load_model(self, device: torch.device | str = "cpu") -> LanguageModel:
        """A new model with these weights, fp32, in evaluation mode.

        ``CheckpointError`` if weights and config disagree, or a number in them is not finite.
        """
        with torch.device("meta"):
            model = LanguageModel(self.config)
        model = model.to_empty(device=device)
        self.load_weights(model, device)
        return model.eval()

    def load_weights(self, model: LanguageModel, device: torch.device | str = "cpu") -> None:
        """Copy the weights into ``model``; the file is read onto ``device``.

        ``CheckpointError`` if they do not fit, or a number in them is not finite.
        """
        with _blamed_on(self.folder / WEIGHTS, f"does not fit its own {DESCRIPTION}"):
            weights = load_file(self.folder / WEIGHTS, device=str(device))
            for name, tensor in weights.items():
                if not tensor.is_floating_point():  # torch would convert it without a word
                    raise ValueError(f"{name} is {tensor.dtype}, not a floating-point type")
                if not tensor.isfinite().all():
                    raise ValueError(f"{name} has numbers that are not finite")
            model.load_state_dict(weights)


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in ``path``, or in ``path/latest``, verified against its description.

    It reads every file once for its checksum, but does not keep the weights. ``CheckpointError`` if
    there is no checkpoint, or a file is missing, changed or does not fit the others.
    """
    folder = path if (path / DESCRIPTION).is_file() else path / "latest"
    if not (folder / DESCRIPTION).is_file():
        early = ", or the run stopped before its first checkpoint" if path.is_dir() else ""
        raise CheckpointError(
            f"{path} has no {DESCRIPTION}{early}: name a checkpoint folder, such as "
            "checkpoints/RUN/latest or checkpoints/RUN/best."
        )
    folder = folder.resolve()
    plain = read_plain_description(folder)
    with _blamed_on(folder / DESCRIPTION, "is not a description of a checkpoint"):
        files = {name: (facts["bytes"], facts["sha256"]) for name, facts in plain["files"].items()}
        if WEIGHTS not in files:
            raise ValueError(f"it does not list {WEIGHTS}")
        for name in files:
            if Path(name).name != name or not name.isprintable() or len(name) > 255:
                raise ValueError(f"it lists {shown(name)}: not a file name inside the folder")
        config = ModelConfig.from_dict(plain["model"])
        ends = [count("stop_ids", token) for token in plain.get("stop_ids", [])]
        if max(ends, default=0) >= config.vocab_size:
            raise ValueError(f"stop_ids={shown(ends)} for a vocab_size of {config.vocab_size}")
        described = plain["tokenizer"]
        if not isinstance(published := plain.get("published"), dict | None):
            raise ValueError(f"published={shown(published)}: it must be an object")
    for name, facts in files.items():
        _verify(folder / name, *facts)
    _refuse_other_size(folder / WEIGHTS, config)
    tokenizer = None if described is None else _read_tokenizer(described, folder, config.vocab_size)
    return Checkpoint(folder, plain["step"], config, tokenizer, stop_ids_of(tokenizer, ends), plain)


def _read_tokenizer(described: Any, folder: Path, vocab_size: int) -> Tokenizer:
    with _blamed_on(folder / DESCRIPTION, "describes no usable tokenizer"):
        tokenizer: Tokenizer
        if described["kind"] == KIND:
            tokenizer = PretrainedTokenizer.from_folder(described, folder)
        else:
            tokenizer = CharTokenizer.from_dict(described)
        if len(tokenizer) > vocab_size:
            raise ValueError(f"it has {len(tokenizer)} tokens, but vocab_size={vocab_size}")
    return tokenizer


def file_facts(path: Path) -> dict[str, Any]:
    """Size and SHA-256, as ``checkpoint.json`` lists them; reads the whole file."""
    with path.open("rb") as file:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def write_description(folder: Path, config: ModelConfig, step: int, **facts: Any) -> None:
    """Write the ``checkpoint.json`` of ``folder``, which must hold all other files already.

    Args:
        step: Optimizer steps completed; 0 for a model that was not trained here.
        facts: The other entries; ``tokenizer`` must be among them, ``None`` if there is none.
    """
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "step": step,
        "model": config.to_dict(),
        **facts,
        "files": {path.name: file_facts(path) for path in sorted(folder.iterdir())},
    }
    # The checksum of what a reader will see: JSON turns tuples into lists.
    description["sha256"] = digest_of(json.loads(json.dumps(description)))
    text = json.dumps(description, indent=1, ensure_ascii=False, allow_nan=False)
    # A path that is not UTF-8 has lone surrogates, which ASCII JSON can represent.
    (folder / DESCRIPTION).write_bytes((text + "\n").encode("utf-8", "backslashreplace"))


def _verify(path: Path, size: object, digest: object) -> None:
    with _blamed_on(path, "cannot be read"):
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe or a device would never end
            raise CheckpointError(f"{path} is not a regular file: use another checkpoint.")
        found = file_facts(path)
    if found != {"bytes": size, "sha256": digest}:
        raise CheckpointError(
            f"{path} is damaged ({found['bytes']} bytes of {shown(size)}, or a wrong checksum): "
            "use another checkpoint, such as best or an older step."
        )


def _refuse_other_size(path: Path, config: ModelConfig) -> None:
    """Before the model is built: a wrong description could ask for more than the memory."""
    routers = config.num_hidden_layers - config.first_k_dense_replace
    routers += config.num_nextn_predict_layers
    expected = config.parameters() + routers * config.n_routed_experts  # each has an expert_bias
    with _blamed_on(path, "cannot be read"), safe_open(path, framework="pt") as file:
        found = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    if found != expected:
        raise CheckpointError(
            f"{path} does not fit its own {DESCRIPTION} ({found} numbers, the model has "
            f"{expected}): use another checkpoint."
        )


@contextmanager
def fresh_folder(target: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes ``target`` at the end, forced to disk.

    After an exception in the block nothing is left of it. ``FileExistsError`` if ``target`` exists,
    other ``OSError`` if it cannot be made.
    """
    if os.path.lexists(target):
        raise FileExistsError(f"{target} exists: choose another name, or remove it first.")
    aside = target.parent / f".{target.name}.partial"
    shutil.rmtree(aside, ignore_errors=True)  # left by a killed process
    aside.mkdir()
    try:
        yield aside
        for path in (*aside.iterdir(), aside):
            force_to_disk(path)
        aside.rename(target)
        force_to_disk(target.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file with the permissions of any new file; ``OSError`` if it fails.

    Tensors must be contiguous and share no memory.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        # Transformers 4 rejects a file without this metadata.
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:  # raised on a full disk
        raise OSError(f"{path.name} cannot be written: {error}") from error
    path.chmod(mode)


def force_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
