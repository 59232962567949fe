"""What a checkpoint folder holds, and how it is read.

``checkpoint.json`` says what the model is and lists the other files with their size and SHA-256;
``model.safetensors`` has the weights, ``training.safetensors`` what the optimizer and the data
sampler remember, which an imported model does not have. A tokenizer that is more than a list of
characters has files of its own. Nothing in it is executed when it is read: no pickle, whoever made
the file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from moe_model.config import ModelConfig
from moe_model.model import LanguageModel
from moe_model.pretrained_tokenizer import KIND, PretrainedTokenizer
from moe_model.tokenizer import CharTokenizer, Tokenizer

FORMAT = "moe-microscope checkpoint"
FORMAT_VERSION = 1
DESCRIPTION = "checkpoint.json"
WEIGHTS = "model.safetensors"
TRAINING_STATE = "training.safetensors"


class CheckpointError(ValueError):
    """A folder that is no checkpoint, or a damaged one; the message says which and what to do."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose files are all there and unchanged since they were written."""

    folder: Path
    """Where it is, links resolved: a checkpoint that is replaced meanwhile stays readable."""
    step: int
    """Optimizer steps completed."""
    config: ModelConfig
    """Shape of the model."""
    tokenizer_if_any: Tokenizer | None
    """How text becomes tokens; none where a model was imported without."""
    description: dict[str, Any]
    """Everything in ``checkpoint.json``."""

    @property
    def tokenizer(self) -> Tokenizer:
        """How text becomes tokens; ``CheckpointError`` where there is none."""
        if self.tokenizer_if_any is None:
            raise CheckpointError(
                f"{self.folder} has no tokenizer: the model was imported without one; put its "
                "tokenizer.json beside its config.json and import it again."
            )
        return self.tokenizer_if_any

    def load_model(self, device: torch.device | str = "cpu") -> LanguageModel:
        """The model in evaluation mode; ``CheckpointError`` where weights and config disagree."""
        with torch.device("meta"):
            model = LanguageModel(self.config)
        model = model.to_empty(device=device)
        self.load_weights(model, device)
        return model.eval()

    def load_weights(self, model: LanguageModel, device: torch.device | str = "cpu") -> None:
        """Give ``model`` the weights; ``CheckpointError`` where they do not fit it."""
        try:
            model.load_state_dict(load_file(self.folder / WEIGHTS, device=str(device)))
        except (SafetensorError, RuntimeError, OSError) as error:
            raise CheckpointError(
                f"{self.folder / WEIGHTS} does not fit its own {DESCRIPTION} ({error}): "
                "use another checkpoint."
            ) from error


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and verify the checkpoint at ``path``, or at ``path/latest`` where ``path`` is a run.

    Raises:
        CheckpointError: If there is none, or a file of it is missing, cut short or changed.
    """
    folder = path if (path / DESCRIPTION).is_file() else path / "latest"
    if not (folder / DESCRIPTION).is_file():
        early = ", or it was stopped before its first checkpoint" if path.is_dir() else ""
        raise CheckpointError(
            f"{path} holds no {DESCRIPTION}{early}: name a checkpoint folder, such as "
            "checkpoints/RUN/latest or checkpoints/RUN/best."
        )
    folder = folder.resolve()
    description = _read_description(folder / DESCRIPTION)
    for name, expected in description["files"].items():
        _verify(folder / name, expected["bytes"], expected["sha256"])
    return Checkpoint(
        folder=folder,
        step=description["step"],
        config=description["model"],
        tokenizer_if_any=_read_tokenizer(description["tokenizer"], folder),
        description=description["plain"],
    )


def file_facts(path: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file, as ``checkpoint.json`` lists them."""
    with path.open("rb") as file:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def read_plain_description(folder: Path) -> dict[str, Any]:
    """What ``checkpoint.json`` in ``folder`` says, without a look at the files it lists.

    Raises:
        CheckpointError: If there is none, or it is of something else.
    """
    path = folder / DESCRIPTION
    try:
        return _read_plain(path)
    except (ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"{path} is not a description of a checkpoint ({error}).") from error


def _read_plain(path: Path) -> dict[str, Any]:
    plain = json.loads(path.read_text("utf-8"))
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        raise ValueError(f"it does not say format={FORMAT!r}")
    if plain["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format_version={plain['format_version']}, known is {FORMAT_VERSION}")
    return plain


def _read_description(path: Path) -> dict[str, Any]:
    try:
        plain = _read_plain(path)
        if WEIGHTS not in plain["files"]:
            raise ValueError(f"it does not list {WEIGHTS}")
        if any(Path(name).name != name for name in plain["files"]):
            raise ValueError("it lists a file outside its own folder")
        return {
            "step": int(plain["step"]),
            "model": ModelConfig.from_dict(plain["model"]),
            "tokenizer": plain["tokenizer"],
            "files": {n: {k: f[k] for k in ("bytes", "sha256")} for n, f in plain["files"].items()},
            "plain": plain,
        }
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else error
        raise CheckpointError(
            f"{path} is not a description of a checkpoint ({reason}): use another checkpoint."
        ) from error


def _read_tokenizer(description: dict[str, Any] | None, folder: Path) -> Tokenizer | None:
    if description is None:
        return None
    try:
        if description["kind"] == KIND:
            return PretrainedTokenizer.from_folder(description, folder)
        return CharTokenizer.from_dict(description)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise CheckpointError(
            f"{folder / DESCRIPTION} describes no tokenizer ({error}): use another checkpoint."
        ) from error


def write_description(folder: Path, config: ModelConfig, step: int, **facts: Any) -> None:
    """Write the ``checkpoint.json`` of ``folder``, which holds all other files already.

    Args:
        folder: Where.
        config: Of the model.
        step: Optimizer steps completed.
        facts: The other entries; ``tokenizer`` must be among them.
    """
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "step": step,
        "model": config.to_dict(),
        **facts,
        "files": {path.name: file_facts(path) for path in sorted(folder.iterdir())},
    }
    text = json.dumps(description, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / DESCRIPTION).write_text(text + "\n", "utf-8")


def _verify(path: Path, size: int, digest: str) -> None:
    try:
        found = file_facts(path)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}): use another checkpoint."
        ) from error
    if found != {"bytes": size, "sha256": digest}:
        raise CheckpointError(
            f"{path} is damaged ({found['bytes']} bytes, {size} were written, or other contents): "
            "use another checkpoint, such as best or an older step."
        )
