"""Documents as token ids, split into training text and held-out text.

The last tenth is held out in one piece: a model that was trained on the sentences around a held-out
sentence is not really tested on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moe_model import CharTokenizer, Tokenizer, UsageError, say
from moe_model.huggingface import now_and_then
from moe_model.training.sources import LONG_TEXT, Document, UserCache, count_characters, user_cache
from moe_model.training.token_cache import DTYPES, cache_key, dtype_name, kept_tokens

HELD_OUT = 10
"""One token in this many."""
KEPT_FROM = 1_000_000
"""From this many characters on, token ids are cached: byte pairs take about a second for so
many."""
KEPT_FROM_AS_CHARACTERS = 64_000_000
"""The same for :class:`CharTokenizer`, which is as fast as reading the ids: there the only gain is
that a file can be mapped instead of held in memory."""

_PIECE = 1 << 22


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
        cls,
        documents: Sequence[Document],
        tokenizer: Tokenizer,
        seq_len: int,
        ahead: int,
        cache: Path | UserCache | None = "user",
    ) -> Corpus:
        """Encode ``documents``, or take the ids from an earlier run, and split them.

        Args:
            documents: In the order in which they are concatenated.
            tokenizer: Its end token, if it has one, ends each document.
            seq_len: Tokens in a sequence; each part must hold one sequence and the tokens it
                predicts.
            ahead: Tokens to predict beyond the next one.
            cache: Folder for the token ids of a long text; ``None`` caches nothing.

        Raises:
            UsageError: If there is too little text, or the tokenizer cannot encode it.
        """
        digest = documents_digest(documents)

        def encode() -> tuple[Tensor, Tensor]:
            return encode_documents(documents, tokenizer)

        if cache is None or not worth_keeping(documents, tokenizer):
            ids, starts = encode()
        else:
            ids, starts = _kept(cache, digest, tokenizer, encode)
        boundary = len(ids) - len(ids) // HELD_OUT
        needed = seq_len + 1 + ahead
        if len(ids) - boundary < needed:
            raise UsageError(
                f"--data has only {len(ids)} tokens, of which a tenth is held out, for --seq-len "
                f"{seq_len}: use at least {needed * HELD_OUT} tokens, or a shorter --seq-len."
            )
        return cls(
            tokenizer,
            training=Tokens(ids[:boundary], starts[starts < boundary]),
            held_out=Tokens(ids[boundary:], _starts_from(starts, boundary)),
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


def worth_keeping(documents: Sequence[Document], tokenizer: Tokenizer) -> bool:
    """Whether encoding again is slower than reading a file."""
    as_characters = isinstance(tokenizer, CharTokenizer)
    return count_characters(documents) >= (KEPT_FROM_AS_CHARACTERS if as_characters else KEPT_FROM)


def encode_documents(documents: Sequence[Document], tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """All documents one after the other: ids ``(tokens,)`` and starts ``(documents,)``.

    Documents without tokens are left out.

    Raises:
        UsageError: If the tokenizer cannot encode a document, or returns ids beyond its vocabulary.
    """
    characters = count_characters(documents)
    if characters > LONG_TEXT:
        say(f"encoding {characters / 1e6:,.0f} million characters ...")
    dtype, vocabulary, end = DTYPES[dtype_name(len(tokenizer))], len(tokenizer), tokenizer.end
    pieces, starts, total = [torch.empty(0, dtype=dtype)], [], 0
    for document in now_and_then(documents, "encoded", "documents"):
        begins, last = total, end
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
            total, last = total + len(ids), int(ids[-1])
        if total > begins:
            starts.append(begins)
        if end is not None and last != end:
            pieces.append(torch.tensor([end]).to(dtype))
            total += 1
    return torch.cat(pieces), torch.tensor(starts, dtype=torch.int64)


def _encoded(document: Document, tokenizer: Tokenizer) -> Iterator[Tensor]:
    """The ids of a document in order, encoded in pieces where that gives the same ids."""
    # Ids take eight times the memory of the text, so characters are encoded in pieces.
    piece = _PIECE if isinstance(tokenizer, CharTokenizer) else len(document.text) or 1
    for first in range(0, len(document.text), piece):
        try:
            yield tokenizer.encode(document.text[first : first + piece])
        except ValueError as error:
            raise UsageError(f"--data {document.name}: {error}") from error


def _kept(
    cache: Path | UserCache,
    digest: str,
    tokenizer: Tokenizer,
    encode: Callable[[], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    folder = (user_cache() if cache == "user" else cache) / "tokens"
    return kept_tokens(folder, cache_key(digest, tokenizer), len(tokenizer), encode)


def _starts_from(starts: Tensor, first: int) -> Tensor:
    """Document starts counted from token ``first``, where the first document may be a rest."""
    later = starts[starts > first] - first
    return torch.cat((torch.zeros(1, dtype=torch.int64), later))
