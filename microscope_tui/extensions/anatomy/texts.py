"""The texts of a probe: files in named slices, their tokens, and the windows that the model reads.

Files in a folder are skipped if they are links, hidden, or not UTF-8 text. Windows stay in the
order of the text, so that an interrupted probe holds its beginning.

The bytes of all tokens together are the text. Byte-level BPE splits characters, and SentencePiece
has byte tokens for characters that it lacks: both are exact here. For other tokenizers the reported
offsets decide; bytes that several tokens share belong to the first of them.
"""

from __future__ import annotations

import codecs
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from microscope_tui.runlog import open_regular_file

_PIECE_BYTES = 1 << 20
_MOST_FILES = 100_000
_SHOWN = 20
"""Characters that a note lists."""
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class BadText(ValueError):
    """A text that cannot be probed; the message says what to do."""


@dataclass(slots=True)
class Slice:
    """Texts that are counted together."""

    name: str
    files: list[Path] = field(default_factory=list)
    named: set[Path] = field(default_factory=set)
    """Files that were named on the command line: these must be text."""


def find_slices(texts: Sequence[str]) -> list[Slice]:
    """The slices of ``texts``: each is ``path`` or ``name=path``; equal names are one slice.

    ``BadText``: one is missing, or a folder without files.
    """
    found: dict[str, Slice] = {}
    for text in texts:
        name, path = _split(text)
        if not path.exists():
            raise BadText(f"{path}: no such file or folder; name a UTF-8 text, or NAME=PATH")
        one = found.setdefault(name, Slice(name))
        if path.is_dir():
            one.files += _below(path)
        else:
            one.files.append(path)
            one.named.add(path)
    return list(found.values())


def _split(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if equals and name and path and not os.path.lexists(text):
        return name, Path(path)
    whole = Path(text)
    return whole.stem or whole.resolve().name or text, whole


def _below(folder: Path) -> list[Path]:
    """Sorted; without links and hidden files."""
    found: list[Path] = []
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(where, name)
            if name.startswith(".") or not stat.S_ISREG(path.lstat().st_mode):
                continue
            found.append(path)
            if len(found) > _MOST_FILES:
                raise BadText(f"{folder}: more than {_MOST_FILES:,} files; name a smaller folder")
    if not found:
        raise BadText(f"{folder}: contains no file; name a folder with UTF-8 texts")
    return found


def _read_text(path: Path, piece_bytes: int) -> Iterator[str]:
    """The text of ``path`` in pieces; each ends with a line if it holds one.

    ``BadText``: it is not UTF-8 text, or cannot be read.
    """
    decode, rest, read = codecs.getincrementaldecoder("utf-8")(), "", 0
    try:
        with os.fdopen(open_regular_file(path), "rb") as file:
            while data := file.read(piece_bytes):
                if (at := data.find(b"\0")) >= 0:
                    raise BadText(f"{path}: binary (byte {read + at:,} is 0); name a UTF-8 text")
                rest += decode.decode(data)
                read += len(data)
                cut = rest.rfind("\n") + 1 or len(rest)
                yield rest[:cut]
                rest = rest[cut:]
        rest += decode.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise BadText(
            f"{path}: not UTF-8 ({error.reason} near byte {read:,}); convert it"
        ) from None
    except OSError as error:
        raise BadText(f"{path}: cannot be read ({error.strerror})") from None
    if rest:
        yield rest


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens that the model reads together."""

    ids: list[int]
    texts: list[bytes]
    """Bytes of each token; empty for tokens that the tokenizer puts before a text."""
    slices: list[int]
    """Of each token."""
    begins: bool = True
    """A text begins here."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Texts cut into windows, with remarks for the user on what was left out."""

    windows: list[Window]
    notes: list[str]


def read_windows(slices: Sequence[Slice], pieces: Pieces, length: int, tokens: int) -> Reading:
    """Read and cut the texts; a note lists characters that are left out for lack of a token.

    Args:
        slices: The files of each slice.
        pieces: The tokenizer.
        length: Most tokens of a window, including those that the tokenizer puts before a text.
        tokens: Most tokens in all, shared evenly between the slices.

    Raises:
        BadText: a text is unreadable, there is none at all, or a window has no room for any.
    """
    found, split = Reading([], []), 0
    skipped: list[str] = []
    unknown: Counter[str] = Counter()
    room = length - len(pieces.prefix)
    if room < 1:
        raise BadText(f"a window of {length} has no room for text: choose a larger --window")
    for number, one in enumerate(slices):
        left = max(1, tokens // len(slices))
        for path in one.files:
            try:
                ids, texts = _encode(path, pieces, left, unknown)
            except BadText as error:
                if path in one.named:
                    raise
                skipped.append(str(error))
                continue
            left -= len(ids)
            split += len(ids) > room
            for start in range(0, len(ids), room):
                part = slice(start, start + room)
                whole = [*pieces.prefix, *ids[part]]
                before = [b""] * len(pieces.prefix)
                window = Window(whole, before + texts[part], [number] * len(whole), start == 0)
                found.windows.append(window)
            if left <= 0:
                break
    if not found.windows and unknown:
        raise BadText(f"nothing but {_listed(unknown)}, and the model has no token for them")
    if not found.windows:
        names = ", ".join(one.name for one in slices)
        raise BadText(f"{names}: no text to read; name UTF-8 files that are not empty")
    if split:
        found.notes.append(
            f"texts longer than a window of {length:,} tokens: {split:,}; read in several windows, "
            "each without the text before it"
        )
    if unknown:
        found.notes.append(f"{_listed(unknown)} left out: the model has no token for them")
    if skipped:
        found.notes.append(f"files left out: {len(skipped):,}; the first: {skipped[0]}")
    return found


def _listed(characters: Counter[str]) -> str:
    shown = "".join(one for one, _ in characters.most_common(_SHOWN))
    return f"{characters.total():,} characters {shown!r}"


def _encode(
    path: Path, pieces: Pieces, most: int, unknown: Counter[str]
) -> tuple[list[int], list[bytes]]:
    """The first ``most`` tokens of a file."""
    ids: list[int] = []
    texts: list[bytes] = []
    for text in _read_text(path, min(_PIECE_BYTES, max(1 << 12, most * 8))):
        if missing := pieces.unknown_characters(text):
            unknown.update(one for one in text if one in missing)
            text = "".join(one for one in text if one not in unknown)
        try:
            more_ids, more_texts = pieces.encode(text)
        except ValueError as error:
            raise BadText(f"{path}: {error}") from None
        ids += more_ids
        texts += more_texts
        if len(ids) >= most:
            return ids[:most], texts[:most]
    return ids, texts


def continued(
    windows: Sequence[Window],
    num_slices: int,
    pieces: Pieces,
    write: Callable[[list[int], int], list[int]],
    length: int,
    most: int,
) -> Iterator[Window]:
    """The beginning of each text as a prompt, and what the model writes after it.

    Args:
        windows: Those that begin a text give a prompt; others are skipped.
        num_slices: Text written after slice ``n`` is slice ``n + num_slices``.
        pieces: Gives the bytes of the tokens that were written.
        write: ``write(ids, most)`` continues ``ids`` by at most ``most`` tokens.
        length: Tokens of a window; a prompt is cut to half of it.
        most: Tokens to write after each prompt.
    """
    for window in windows:
        if not window.begins:
            continue
        prompt = slice(0, max(1, length // 2))
        ids = window.ids[prompt]
        room = min(most, length - len(ids))
        written = write(ids, room) if room else []
        number = window.slices[0]
        yield Window(
            ids + written,
            window.texts[prompt] + [pieces.of_id(one) for one in written],
            [number] * len(ids) + [number + num_slices] * len(written),
        )


def batches(windows: Sequence[Window], size: int) -> Iterator[list[Window]]:
    """The windows in their order, ``size`` at a time; the last batch may be smaller."""
    for start in range(0, len(windows), size):
        yield list(windows[start : start + size])


def tensors(batch: Sequence[Window], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The ids of a batch ``[B, S]``, padded on the right, and which of them are real.

    ``None`` instead of the second if all are.
    """
    lengths = [len(window.ids) for window in batch]
    longest = max(lengths)
    ids_BS = torch.tensor([one.ids + [one.ids[0]] * (longest - len(one.ids)) for one in batch])
    if min(lengths) == longest:
        return ids_BS.to(device), None
    lengths_B = torch.tensor(lengths)
    return ids_BS.to(device), (torch.arange(longest) < lengths_B[:, None]).to(device)


class CharacterPieces:
    """One token per character of a vocabulary; methods as in ``TokenizerPieces``."""

    prefix: Sequence[int] = ()

    def __init__(self, tokenizer: Any) -> None:
        """``tokenizer``: with ``vocabulary``, a string, and ``encode(text)``, ids as a tensor."""
        self._tokenizer = tokenizer

    def encode(self, text: str) -> tuple[list[int], list[bytes]]:
        """Ids of the characters of ``text``, which all have a token, and the UTF-8 bytes of
        each.
        """
        return self._tokenizer.encode(text).tolist(), [one.encode() for one in text]

    def of_id(self, token: int) -> bytes:
        """The UTF-8 bytes of a token; a name if the vocabulary is shorter than the model's."""
        known: str = self._tokenizer.vocabulary
        return known[token].encode() if token < len(known) else _name(token)

    def unknown_characters(self, text: str) -> frozenset[str]:
        """Characters of ``text`` that have no token and are left out."""
        return frozenset(text).difference(self._tokenizer.vocabulary)


class TokenizerPieces:
    """Ids and bytes of the tokens of a text, by a tokenizer of the library ``tokenizers``."""

    prefix: Sequence[int] = ()
    """Ids that the model expects before every text, for example a start token."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        parts = (tokenizer.decoder, tokenizer.pre_tokenizer)
        states = b"".join(part.__getstate__() for part in parts if part is not None)
        self._byte_level = b'"ByteLevel"' in states
        self.of_id = cache(self._bytes)
        """The bytes of a token in a text that a model writes."""
        whole = tokenizer.encode("a")
        if 1 in whole.special_tokens_mask and 0 in whole.special_tokens_mask:
            self.prefix = whole.ids[: whole.special_tokens_mask.index(0)]

    def unknown_characters(self, text: str) -> frozenset[str]:
        """Always empty: the tokenizer has a token for every character, or refuses a text."""
        return frozenset()

    def encode(self, text: str) -> tuple[list[int], list[bytes]]:
        """Ids and bytes of each token, together ``text`` in UTF-8; ``ValueError``: impossible."""
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

    def _bytes(self, token: int) -> bytes:
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
        """Of each token the text from the end of the one before to its own."""
        at_byte = list(accumulate((len(one.encode()) for one in text), initial=0))
        pieces: list[bytes] = []
        at = 0
        while len(pieces) < len(ids):
            start = len(pieces)
            end, stop = start + 1, offsets[start][1]
            while end < len(ids) and offsets[end][0] < stop:  # they share a character
                stop, end = max(stop, offsets[end][1]), end + 1
            until = max(at, at_byte[stop])
            pieces += self._shared(data[at:until], ids[start:end])
            at = until
        if pieces and at < len(data):
            pieces[-1] += data[at:]
        return pieces

    def _shared(self, data: bytes, ids: list[int]) -> list[bytes]:
        """Divided by the tokens' own bytes; if these differ, the first has all."""
        if len(ids) > 1:
            first, *rest = map(self.of_id, ids)
            if data.endswith(first + b"".join(rest)):
                return [data.removesuffix(b"".join(rest)), *rest]
        return [data, *[b""] * (len(ids) - 1)]


Pieces = CharacterPieces | TokenizerPieces


@cache
def _byte_of_character() -> dict[str, int]:
    """The characters that byte-level BPE uses for bytes (GPT-2, ``bytes_to_unicode``)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {
        chr(256 + place): byte for place, byte in enumerate(rest)
    }


def _name(token: int) -> bytes:
    return f"<{token}>".encode()
