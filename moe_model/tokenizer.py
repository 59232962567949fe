"""The interface of tokenizers, and a tokenizer of characters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from moe_model.json_types import shown


class Tokenizer(Protocol):
    """The interface that training, generation and checkpoints use."""

    def __len__(self) -> int:
        """Number of ids, which start at 0."""

    def encode(self, text: str) -> Tensor:
        """Token ids of ``text``, int64; ``ValueError`` if it cannot be encoded."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``."""

    def to_dict(self) -> dict[str, Any]:
        """The entry in a checkpoint's description, ready for JSON."""

    @property
    def end(self) -> int | None:
        """The token that ends a text, if there is one."""

    @property
    def files(self) -> Mapping[str, bytes]:
        """Files that a checkpoint keeps beside the weights, contents by name."""


def stop_ids_of(tokenizer: Tokenizer | None, others: Iterable[int] = ()) -> tuple[int, ...]:
    """The tokens that end a text, each once: ``others``, from the model, and the tokenizer's
    own."""
    end = None if tokenizer is None else tokenizer.end
    return tuple(dict.fromkeys((*others, *(() if end is None else (end,)))))


class CharTokenizer:
    """Every distinct character of the training text is a token, in code point order."""

    def __init__(self, vocabulary: str) -> None:
        """Use the characters of ``vocabulary``, each once; token i is its i-th character."""
        if not vocabulary or len(set(vocabulary)) != len(vocabulary):
            raise ValueError(
                f"vocabulary of {len(vocabulary)} characters is empty or repeats one: list each "
                "once."
            )
        self.vocabulary = vocabulary
        points = [ord(character) for character in vocabulary]
        self._id_of_point = torch.full((max(points) + 1,), -1, dtype=torch.int64)
        self._id_of_point[torch.tensor(points)] = torch.arange(len(points))

    @classmethod
    def from_text(cls, text: str) -> CharTokenizer:
        """The tokenizer for exactly the characters of ``text``."""
        return cls("".join(sorted(set(text))))

    @classmethod
    def from_dict(cls, description: dict[str, Any]) -> CharTokenizer:
        """The inverse of :meth:`to_dict`; ``ValueError`` if the description is invalid."""
        if description.get("kind") != "char":
            raise ValueError(
                f"tokenizer kind={description.get('kind')!r} is unknown: it must be 'char'."
            )
        vocabulary = description["vocabulary"]
        if not isinstance(vocabulary, str) or any("\ud800" <= c <= "\udfff" for c in vocabulary):
            raise ValueError(f"vocabulary={shown(vocabulary)}: it must be a text")
        return cls(vocabulary)

    def to_dict(self) -> dict[str, Any]:
        """The entry in a checkpoint's description, ready for JSON."""
        return {"kind": "char", "vocabulary": self.vocabulary}

    @property
    def end(self) -> int | None:
        """None: characters have no end token."""
        return None

    @property
    def files(self) -> Mapping[str, bytes]:
        """None: the description is enough."""
        return {}

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
            strangers = "".join(sorted(set(text) - set(self.vocabulary)))
            raise ValueError(
                f"characters {strangers[:20]!r} do not occur in the training text: remove them."
            )
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``; ids beyond the vocabulary (a padded head) become U+FFFD."""
        size = len(self.vocabulary)
        return "".join(self.vocabulary[i] if i < size else "\N{REPLACEMENT CHARACTER}" for i in ids)
