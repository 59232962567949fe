"""From documents to two parts of token ids; the oracle of the ids is the tokenizer itself."""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from moe_model import CharTokenizer, UsageError, read_text
from moe_model.training import corpus as corpus_module
from moe_model.training.corpus import (
    Corpus,
    Document,
    Documents,
    Tokens,
    documents_digest,
    encode_documents,
    learned_tokenizer,
    load_documents,
    make_tokenizer,
)

texts = st.text(st.characters(codec="utf-8"))
BYTE_PAIRS = corpus_module.train_byte_pairs(
    [Document("a", "the router and the experts " * 20)], 280
)


class Words:
    """Ids are numbers in the text, and 9 ends it: what a tokenizer may do, and what it must not."""

    end: int | None = 9
    files: Mapping[str, bytes] = {}

    def __init__(self, size: int = 10) -> None:
        self.size = size
        self.calls = 0

    def __len__(self) -> int:
        return self.size

    def encode(self, text: str) -> Tensor:
        self.calls += 1
        return torch.tensor([int(word) for word in text.split()], dtype=torch.int64)

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(map(str, ids))

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "words"}


def documents_of(*given_texts: str, size: int = 0) -> Documents:
    found = [Document(str(number), text) for number, text in enumerate(given_texts)]
    return Documents("x", lambda: found, size)


def documents_in(tokens: Tokens) -> list[list[int]]:
    bounds = [*tokens.starts.tolist(), len(tokens)]
    ids = tokens.ids.tolist()
    return [ids[a:b] for a, b in pairwise(bounds)]


def test_each_document_with_tokens_ends_once() -> None:
    ids, starts = encode_documents(documents_of(" ", "1 2", "3 9", " ", "9", "4", ""), Words())
    assert documents_in(Tokens(ids, starts)) == [[1, 2, 9], [3, 9], [9], [4, 9]]


@given(st.lists(texts.filter(bool), min_size=1, max_size=5))
def test_documents_decode_back_exactly(given_texts: list[str]) -> None:
    documents = documents_of(*given_texts)
    for tokenizer in (corpus_module.make_tokenizer("char", documents), BYTE_PAIRS):
        found = documents_in(Tokens(*encode_documents(documents, tokenizer)))
        assert [tokenizer.decode(ids) for ids in found] == given_texts


def test_long_texts_of_characters_are_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = documents_of("abcabca", "b", "abc")
    whole = encode_documents(documents, CharTokenizer("abc"))
    monkeypatch.setattr(corpus_module, "_PIECE", 3)
    pieces = encode_documents(documents, CharTokenizer("abc"))
    assert whole[0].tolist() == pieces[0].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 0, 1, 2]
    assert whole[1].tolist() == pieces[1].tolist() == [0, 7, 8]


@pytest.mark.parametrize(("size", "dtype"), [(65_536, torch.uint16), (65_537, torch.int32)])
def test_ids_are_as_narrow_as_the_vocabulary_allows(size: int, dtype: torch.dtype) -> None:
    ids, _ = encode_documents(documents_of("1 65535"), Words(size))
    assert ids.dtype == dtype
    assert ids.tolist() == [1, 65535, 9]


def test_an_id_beyond_the_vocabulary_never_becomes_another_token() -> None:
    with pytest.raises(UsageError, match="returns id 65540, but has 10 tokens"):
        encode_documents(documents_of("1 65540"), Words())


def test_a_text_that_the_tokenizer_cannot_read_is_named() -> None:
    with pytest.raises(UsageError, match=r"--data 1: characters 'x' do not occur"):
        encode_documents(documents_of("ab", "ax"), CharTokenizer("ab"))


def test_the_last_tenth_is_held_out_in_one_piece() -> None:
    documents = documents_of("a" * 45, "b" * 43, "c" * 8, "d" * 10)
    corpus = Corpus.build(documents, CharTokenizer("abcd"), 3, 0)
    assert len(corpus.held_out) == 10
    assert corpus.tokenizer.decode(corpus.training.ids.tolist()) == "a" * 45 + "b" * 43 + "c" * 8
    assert corpus.training.starts.tolist() == [0, 45, 88]
    assert corpus.held_out.starts.tolist() == [0]  # a document that begins just there
    cut = Corpus.build(
        documents_of("a" * 45, "b" * 43, "c" * 8, "d" * 5), CharTokenizer("abcd"), 3, 0
    )
    assert corpus.tokenizer.decode(cut.held_out.ids.tolist()) == "c" * 5 + "d" * 5
    assert cut.held_out.starts.tolist() == [0, 5]  # the rest of one, and one


@given(st.integers(1, 40), st.integers(0, 3), st.lists(st.integers(1, 90), min_size=1, max_size=9))
def test_every_token_is_in_one_part_or_there_is_too_little(
    seq_len: int, ahead: int, lengths: list[int]
) -> None:
    documents = documents_of(*("ab"[i % 2] * length for i, length in enumerate(lengths)))
    total, least = sum(lengths), 10 * (seq_len + 1 + ahead)
    if total < least:
        said = f"--data x has only {total} tokens, .* --seq-len {seq_len}: use at least {least} t"
        with pytest.raises(UsageError, match=said):
            Corpus.build(documents, CharTokenizer("ab"), seq_len, ahead)
        return
    corpus = Corpus.build(documents, CharTokenizer("ab"), seq_len, ahead)
    both = torch.cat([corpus.training.ids, corpus.held_out.ids])
    assert corpus.tokenizer.decode(both.tolist()) == "".join(d.text for d in documents)
    starts = set(corpus.training.starts.tolist())
    starts |= set((corpus.held_out.starts + len(corpus.training)).tolist())
    assert starts - {len(corpus.training)} <= {sum(lengths[:i]) for i in range(len(lengths))}


def test_the_digest_is_of_texts_and_boundaries_and_not_of_names() -> None:
    digests = {
        documents_digest(documents)
        for documents in (
            documents_of("ab", "c"),
            documents_of("a", "bc"),
            documents_of("abc"),
            documents_of("c", "ab"),
        )
    }
    assert len(digests) == 4
    assert documents_digest([Document("x", "abc")]) == documents_digest([Document("y", "abc")])
    assert re.fullmatch("[0-9a-f]{64}", digests.pop())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "moe-microscope"


LONG = ("1 2 3 " * 40, "4 " * 40)


def test_a_long_text_is_encoded_once_and_another_anew(cache: Path) -> None:
    size = corpus_module.CACHED_FROM
    first = Corpus.build(documents_of(*LONG, size=size), Words(), 4, 0)
    (file,) = (cache / "tokens").iterdir()
    again = Words()
    second = Corpus.build(documents_of(*LONG, size=size), again, 4, 0)
    assert again.calls == 0
    for a, b in ((first.training, second.training), (first.held_out, second.held_out)):
        assert a.ids.tolist() == b.ids.tolist()
        assert torch.equal(a.starts, b.starts)
    assert str(file) in Path("/proc/self/maps").read_text("utf-8")
    for others in (("".join(LONG),), LONG[::-1]):
        documents = dataclasses.replace(documents_of(*others, size=size), facts=others)
        tokenizer = Words()
        Corpus.build(documents, tokenizer, 4, 0)
        assert tokenizer.calls > 0


def test_what_is_encoded_at_once_is_not_kept(cache: Path) -> None:
    Corpus.build(documents_of(*LONG, size=corpus_module.CACHED_FROM - 1), Words(), 3, 0)
    assert not cache.exists()


def test_a_file_is_read_again_only_if_its_size_or_time_changed(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_module, "CACHED_FROM", 100)
    file = tmp_path / "a.txt"
    file.write_text(LONG[0], "utf-8")

    def build() -> tuple[int, int, str]:
        words = Words()
        with mock.patch.object(corpus_module, "read_text", wraps=read_text) as read:
            digest = Corpus.build(load_documents(str(file)), words, 4, 0).digest
        return read.call_count, words.calls, digest

    digest = documents_digest(documents_of(LONG[0]))
    assert build() == (2, 1, digest)
    assert build() == (0, 0, digest)
    os.utime(file, (1, 1))
    assert build() == (1, 0, digest)
    file.write_text("2" + LONG[0][1:], "utf-8")
    assert build() == (2, 1, documents_digest(load_documents(str(file))))


@pytest.mark.parametrize("name", ["char", "bpe"])
def test_what_a_tokenizer_learned_from_a_long_text_is_kept(name: str, cache: Path) -> None:
    source = documents_of(*LONG, size=corpus_module.CACHED_FROM)
    first = learned_tokenizer(name, [source], 280)
    assert first.files == make_tokenizer(name, source, 280).files
    unread = dataclasses.replace(source, read=mock.Mock(side_effect=AssertionError))
    again = learned_tokenizer(name, [unread], 280)
    assert (again.to_dict(), again.files) == (first.to_dict(), first.files)
