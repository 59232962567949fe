"""Loads the model that is probed: a checkpoint of this project, or a published model.

The only module of the probe that imports ``moe_model``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from microscope_tui.extensions.anatomy.probed_model import (
    DTYPES,
    CannotProbe,
    ProbedModel,
    choose_device,
    folder_of,
    load_published,
)
from microscope_tui.extensions.anatomy.probing import run_probe
from microscope_tui.extensions.anatomy.texts import CharacterPieces, TokenizerPieces, Window
from moe_model import DESCRIPTION, CharTokenizer, CheckpointError, read_checkpoint
from moe_model.sampling import generate


def load(
    name: str, *, dtype: str = "auto", device: str = "auto", download: bool = False
) -> ProbedModel:
    """Load the model called ``name``, in evaluation mode.

    Args:
        name: A checkpoint of this project or its run, a folder of a published model, or a name
            on the Hugging Face hub.
        dtype: A key of ``DTYPES``, or ``auto``: as stored.
        device: ``auto``, ``cpu`` or ``cuda``.
        download: Whether a model on the hub may be downloaded.

    Raises:
        CannotProbe: it does not exist, is damaged, or requires custom code or pickles.
    """
    where, path = choose_device(device), Path(name)
    if path.is_dir():
        if any((folder / DESCRIPTION).is_file() for folder in (path, path / "latest")):
            return _own(path, dtype, where)
        return load_published(path, path.resolve().name, dtype, where)
    if path.exists():
        raise CannotProbe(f"{name}: a file; name the folder of a model")
    return load_published(folder_of(name, download), name.split("/")[-1], dtype, where)


def _own(path: Path, dtype: str, device: torch.device) -> ProbedModel:
    try:
        found = read_checkpoint(path)
        tokenizer = found.tokenizer
        model = found.load_model(device)
    except CheckpointError as error:
        raise CannotProbe(str(error)) from error
    if dtype != "auto":
        model = model.to(DTYPES[dtype])
    name = path.absolute().name
    if name in ("latest", "previous", "best", "collapse"):
        name = f"{path.absolute().parent.name}-{name}"
    return probed_model_of(model, tokenizer, name, found.stop_ids)


def probed_model_of(model: Any, tokenizer: Any, name: str, stop_ids: Any = ()) -> ProbedModel:
    """Make a ``ProbedModel`` of a ``LanguageModel`` and its tokenizer.

    Args:
        model: Already in evaluation mode.
        tokenizer: Of characters, or one that holds a tokenizer of the library ``tokenizers``.
        name: As shown.
        stop_ids: Tokens that end a text which the model writes.

    Raises:
        CannotProbe: the model has no router.
    """
    if not model.routers:
        raise CannotProbe(f"{name}: a dense model, without a router; name a Mixture of Experts")
    characters = isinstance(tokenizer, CharTokenizer)
    pieces = CharacterPieces(tokenizer) if characters else TokenizerPieces(tokenizer.library)

    def forward(ids_BS: Tensor, _: Tensor | None) -> Tensor | None:
        logits_BSV: Tensor = model(ids_BS).logits_BSV  # padding on the right changes no real token
        return logits_BSV

    def write(ids: list[int], most: int) -> list[int]:
        return generate(model, torch.tensor(ids), max_new_tokens=most, stop_at=stop_ids)

    context = model.config.max_position_embeddings
    return ProbedModel(name, model, pieces, context, forward, write)


def trace_texts(model: Any, tokenizer: Any, texts: Mapping[str, str], folder: Path) -> str:
    """Trace ``texts``, a slice each, as one text in windows of the model's context.

    Raises nothing but ``KeyboardInterrupt``: the training before it has succeeded.

    Args:
        model: A ``LanguageModel``, which keeps its mode.
        tokenizer: Its tokenizer.
        texts: By the name of the slice, in the order of the text.
        folder: Must not exist.

    Returns:
        One line to print: the command that shows the trace, or why there is none.
    """
    if folder.exists():
        return f"no trace: {folder} exists already"
    was_training = model.training
    try:
        probed = probed_model_of(model.eval(), tokenizer, folder.name)
        whole = Window([], [], [])
        for number, text in enumerate(texts.values()):
            ids, pieces = probed.pieces.encode(text)
            whole.ids.extend(ids)
            whole.texts.extend(pieces)
            whole.slices.extend([number] * len(ids))
        length = model.config.max_position_embeddings
        parts = [slice(start, start + length) for start in range(0, len(whole.ids), length)]
        windows = [Window(whole.ids[at], whole.texts[at], whole.slices[at]) for at in parts]
        outcome = run_probe(probed, windows, list(texts), folder)
    except Exception as error:  # any other failure: the run itself has finished
        return f"no trace: {error}"
    finally:
        model.train(was_training)
    return f"no trace: {outcome.problem}" if outcome.problem else f"moe-microscope {folder}"
