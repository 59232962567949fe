"""Tokenizers: one of characters, and those that were published.

A published tokenizer is a ``tokenizer.json``, run by the ``tokenizers`` library; transformers is
not needed. It is defined by its files, which are copied with the weights byte for byte. Encoding
depends on ``tokenizer.json`` alone, as in transformers 5, which ignores ``add_bos_token`` in
``tokenizer_config.json``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer as Library, decoders, models, pre_tokenizers
from torch import Tensor

from moe_model.config import shown

KIND = "huggingface"
TOKENIZER = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
FILES = (TOKENIZER, SETTINGS, SPECIAL_TOKENS, "chat_template.jinja")
"""The files of a tokenizer; only the first is required."""
MOST_BYTES = 256 * 2**20


class CharTokenizer:
    """Token i is the i-th character of the vocabulary; ``end``, the token that ends a text, and
    ``files``, which a checkpoint keeps beside the weights, are for other tokenizers."""

    def __init__(self, vocabulary: str) -> None:
        if not vocabulary or len(set(vocabulary)) != len(vocabulary):
            raise ValueError(
                f"vocabulary of {len(vocabulary)} characters is empty or repeats one: list each "
                "once."
            )
        self.vocabulary = vocabulary
        self.end: int | None = None
        self.files: Mapping[str, bytes] = {}
        points = [ord(character) for character in vocabulary]
        self._id_of_point = torch.full((max(points) + 1,), -1, dtype=torch.int64)
        self._id_of_point[torch.tensor(points)] = torch.arange(len(points))

    @classmethod
    def from_dict(cls, description: dict[str, Any]) -> CharTokenizer:
        """From the result of :meth:`to_dict`, unchecked JSON; ``ValueError`` if it is invalid."""
        if description.get("kind") != "char":
            raise ValueError(
                f"tokenizer kind={description.get('kind')!r} is unknown: it must be 'char'."
            )
        vocabulary = description["vocabulary"]
        if not isinstance(vocabulary, str) or any("\ud800" <= c <= "\udfff" for c in vocabulary):
            raise ValueError(f"vocabulary={shown(vocabulary)}: it must be a text")
        return cls(vocabulary)

    def to_dict(self) -> dict[str, Any]:
        """The entry in a checkpoint's description."""
        return {"kind": "char", "vocabulary": self.vocabulary}

    def __len__(self) -> int:
        return len(self.vocabulary)

    def encode(self, text: str) -> Tensor:
        """Token ids of ``text``, int64; ``ValueError`` names unknown characters."""
        if not text:
            return torch.empty(0, dtype=torch.int64)
        # UTF-32 gives code points: one table look-up encodes the whole text.
        points = torch.frombuffer(bytearray(text.encode("utf-32-le")), dtype=torch.int32).long()
        known = points < len(self._id_of_point)
        ids = torch.where(known, self._id_of_point[points.where(known, 0)], -1)
        if (ids < 0).any():
            unknown = "".join(sorted(set(text) - set(self.vocabulary)))
            raise ValueError(
                f"characters {unknown[:20]!r} do not occur in the training text: remove them."
            )
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``; ids beyond the vocabulary (a padded head) become U+FFFD."""
        return "".join(self.vocabulary[i : i + 1] or "\N{REPLACEMENT CHARACTER}" for i in ids)


class PretrainedTokenizer:
    """A ``tokenizer.json`` behind the interface of :class:`CharTokenizer`."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        """From ``files``, contents by name; ``ValueError`` if they are not a tokenizer."""
        self.files: Mapping[str, bytes] = {n: files[n] for n in FILES if n in files}
        if TOKENIZER not in self.files:
            raise ValueError(f"{TOKENIZER} is missing: a tokenizer needs it.")
        settings = json_object(SETTINGS, self.files.get(SETTINGS, b"{}"))
        # Older files list the special tokens separately; transformers prefers these.
        if "added_tokens_decoder" not in settings:
            settings |= json_object(SPECIAL_TOKENS, self.files.get(SPECIAL_TOKENS, b"{}"))
        self.library = _load(self.files[TOKENIZER])
        """The same tokenizer of the ``tokenizers`` library, which reports offsets too."""
        # As in transformers, the name of a special token in a text is plain text.
        self.library.encode_special_tokens = settings.get("split_special_tokens") is True
        self.bos_id = self._special(settings.get("bos_token"))
        self.end = self._special(settings.get("eos_token"))
        """``bos_token_id`` and ``eos_token_id``; ``None`` if the tokenizer has no such token."""

    @classmethod
    def from_folder(cls, description: Mapping[str, Any], folder: Path) -> PretrainedTokenizer:
        """From the files in ``folder`` that ``description`` lists, the result of :meth:`to_dict`.

        ``ValueError`` if one is not a file of a tokenizer, is too large or is damaged; ``OSError``
        if it cannot be read.
        """
        names = description["files"]
        if not set(names) <= set(FILES):
            raise ValueError(f"tokenizer files {names} are unknown: allowed are {FILES}.")
        return cls({name: read_small_file(folder / name) for name in names})

    def to_dict(self) -> dict[str, Any]:
        """The entry in a checkpoint's description: names of the files beside it."""
        return {"kind": KIND, "files": list(self.files)}

    def __len__(self) -> int:
        """One more than the highest id."""
        return max(self.library.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, text: str) -> Tensor:
        """Token ids of ``text``, int64, with the special tokens that the tokenizer adds.

        ``ValueError`` if the library cannot encode it.
        """
        try:
            return torch.tensor(self.library.encode(text).ids, dtype=torch.int64)
        except Exception as error:  # the library has no error class
            raise ValueError(f"the tokenizer cannot encode this text ({error}).") from error

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``, without special tokens and unknown ids (of a padded head)."""
        return self.library.decode(list(ids), skip_special_tokens=True)

    def _special(self, setting: Any) -> int | None:
        token = setting.get("content") if isinstance(setting, dict) else setting
        return self.library.token_to_id(token) if isinstance(token, str) else None


Tokenizer = CharTokenizer | PretrainedTokenizer
"""What training, generation and checkpoints use."""


def stop_ids_of(tokenizer: Tokenizer | None, others: Iterable[int] = ()) -> tuple[int, ...]:
    """The tokens that end a text, each once: ``others``, of the model, and the tokenizer's."""
    end = None if tokenizer is None else tokenizer.end
    ends = [*others] if end is None else [*others, end]
    return tuple(dict.fromkeys(ends))


def character_files(vocabulary: str) -> dict[str, bytes]:
    """The files of a tokenizer with one token per character of ``vocabulary``, ids in its order.

    Encoding any other character is an error, as here: there is no unknown token.
    """
    # A name of several characters is never a token, so unknown characters are rejected.
    model = models.WordLevel({c: i for i, c in enumerate(vocabulary)}, unk_token="<unknown>")
    tokenizer = Library(model)
    every = Regex(r"[\s\S]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(every, "isolated")
    tokenizer.decoder = decoders.Fuse()
    return files_of(tokenizer)


def files_of(tokenizer: Library, **settings: Any) -> dict[str, bytes]:
    """The files of a tokenizer made here, with further ``settings``."""
    usual = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    content = json.dumps(usual | settings).encode()
    return {TOKENIZER: tokenizer.to_str().encode(), SETTINGS: content}


def without_code(settings: bytes) -> bytes:
    """A ``tokenizer_config.json`` without custom code: ``tokenizer.json`` is enough."""
    fields = json_object(SETTINGS, settings)
    if "auto_map" not in fields:
        return settings
    del fields["auto_map"]
    fields["tokenizer_class"] = "PreTrainedTokenizerFast"
    return json.dumps(fields, ensure_ascii=False, indent=2).encode()


def read_small_file(path: Path) -> bytes:
    """The contents of ``path``; ``ValueError`` if it has more than ``MOST_BYTES``."""
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"{path} has {size} bytes; the limit is {MOST_BYTES}.")
    return path.read_bytes()


def _load(content: bytes) -> Library:
    try:
        tokenizer = Library.from_str(content.decode("utf-8"))
    except Exception as error:  # the library has no error class
        raise ValueError(f"{TOKENIZER} is not a tokenizer ({error}): download it again.") from error
    # Published files may truncate every text, for example at 512 tokens.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def json_object(name: str, content: bytes) -> dict[str, Any]:
    """Parse JSON; ``ValueError`` with the file's ``name`` if it is damaged or not an object."""
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not JSON ({error}): download it again.") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{name} is not a JSON object: download it again.")
    return fields
