"""The bytes of each token: which part of a text it is, so that all tokens together are the text.

Byte-level BPE cuts characters apart, and SentencePiece has a token for every byte that it lacks a
character for: both are exact here. Elsewhere the offsets that a tokenizer reports decide; what
several tokens share belongs to the first of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import Any, Protocol

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class Pieces(Protocol):
    """A tokenizer as the probe uses it."""

    prefix: Sequence[int]
    """Ids that the model expects before every text, for example a start token."""

    def encode(self, text: str) -> tuple[list[int], list[bytes]]:
        """Ids and bytes of each token; the bytes together are ``text`` in UTF-8.

        Raises:
            ValueError: the tokenizer cannot encode it.
        """

    def of_id(self, token: int) -> bytes:
        """The bytes that a token is in a text that a model writes."""

    def strangers(self, text: str) -> frozenset[str]:
        """Characters of ``text`` to leave out: there is no token for them."""


class CharacterPieces:
    """One token per character of a vocabulary."""

    prefix: Sequence[int] = ()

    def __init__(self, tokenizer: Any) -> None:
        """``tokenizer``: with ``vocabulary``, a string, and ``encode(text)``, ids as a tensor."""
        self._tokenizer = tokenizer

    def encode(self, text: str) -> tuple[list[int], list[bytes]]:
        """See ``Pieces``."""
        return self._tokenizer.encode(text).tolist(), [one.encode() for one in text]

    def of_id(self, token: int) -> bytes:
        """See ``Pieces``."""
        known: str = self._tokenizer.vocabulary
        return known[token].encode() if token < len(known) else _name(token)

    def strangers(self, text: str) -> frozenset[str]:
        """See ``Pieces``: those that the model was not trained on."""
        return frozenset(text).difference(self._tokenizer.vocabulary)


class TokenizerPieces:
    """A ``tokenizers.Tokenizer``."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        parts = (tokenizer.decoder, tokenizer.pre_tokenizer)
        states = b"".join(part.__getstate__() for part in parts if part is not None)
        self._byte_level = b'"ByteLevel"' in states
        self._known: dict[int, bytes] = {}
        self._added: dict[int, str] = {
            number: token.content for number, token in tokenizer.get_added_tokens_decoder().items()
        }
        whole = tokenizer.encode("a")
        self.prefix: Sequence[int] = ()
        if 1 in whole.special_tokens_mask and 0 in whole.special_tokens_mask:
            self.prefix = whole.ids[: whole.special_tokens_mask.index(0)]

    def encode(self, text: str) -> tuple[list[int], list[bytes]]:
        """See ``Pieces``."""
        try:
            found = self._tokenizer.encode(text, add_special_tokens=False)
        except Exception as error:  # the library has no error class
            raise ValueError(f"the tokenizer cannot encode this text ({error})") from error
        data = text.encode()
        if self._byte_level:
            pieces = [self.of_id(one) for one in found.ids]
            joined = b"".join(pieces)
            if joined == b" " + data:  # some put a space before the first word
                pieces[0], joined = pieces[0][1:], data
            if joined == data:
                return found.ids, pieces
        return found.ids, self._by_offsets(text, data, found.ids, found.offsets)

    def of_id(self, token: int) -> bytes:
        """See ``Pieces``."""
        if token not in self._known:
            self._known[token] = self._bytes(token)
        return self._known[token]

    def strangers(self, text: str) -> frozenset[str]:
        """See ``Pieces``: none; the tokenizer has a token for what it does not know, or refuses."""
        return frozenset()

    def _bytes(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        name = self._tokenizer.id_to_token(token)
        if name is None:
            return _name(token)
        if self._byte_level and all(one in _byte_of_character() for one in name):
            return bytes(_byte_of_character()[one] for one in name)
        if byte := _BYTE.fullmatch(name):
            return bytes([int(byte[1], 16)])
        return str(name).removeprefix("##").replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()

    def _by_offsets(
        self, text: str, data: bytes, ids: list[int], offsets: list[tuple[int, int]]
    ) -> list[bytes]:
        """The part of the text from the end of the token before to the end of this one."""
        at_byte = (
            range(len(text) + 1)
            if len(text) == len(data)
            else list(accumulate((len(one.encode()) for one in text), initial=0))
        )
        pieces: list[bytes] = []
        start, at = 0, 0
        while start < len(ids):
            end, stop = start + 1, offsets[start][1]
            while end < len(ids) and offsets[end][0] < stop:  # they share a character
                stop, end = max(stop, offsets[end][1]), end + 1
            until = max(at, at_byte[stop])
            pieces += self._shared(data[at:until], ids[start:end])
            start, at = end, until
        if pieces and at < len(data):
            pieces[-1] += data[at:]
        return pieces

    def _shared(self, data: bytes, ids: list[int]) -> list[bytes]:
        """``data`` divided among tokens: as their own bytes say, else all to the first."""
        own = [self.of_id(one) for one in ids] if len(ids) > 1 else [data]
        if len(ids) > 1 and data.endswith(joined := b"".join(own)):
            return [data[: len(data) - len(joined)] + own[0], *own[1:]]
        return [data, *[b""] * (len(ids) - 1)]


@cache
def _byte_of_character() -> dict[str, int]:
    """The characters that byte-level BPE writes bytes with (GPT-2, ``bytes_to_unicode``)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {
        chr(256 + place): byte for place, byte in enumerate(rest)
    }


def _name(token: int) -> bytes:
    return f"<{token}>".encode()
