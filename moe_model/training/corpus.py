"""The text of a run: documents, tokenizer, token ids, training part and held-out part.

``tinyshakespeare`` is downloaded once and checked against its SHA-256; a file is one document, a
folder one document per file. Of a published tokenizer only ``tokenizer.json`` and the settings
beside it are read, no code runs, and the network is used only for a tokenizer that you name.

The last tenth is held out in one piece: a model that was trained on the sentences around a held-out
sentence is not really tested on it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from platformdirs import user_cache_path
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from moe_model import (
    SETTINGS,
    SPECIAL_TOKENS,
    TOKENIZER,
    CharTokenizer,
    PretrainedTokenizer,
    Tokenizer,
    UsageError,
    files_of,
    force_to_disk,
    python_docs,
    read_text,
    say,
    write_tensors,
)
from moe_model.huggingface import now_and_then, read_tokenizer

HELD_OUT = 10
"""One token in this many."""
CACHED_FROM = 1_000_000
"""From this many characters on, token ids are kept for the next start. Measured on 100 MB: byte
pairs take 110 s of a core, reading the ids 0.3 s; characters only 3 s, which are not kept."""
FORMAT_VERSION = 2
"""Part of the key; increase it when the format changes, or how documents become ids."""
_PIECE = 1 << 22

PYTHON_DOCS = "python-docs"
TINY_SHAKESPEARE = "tinyshakespeare"
SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SHAKESPEARE_FILE = "tinyshakespeare.txt"

LONG_TEXT = 20_000_000
"""From this many characters on, a line announces that processing takes a while."""

CHAR = "char"
BPE = "bpe"
BPE_VOCABULARY = 8192
END = "<|endoftext|>"
HUB_FILES = (TOKENIZER, SETTINGS, SPECIAL_TOKENS)

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_MOST_IDS = 2**31


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids in sequence, and where documents begin."""

    ids: Tensor
    """``(tokens,)``: uint16, int32 or int64; read-only if mapped from a file."""
    starts: Tensor
    """``(documents,)``, int64, rising: the first token of each document. The first is 0."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Training text and held-out text of a run."""

    tokenizer: Tokenizer
    training: Tokens
    held_out: Tokens
    digest: str
    """SHA-256 of the documents, in hexadecimal: the same text, split into the same documents."""

    @classmethod
    def build(
        cls, documents: Sequence[Document], tokenizer: Tokenizer, seq_len: int, ahead: int
    ) -> Corpus:
        """``UsageError`` if there is too little text, or the tokenizer cannot encode it."""
        digest = documents_digest(documents)
        encode = partial(encode_documents, documents, tokenizer)
        long = count_characters(documents) >= CACHED_FROM
        if long and not isinstance(tokenizer, CharTokenizer):
            key = cache_key(digest, tokenizer)
            ids, starts = cached_tokens(user_cache() / "tokens", key, encode)
        else:
            ids, starts = encode()
        boundary = len(ids) - len(ids) // HELD_OUT
        needed = seq_len + 1 + ahead
        if len(ids) - boundary < needed:
            raise UsageError(
                f"--data has only {len(ids)} tokens, of which a tenth is held out, for --seq-len "
                f"{seq_len}: use at least {needed * HELD_OUT} tokens, or a shorter --seq-len."
            )
        # What is held out may begin with the rest of a document.
        later = starts[starts > boundary] - boundary
        starts_there = torch.cat((torch.zeros(1, dtype=torch.int64), later))
        return cls(
            tokenizer,
            training=Tokens(ids[:boundary], starts[starts < boundary]),
            held_out=Tokens(ids[boundary:], starts_there),
            digest=digest,
        )


def documents_digest(documents: Sequence[Document]) -> str:
    """SHA-256, in hexadecimal, of the texts and where each ends; names do not matter."""
    digest = hashlib.sha256()
    for document in documents:
        content = document.text.encode()
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()


def encode_documents(documents: Sequence[Document], tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """All documents that have tokens: ids ``(tokens,)`` and starts ``(documents,)``.

    The end token, if there is one, ends each. Raises ``UsageError`` if the tokenizer cannot encode
    a document, or returns ids beyond its vocabulary.
    """
    characters = count_characters(documents)
    if characters > LONG_TEXT:
        say(f"encoding {characters / 1e6:,.0f} million characters ...")
    vocabulary = len(tokenizer)
    end = tokenizer.end
    dtype = torch.uint16 if vocabulary <= 1 << 16 else torch.int32
    pieces = [torch.empty(0, dtype=dtype)]
    starts = []
    total = 0
    for document in now_and_then(documents, "encoded", "documents"):
        begins = total
        last = end
        for ids in _encoded(document, tokenizer):
            if not len(ids):
                continue
            # A narrow integer would wrap an id that is too large into another token.
            if int(ids.max()) >= vocabulary:
                raise UsageError(
                    f"--tokenizer returns id {int(ids.max())}, but has {vocabulary} tokens: its "
                    "files do not match; use another tokenizer."
                )
            pieces.append(ids.to(dtype))
            total += len(ids)
            last = int(ids[-1])
        if total > begins:
            starts.append(begins)
        if end is not None and last != end:
            pieces.append(torch.tensor([end]).to(dtype))
            total += 1
    return torch.cat(pieces), torch.tensor(starts, dtype=torch.int64)


def _encoded(document: Document, tokenizer: Tokenizer) -> Iterator[Tensor]:
    """In pieces where that gives the same ids, which take eight times the memory of the text."""
    piece = _PIECE if isinstance(tokenizer, CharTokenizer) else len(document.text) or 1
    for first in range(0, len(document.text), piece):
        try:
            yield tokenizer.encode(document.text[first : first + piece])
        except ValueError as error:
            raise UsageError(f"--data {document.name}: {error}") from error


def cache_key(digest: str, tokenizer: Tokenizer) -> str:
    """SHA-256, in hexadecimal, of everything that determines the ids."""
    files = {n: hashlib.sha256(content).hexdigest() for n, content in tokenizer.files.items()}
    known = {"format": FORMAT_VERSION, "documents": digest, "tokenizer": tokenizer.to_dict()}
    known["files"] = files
    if isinstance(tokenizer, PretrainedTokenizer):
        known["library"] = importlib.metadata.version("tokenizers")
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def cached_tokens(
    folder: Path, key: str, encode: Callable[[], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """The ids and document starts of ``key``: from ``folder``, or from ``encode``, then kept there.
    The file is mapped, so ids may exceed the memory."""
    path = folder / f"{key}.safetensors"
    try:
        found = load_file(path)
        return found["ids"], found["starts"]
    except FileNotFoundError:
        pass
    except (SafetensorError, OSError, KeyError) as error:
        say(f"{path} is damaged ({error}): encoding again.")
    ids, starts = encode()
    aside = folder / f".{key}-{os.getpid()}.partial"  # runs that start together all write
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(aside, {"ids": ids, "starts": starts})
        force_to_disk(aside)
        aside.replace(path)
    except OSError as error:
        reason = error.strerror or error
        say(f"{folder} cannot store token ids ({reason}): keeping them in memory for this run.")
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
    return ids, starts


@dataclass(frozen=True, slots=True)
class Document:
    """A text that is independent of the documents before it."""

    name: str
    """In errors: what ``--data`` names, or a path inside that folder."""
    text: str


def count_characters(documents: Iterable[Document]) -> int:
    return sum(len(document.text) for document in documents)


def user_cache() -> Path:
    """The user's cache folder; it follows ``XDG_CACHE_HOME``."""
    return user_cache_path("moe-microscope")


def load_documents(data: str, cache: Path | None = None) -> list[Document]:
    """At least one, none of them empty; ``UsageError`` if ``data`` does not exist, cannot be read
    or downloaded, is not text, or is empty."""
    if data == PYTHON_DOCS:
        return [Document(data, python_docs("--data"))]
    if data == TINY_SHAKESPEARE:
        return [Document(data, _tiny_shakespeare(cache or user_cache()))]
    if not os.path.exists(data):  # or no access, a loop of links, too long, a NUL
        raise UsageError(
            f"--data {data!r} does not exist: name a file, a folder, {PYTHON_DOCS} or "
            f"{TINY_SHAKESPEARE}."
        )
    path = Path(data)
    documents = _read_folder(path) if path.is_dir() else [Document(data, read_text(path, "--data"))]
    documents = [document for document in documents if document.text]
    if not documents:
        raise UsageError(f"--data {data} contains no text: name a file or folder that does.")
    return documents


def _read_folder(root: Path) -> list[Document]:
    """Every file that is not hidden; a folder reached through several links is read once."""
    names = []
    seen = set()
    try:
        for folder, folders, files in os.walk(root, onerror=_raise, followlinks=True):
            here = os.stat(folder)
            if (here.st_dev, here.st_ino) in seen:
                folders.clear()
                continue
            seen.add((here.st_dev, here.st_ino))
            # In a fixed order, which decides under which of its names a folder is read.
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            paths = [Path(folder, name) for name in files if not name.startswith(".")]
            # A dangling link is treated as a missing file: reading it reports the error.
            found = [path for path in paths if path.is_file() or not path.exists()]
            names += [path.relative_to(root).as_posix() for path in found]
    except OSError as error:
        raise UsageError(
            f"--data {error.filename} cannot be read ({error.strerror}): move it out of the folder."
        ) from error
    instead = "move it out of the folder"
    return [Document(name, read_text(root / name, "--data", instead)) for name in sorted(names)]


def _raise(error: OSError) -> None:
    raise error


def _tiny_shakespeare(cache: Path) -> str:
    import pooch

    try:
        path = pooch.retrieve(
            SHAKESPEARE_URL,
            known_hash=f"sha256:{SHAKESPEARE_SHA256}",
            fname=SHAKESPEARE_FILE,
            path=cache,
        )
    except (OSError, ValueError) as error:  # requests' errors are OSErrors too
        reason = "its SHA-256 differs from the expected one"
        if isinstance(error, OSError):
            reason = type(error).__name__
        raise UsageError(
            f"--data {TINY_SHAKESPEARE} cannot be downloaded ({reason}): download "
            f"{SHAKESPEARE_URL} on another machine and pass the file to --data, or omit --data."
        ) from error
    return read_text(Path(path), "--data")


def make_tokenizer(
    name: str, documents: Sequence[Document], vocabulary: int | None = None
) -> Tokenizer:
    """The tokenizer that ``--tokenizer`` names, or ``UsageError``; a folder wins over a name on the
    hub. ``vocabulary`` is the most tokens that ``bpe`` learns."""
    if name == CHAR:
        known: set[str] = set().union(*(document.text for document in documents))
        return CharTokenizer("".join(sorted(known)))
    if name == BPE:
        return train_byte_pairs(documents, BPE_VOCABULARY if vocabulary is None else vocabulary)
    if os.path.isdir(name):
        return _from_folder(Path(name))
    if _HUB_NAME.fullmatch(name):
        return _from_hub(name)
    raise UsageError(
        f"--tokenizer {name!r} is unknown: choose {CHAR}, {BPE}, a folder with {TOKENIZER}, or "
        "the org/name of a model on the Hugging Face hub."
    )


def train_byte_pairs(documents: Sequence[Document], vocabulary: int) -> PretrainedTokenizer:
    """Byte-level byte-pair encoding as in GPT-2; the same documents give the same files. A short
    text may give fewer tokens, at least 256 bytes and the end token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    characters = count_characters(documents)
    if characters > LONG_TEXT:
        say(f"learning byte pairs from {characters / 1e6:,.0f} million characters ...")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=max(vocabulary, 0),
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.text for document in documents), trainer)
    # A text that contains the spelling of the end token does not end there.
    settings = {"eos_token": END, "split_special_tokens": True}
    return PretrainedTokenizer(files_of(tokenizer, **settings))


def _from_folder(folder: Path) -> PretrainedTokenizer:
    try:
        tokenizer = read_tokenizer(folder, _MOST_IDS)
    except UsageError as error:
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
