"""The end-of-text tokens of a published folder.

A chat model has several: one ends a turn, another a document. transformers uses those of
``generation_config.json`` and falls back to ``config.json``; here both count, and so does the end
token of the tokenizer.
"""

from __future__ import annotations

import json
from pathlib import Path

from moe_model import read_small_file, shown
from moe_model.huggingface.config import CONFIG, HuggingFaceError
from moe_model.huggingface.files import inside

GENERATION_CONFIG = "generation_config.json"


def read_stop_ids(folder: Path, vocab_size: int) -> list[int]:
    """Every ``eos_token_id`` of the files in ``folder``, each once.

    Raises:
        HuggingFaceError: If a file is damaged, or names a token that the model does not have.
    """
    found: list[int] = []
    for name in (GENERATION_CONFIG, CONFIG):
        if (folder / name).exists():
            found += _stop_ids(inside(folder, name), vocab_size)
    return list(dict.fromkeys(found))


def _stop_ids(path: Path, vocab_size: int) -> list[int]:
    try:
        said = json.loads(read_small_file(path)).get("eos_token_id")
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        raise HuggingFaceError(
            f"{path} is not a JSON object ({error}): download it again."
        ) from error
    ids = said if isinstance(said, list) else [] if said is None else [said]
    if not all(type(token) is int and 0 <= token < vocab_size for token in ids):
        raise HuggingFaceError(
            f"{path}: eos_token_id={shown(said)}: it must be a token from 0 to {vocab_size - 1}, "
            "a list of them, or null."
        )
    return ids
