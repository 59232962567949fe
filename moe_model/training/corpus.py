"""The text of a run: documents, tokenizer, token ids, training part and held-out part.

A document is a file, or a record of JSON lines or Parquet. Of a published tokenizer only
``tokenizer.json`` and the settings beside it are read, no code runs, and the network is used only
for a tokenizer that you name.

The tokens of a long text are a file that all processes map. The text is read again only if the size
or the time of one of its files changed.

The last tenth is held out in one piece: a model that was trained on the sentences around a held-out
sentence is not really tested on it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
from platformdirs import user_cache_path
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from moe_model import (
    SETTINGS,
    TOKENIZER,
    CharTokenizer,
    PretrainedTokenizer,
    Tokenizer,
    UsageError,
    force_to_disk,
    python_docs,
    read_text,
    say,
    shown,
    write_tensors,
)
from moe_model.huggingface.read import read_tokenizer
from moe_model.tokenizer import SPECIAL_TOKENS, files_of

HELD_OUT = 10
"""One token in this many."""
CACHED_FROM = 1_000_000
"""From this many bytes on, token ids are kept for the next start. Measured on 100 MB: byte pairs
take 110 s of a core, reading the ids 0.3 s."""
FORMAT_VERSION = 2
"""Part of the key; increase it when the format changes, or how documents become ids."""
_PIECE = 1 << 20

PYTHON_DOCS = "python-docs"
TINY_SHAKESPEARE = "tinyshakespeare"
SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

CHAR = "char"
BPE = "bpe"
BPE_VOCABULARY = 8192
END = "<|endoftext|>"
HUB_FILES = (TOKENIZER, SETTINGS, SPECIAL_TOKENS)

_WEIGHTED = re.compile(r"(.+):([1-9]\d{0,3})", re.DOTALL)
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
    """Training text and held-out text of one source."""

    name: str
    weight: int
    tokenizer: Tokenizer
    training: Tokens
    held_out: Tokens
    digest: str
    """Of its documents."""

    @classmethod
    def build(cls, documents: Documents, tokenizer: Tokenizer, seq_len: int, ahead: int) -> Corpus:
        """Encode ``documents``, or take the ids from an earlier run, and split them.

        Args:
            tokenizer: Its end token, if it has one, ends each document.
            seq_len: Tokens of a training sequence.
            ahead: Depths of multi-token prediction; each needs one more token.

        Raises:
            UsageError: If there is too little text, or the tokenizer cannot encode it.
        """
        encode = partial(encode_documents, documents, tokenizer)
        if documents.size >= CACHED_FROM:
            key = cache_key(documents.digest, tokenizer)
            ids, starts = cached_tokens(user_cache() / "tokens", key, encode)
        else:
            ids, starts = encode()
        boundary = len(ids) - len(ids) // HELD_OUT
        needed = seq_len + 1 + ahead
        if len(ids) - boundary < needed:
            raise UsageError(
                f"--data {documents.name} has only {len(ids)} tokens, of which a tenth is held "
                f"out, for --seq-len {seq_len}: use at least {needed * HELD_OUT} tokens, or a "
                "shorter --seq-len."
            )
        before = int(torch.searchsorted(starts, boundary))
        # What is held out may begin with the rest of a document.
        later = starts[before:] - boundary
        starts_there = torch.cat((torch.zeros(1, dtype=torch.int64), later[later > 0]))
        return cls(
            documents.name,
            documents.weight,
            tokenizer,
            training=Tokens(ids[:boundary], starts[:before]),
            held_out=Tokens(ids[boundary:], starts_there),
            digest=documents.digest,
        )


def documents_digest(documents: Iterable[Document]) -> str:
    """SHA-256, in hexadecimal, of the texts and where each ends."""
    digest = hashlib.sha256()
    for document in documents:
        content = document.text.encode()
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()


def encode_documents(documents: Documents, tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """Ids ``(tokens,)`` and starts ``(documents,)``. The end token, if there is one, ends each.
    ``UsageError`` if the tokenizer cannot encode a document, or returns ids beyond its vocabulary.
    """
    vocabulary = len(tokenizer)
    dtype = torch.uint16 if vocabulary <= 1 << 16 else torch.int32
    starts = []
    total = 0
    with NamedTemporaryFile() as spool:  # the ids may exceed the memory
        for document in documents:
            begins = total
            for ids in _encoded(document, tokenizer):
                # A narrow integer would wrap an id that is too large into another token.
                if int(ids.max()) >= vocabulary:
                    raise UsageError(
                        f"--tokenizer returns id {int(ids.max())}, but has {vocabulary} tokens: "
                        "its files do not match; use another tokenizer."
                    )
                spool.write(ids.to(dtype).numpy().data)
                total += len(ids)
            if total > begins:
                starts.append(begins)
        spool.flush()
        ids = torch.from_file(spool.name, size=total, dtype=dtype)
    return ids, torch.tensor(starts, dtype=torch.int64)


def _encoded(document: Document, tokenizer: Tokenizer) -> Iterator[Tensor]:
    """In pieces where that gives the same ids, which take eight times the memory of the text; then
    the end token, if that is missing."""
    piece = _PIECE if isinstance(tokenizer, CharTokenizer) else len(document.text) or 1
    last = tokenizer.end
    for first in range(0, len(document.text), piece):
        try:
            ids = tokenizer.encode(document.text[first : first + piece])
        except ValueError as error:
            raise UsageError(f"--data {document.name}: {error}") from error
        if len(ids):
            last = int(ids[-1])
            yield ids
    if tokenizer.end not in (None, last):
        yield torch.tensor([tokenizer.end])


def cache_key(digest: str, tokenizer: Tokenizer) -> str:
    """SHA-256, in hexadecimal, of everything that determines the ids.

    Args:
        digest: That of the documents.
        tokenizer: Its description, its files and the version of the library enter the hash.
    """
    files = {n: hashlib.sha256(content).hexdigest() for n, content in tokenizer.files.items()}
    known = {"format": FORMAT_VERSION, "documents": digest, "tokenizer": tokenizer.to_dict()}
    known["files"] = files
    if isinstance(tokenizer, PretrainedTokenizer):
        known["library"] = importlib.metadata.version("tokenizers")
    return _sha256(known)


def _sha256(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


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
        say("encoding the text ...")
    except (SafetensorError, OSError, KeyError) as error:
        say(f"{path} is damaged ({error}): encoding again.")
    ids, starts = encode()
    aside = folder / f".{key}-{os.getpid()}.partial"  # runs that start together all write
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(aside, {"ids": ids, "starts": starts})
        force_to_disk(aside)
        aside.replace(path)
        found = load_file(path)
        return found["ids"], found["starts"]
    except OSError as error:
        reason = error.strerror or error
        say(f"{folder} cannot store token ids ({reason}): keeping them in memory for this run.")
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
    return ids, starts


def kept(kind: str, facts: Any, make: Callable[[], Any]) -> Any:
    """The result of ``make``, JSON that is kept in the user's cache for the same ``facts``.

    Args:
        kind: Folder of the cache.
        facts: JSON of everything that determines the result.
    """
    path = user_cache() / kind / f"{_sha256(facts)}.json"
    with suppress(OSError, ValueError):
        return json.loads(path.read_text("utf-8"))
    made = make()
    with suppress(OSError):  # the next process makes it again
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(made), "utf-8")
    return made


@dataclass(frozen=True, slots=True)
class Document:
    """A text that is independent of the documents before it."""

    name: str
    """In errors: what ``--data`` names, or a file, and which record of it."""
    text: str


@dataclass(frozen=True)
class Documents:
    """One source, read anew by every iteration, one document at a time.

    Iterating raises ``UsageError`` where a file cannot be read or a record has no text.
    """

    name: str
    """What ``--data`` names."""
    read: Callable[[], Iterable[Document]]
    size: int = 0
    """Bytes in its files."""
    facts: Sequence[Any] = ()
    """What changes when its files do."""
    weight: int = 1

    def __iter__(self) -> Iterator[Document]:
        return filter(lambda document: document.text, self.read())

    @cached_property
    def digest(self) -> str:
        """See :func:`documents_digest`; that of a long source is kept until its files change."""
        if self.size < CACHED_FROM:
            return documents_digest(self)
        return str(kept("digests", self.facts, lambda: documents_digest(self)))


def user_cache() -> Path:
    """The user's cache folder; it follows ``XDG_CACHE_HOME``."""
    return user_cache_path("moe-microscope")


def load_sources(given: Sequence[str], text_field: str) -> list[Documents]:
    """The sources that ``--data`` names, as ``NAME`` or ``NAME:WEIGHT``.

    ``UsageError`` if there are none, one is named twice or does not exist, or it cannot be
    downloaded or listed.
    """
    sources: list[Documents] = []
    for one in given or ("",):
        match = None if os.path.exists(one) else _WEIGHTED.fullmatch(one)
        name, weight = match.groups() if match else (one, 1)
        if name in [source.name for source in sources]:
            raise UsageError(f"--data names {name} twice: give it once, with one weight.")
        sources.append(load_documents(name, text_field, int(weight)))
    return sources


def load_documents(data: str, text_field: str = "text", weight: int = 1) -> Documents:
    """The source ``data``, whose files are listed now and read later, see :class:`Documents`.

    ``UsageError`` if it does not exist, or cannot be downloaded or listed.

    Args:
        data: ``python-docs``, ``tiny-shakespeare``, a file or a folder, read with its subfolders.
        text_field: Field of a JSON or Parquet record that has the text.
        weight: Sequences that each round of the training takes from it.
    """
    if data == PYTHON_DOCS:
        return Documents(data, lambda: [Document(data, python_docs("--data"))], weight=weight)
    path = Path(data)
    if data == TINY_SHAKESPEARE:
        path = _tiny_shakespeare()
    elif not os.path.exists(data):  # or no access, a loop of links, too long, a NUL
        raise UsageError(
            f"--data {data!r} does not exist: name a file, a folder, {PYTHON_DOCS} or "
            f"{TINY_SHAKESPEARE}, or NAME:WEIGHT with a weight from 1 to 9999."
        )
    files = _files_below(path) if path.is_dir() else {"": path.stat()}
    if not files or not all(stat.S_ISREG(found.st_mode) for found in files.values()):
        raise UsageError(
            f"--data {data!r} is an empty folder or a pipe, which cannot be read twice: name a "
            "file or a folder with text."
        )

    def read() -> Iterator[Document]:
        for name in files:
            yield from _read_file(path / name, text_field)

    stamps = [(name, found.st_size, found.st_mtime_ns) for name, found in files.items()]
    size = sum(found.st_size for found in files.values())
    return Documents(data, read, size, [os.path.abspath(path), text_field, stamps], weight)


def _read_file(path: Path, field: str) -> Iterator[Document]:
    if path.suffix not in (".jsonl", ".parquet"):
        instead = "name another file, or move it out of the folder"
        yield Document(str(path), read_text(path, "--data", instead))
        return
    number = 0
    try:
        for record in _records(path, field):
            text = record.get(field) if isinstance(record, dict) else None
            if not isinstance(text, str):
                raise ValueError(f"no text in {field!r} of {shown(record)}")
            text.encode()  # JSON can spell half a character
            number += 1
            yield Document(f"{path}:{number}", text)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"--data {path}, after {number} records: {error}: correct it, or --text-field."
        ) from error


def _records(path: Path, field: str) -> Iterator[Any]:
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8-sig") as file:
            yield from map(json.loads, filter(str.strip, file))
        return
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ValueError("Parquet needs pip install 'moe-microscope[parquet]'") from error
    with ParquetFile(path) as file:
        for batch in file.iter_batches(1024, columns=[field]):
            yield from batch.to_pylist()


def _files_below(root: Path) -> dict[str, os.stat_result]:
    files = {}
    seen = set()
    try:
        for folder, folders, names in os.walk(root, onerror=_raise, followlinks=True):
            here = os.stat(folder)
            if (here.st_dev, here.st_ino) in seen:
                folders.clear()
                continue
            seen.add((here.st_dev, here.st_ino))
            # In a fixed order, which decides under which of its names a folder is read.
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in names:
                path = Path(folder, name)
                if not name.startswith(".") and stat.S_ISREG((found := path.stat()).st_mode):
                    files[path.relative_to(root).as_posix()] = found
    except OSError as error:
        raise UsageError(
            f"--data {error.filename} cannot be read ({error.strerror}): move it out of the folder."
        ) from error
    return dict(sorted(files.items()))


def _raise(error: OSError) -> None:
    raise error


def _tiny_shakespeare() -> Path:
    import pooch

    try:
        path: str = pooch.retrieve(
            SHAKESPEARE_URL,
            known_hash=f"sha256:{SHAKESPEARE_SHA256}",
            fname=f"{TINY_SHAKESPEARE}.txt",
            path=user_cache(),
        )
    except (OSError, ValueError) as error:  # requests' errors are OSErrors too
        reason = "its SHA-256 differs from the expected one"
        if isinstance(error, OSError):
            reason = type(error).__name__
        raise UsageError(
            f"--data {TINY_SHAKESPEARE} cannot be downloaded ({reason}): download "
            f"{SHAKESPEARE_URL} on another machine and pass the file to --data, or omit --data."
        ) from error
    return Path(path)


def learned_tokenizer(name: str, sources: Sequence[Documents], vocabulary: int | None) -> Tokenizer:
    """As :func:`make_tokenizer`; what it learns from a long text is kept for the next time."""
    make = partial(make_tokenizer, name, chain.from_iterable(sources), vocabulary)
    if name not in (CHAR, BPE) or max(source.size for source in sources) < CACHED_FROM:
        return make()

    def learn() -> dict[str, Any]:
        made = make()
        return {n: text.decode() for n, text in made.files.items()} or made.to_dict()

    found = kept("tokenizers", [name, vocabulary, [source.digest for source in sources]], learn)
    if name == CHAR:
        return CharTokenizer.from_dict(found)
    return PretrainedTokenizer({n: text.encode() for n, text in found.items()})


def make_tokenizer(
    name: str, documents: Iterable[Document], vocabulary: int | None = None
) -> Tokenizer:
    """The tokenizer that ``--tokenizer`` names.

    Args:
        name: ``char``, ``bpe``, a folder with ``tokenizer.json``, or ``org/name`` on the Hugging
            Face hub. A folder wins over a name on the hub.
        documents: What ``char`` and ``bpe`` learn from.
        vocabulary: Most tokens that ``bpe`` learns, 8,192 if ``None``; the others have their own.

    Raises:
        UsageError: If it does not exist, cannot be read or downloaded, or is not a tokenizer.
    """
    if name == CHAR:
        known: set[str] = set()
        for document in documents:
            known.update(document.text)
        if not known:
            raise UsageError("--data contains no text: name a file or folder that does.")
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


def train_byte_pairs(documents: Iterable[Document], vocabulary: int) -> PretrainedTokenizer:
    """Byte-level byte-pair encoding as in GPT-2; the same documents give the same files. A short
    text may give fewer tokens, at least 256 bytes and the end token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

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
