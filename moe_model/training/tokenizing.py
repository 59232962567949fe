"""Which tokenizer a run uses: characters, byte pairs learnt from its text, or a published one.

Only ``tokenizer.json`` and the settings beside it are read. No code from a checkpoint runs, and the
network is used only for a tokenizer that you name.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from moe_model import (
    SETTINGS,
    SPECIAL_TOKENS,
    TOKENIZER,
    CharTokenizer,
    PretrainedTokenizer,
    Tokenizer,
    UsageError,
    say,
)
from moe_model.huggingface import HuggingFaceError, read_tokenizer
from moe_model.training.sources import LONG_TEXT, Document, count_characters

CHAR = "char"
BPE = "bpe"
BPE_VOCABULARY = 8192
END = "<|endoftext|>"
LEAST_VOCABULARY = 256 + 1
"""All 256 bytes, so that any text can be encoded, and the end token."""
HUB_FILES = (TOKENIZER, SETTINGS, SPECIAL_TOKENS)

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_MOST_IDS = 2**31


def make_tokenizer(
    name: str, documents: Sequence[Document], vocabulary: int | None = None
) -> Tokenizer:
    """The tokenizer that ``--tokenizer`` names.

    Args:
        name: ``char``, ``bpe``, a folder with ``tokenizer.json``, or ``org/name`` on the Hugging
            Face hub. A folder wins over a name on the hub.
        documents: ``char`` and ``bpe`` are built from them.
        vocabulary: Most tokens that ``bpe`` learns, 8,192 if ``None``; the others have their own.

    Raises:
        UsageError: If it does not exist, cannot be read or downloaded, or is not a tokenizer.
    """
    if name == CHAR:
        known: set[str] = set().union(*(document.text for document in documents))
        return CharTokenizer("".join(sorted(known)))
    if name == BPE:
        return train_byte_pairs(documents, BPE_VOCABULARY if vocabulary is None else vocabulary)
    if os.path.isdir(name):
        return _from_folder(Path(name))
    if os.path.isfile(name):
        raise UsageError(f"--tokenizer {name} is a file: name the folder with {TOKENIZER}.")
    if _HUB_NAME.fullmatch(name):
        return _from_hub(name)
    raise UsageError(
        f"--tokenizer {name!r} is unknown: choose {CHAR}, {BPE}, a folder with {TOKENIZER}, or "
        "the org/name of a model on the Hugging Face hub."
    )


def train_byte_pairs(documents: Sequence[Document], vocabulary: int) -> PretrainedTokenizer:
    """Byte-level byte-pair encoding as in GPT-2, learned from ``documents``; encodes any text.

    The same documents give the same files. A short text may give fewer tokens than asked for.

    Raises:
        UsageError: If ``vocabulary`` is too small for 256 bytes and the end token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocabulary < LEAST_VOCABULARY:
        raise UsageError(
            f"--tokenizer {BPE} cannot have a vocabulary of {vocabulary}: choose "
            f"{LEAST_VOCABULARY} or more, for the 256 bytes and the end of text."
        )
    characters = count_characters(documents)
    if characters > LONG_TEXT:
        say(f"learning byte pairs from {characters / 1e6:,.0f} million characters ...")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.text for document in documents), trainer)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "clean_up_tokenization_spaces": False,
        # A text that contains the spelling of the end token does not end there.
        "split_special_tokens": True,
    }
    return PretrainedTokenizer(
        {TOKENIZER: tokenizer.to_str().encode(), SETTINGS: json.dumps(settings).encode()}
    )


def _from_folder(folder: Path) -> PretrainedTokenizer:
    try:
        tokenizer = read_tokenizer(folder, _MOST_IDS)
    except HuggingFaceError as error:
        raise UsageError(f"--tokenizer {error}") from error
    if tokenizer is None:
        raise UsageError(f"--tokenizer {folder} has no {TOKENIZER}: name a folder that has one.")
    return tokenizer


def _from_hub(name: str) -> PretrainedTokenizer:
    from huggingface_hub import snapshot_download

    try:
        # All files of one commit; without a network, those in the library's cache.
        folder = Path(snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # the library's errors and its transport's have no common class
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UsageError(
            f"--tokenizer {name} is not a folder and cannot be downloaded from Hugging Face "
            f"({reason}): check the name, or fetch {TOKENIZER} and {SETTINGS} elsewhere and name "
            "their folder."
        ) from error
    return _from_folder(folder)
