"""The bytes of tokens: together they are the text, also where a character is cut apart."""

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from microscope_tui.extensions.anatomy.texts import CharacterPieces, TokenizerPieces
from moe_model import CharTokenizer
from tests.probe.real_text import tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.sampled_from(
    ["Zoë ate 日本語 🎉🎉", " leading", "trailing ", "\r\n\t", "a\u0301b", "<|x|> y <eos>"]
)


@cache
def byte_level(trim: bool = False) -> Any:
    made = Tokenizer.from_str(tokenizer().backend_tokenizer.to_str())
    if trim:  # offsets leave the space before a word out
        made.post_processor = processors.ByteLevel(trim_offsets=True)
    return made


@cache
def sentence_piece() -> Any:
    """As Llama's: a mark for a space, a token for each byte of what is unknown."""
    pieces = {"<unk>": 0, "<s>": 1}
    pieces |= {f"<0x{byte:02X}>": 2 + byte for byte in range(256)}
    for one in ["\u2581", *LETTERS, "\u2581t", "th", "he", "\u2581th"]:
        pieces[one] = len(pieces)
    merges = [("\u2581", "t"), ("t", "h"), ("h", "e"), ("\u2581t", "h")]
    made = Tokenizer(models.BPE(pieces, merges, byte_fallback=True, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return made


@cache
def word_piece() -> Any:
    """As BERT's: lower case, no spaces, unknown words as one token."""
    pieces = {"[UNK]": 0, **{one: n for n, one in enumerate(LETTERS, 1)}}
    pieces |= {f"##{one}": 27 + n for n, one in enumerate(LETTERS)}
    made = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    return made


@pytest.mark.parametrize(
    "make", [byte_level, lambda: byte_level(True), sentence_piece, word_piece],
    ids=["byte level", "trimmed", "sentence piece", "word piece"],
)  # fmt: skip
@settings(max_examples=80)
@given(text=TEXTS)
def test_the_bytes_of_all_tokens_are_the_text(make: Any, text: str) -> None:
    ids, pieces = TokenizerPieces(make()).encode(text)
    assert ids == make().encode(text, add_special_tokens=False).ids
    assert len(ids) == len(pieces)
    if ids:
        assert b"".join(pieces) == text.encode()


@settings(max_examples=80)
@given(text=TEXTS)
def test_byte_level_tokens_have_exactly_their_own_bytes(text: str) -> None:
    """Also in the middle of a character."""
    found = TokenizerPieces(byte_level())
    ids, pieces = found.encode(text)
    own = [found.of_id(one) for one in ids]
    if own and not text.startswith(" "):
        own[0] = own[0].removeprefix(b" ")  # it puts one before the first word
    assert pieces == own


def test_each_byte_token_of_sentence_piece_is_one_byte() -> None:
    _, pieces = TokenizerPieces(sentence_piece()).encode("the é日")
    assert pieces == [b"t", b"he", b" ", *[bytes([one]) for one in "é日".encode()]]


def test_what_a_model_writes_has_the_bytes_of_its_tokens() -> None:
    found = TokenizerPieces(sentence_piece())
    ids, _ = found.encode("a the")
    assert b"".join(found.of_id(one) for one in ids) == b" a the"
    assert found.of_id(2 + 0xE9) == b"\xe9"
    assert found.of_id(99_999) == b"<99999>"


def test_what_comes_before_every_text_is_known() -> None:
    assert list(TokenizerPieces(sentence_piece()).prefix) == [1]
    assert list(TokenizerPieces(byte_level()).prefix) == []


def test_characters_are_tokens() -> None:
    found = CharacterPieces(CharTokenizer("abé"))
    assert found.encode("béa") == ([1, 2, 0], [b"b", "é".encode(), b"a"])
    assert (found.of_id(2), found.of_id(7)) == ("é".encode(), b"<7>")
    with pytest.raises(ValueError, match="do not occur"):
        found.encode("x")
