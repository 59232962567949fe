"""Tokenizers travel both ways, and give the ids that transformers gives."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from moe_model import (
    SETTINGS,
    SPECIAL_TOKENS,
    TOKENIZER,
    CharTokenizer,
    PretrainedTokenizer,
    character_files,
    generate,
    read_checkpoint,
    run_command,
)
from tests.model.published import command, their_model

SPECIAL = ["<s>", "</s>"]
texts = st.text(st.characters(exclude_categories=["Cs"]))
awkward = st.text(st.sampled_from("ab \t\n\r\"'\\\0\u2028é😀"), min_size=1)


def byte_pairs() -> Tokenizer:
    """A byte-level tokenizer with two special tokens, trained on a sentence."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["the router sends the tokens to the experts"] * 4, trainer)
    return tokenizer


def files_of(tokenizer: Tokenizer, **settings: Any) -> dict[str, bytes]:
    known = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    content = {TOKENIZER: tokenizer.to_str(), SETTINGS: json.dumps(known | settings)}
    return {name: text.encode() for name, text in content.items()}


FILES = files_of(byte_pairs())


def write(files: dict[str, bytes], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


@given(texts.filter(bool) | awkward)
@settings(max_examples=50)
def test_the_character_tokenizer_is_the_same_as_a_file(text: str) -> None:
    ours = CharTokenizer.from_dict(CharTokenizer("".join(sorted(set(text)))).to_dict())
    published = PretrainedTokenizer(character_files(ours.vocabulary))
    assert torch.equal(published.encode(text), ours.encode(text))
    for tokenizer in (published, ours):
        assert tokenizer.decode(ours.encode(text).tolist()) == text
    assert len(published) == len(ours)
    assert (published.bos_id, published.end) == (None, None)


@given(text=awkward)
@settings(max_examples=10)
def test_transformers_loads_the_character_tokenizer(text: str, tmp_path_factory: Any) -> None:
    ours, folder = CharTokenizer("".join(sorted(set(text)))), tmp_path_factory.mktemp("characters")
    write(character_files(ours.vocabulary), folder)
    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs(text).input_ids == ours.encode(text).tolist()
    assert theirs.decode(theirs(text).input_ids) == text
    assert len(theirs) == len(ours)


def test_an_unknown_character_is_an_error_and_an_unknown_id_is_not() -> None:
    with pytest.raises(ValueError, match="the tokenizer cannot encode this text"):
        PretrainedTokenizer(character_files("ab")).encode("abc")
    with pytest.raises(ValueError, match="'!dé' do not occur"):
        CharTokenizer("abc").encode("abdé!")
    for vocabulary in ("", "aba"):
        with pytest.raises(ValueError, match="empty or repeats one"):
            CharTokenizer(vocabulary)
    # Of a padded head.
    assert CharTokenizer("ab").decode([0, 1, 2]) == "ab\N{REPLACEMENT CHARACTER}"


def with_template() -> Tokenizer:
    tokenizer = byte_pairs()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return tokenizer


def cutting() -> Tokenizer:
    tokenizer = byte_pairs()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=90)
    return tokenizer


@pytest.mark.parametrize(
    "files",
    [
        FILES,
        files_of(with_template()),
        files_of(byte_pairs(), add_bos_token=True),
        files_of(with_template(), add_bos_token=False, eos_token=None),
        files_of(with_template(), bos_token={"__type": "AddedToken", "content": "</s>"}),
        files_of(cutting()),
        FILES | {SPECIAL_TOKENS: b'{"eos_token": "<s>"}'},  # older files list them separately
    ],
)
def test_ids_are_those_of_transformers(files: dict[str, bytes], tmp_path: Path) -> None:
    write(files, tmp_path)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), PretrainedTokenizer(files)
    for text in ("the router", "", "  a\n\tb ", "</s>tokens", "é😀"):
        assert ours.encode(text).tolist() == theirs(text, truncation=False, padding=False).input_ids
    assert (ours.end, ours.bos_id) == (theirs.eos_token_id, theirs.bos_token_id)


def test_a_tokenizer_travels_there_and_back_and_a_changed_file_is_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, ours, published = (tmp_path / name for name in ("theirs", "ours", "published"))
    their_model(vocab_size=300).save_pretrained(source)
    files = files_of(with_template(), chat_template="{{ messages }}")
    write(files | {"chat_template.jinja": b"{{ m }}", "notes.txt": b"stay"}, source)
    assert command("import", source, ours) == 0
    assert capsys.readouterr().out == ""
    found = read_checkpoint(ours)
    assert (ours / TOKENIZER).read_bytes() == files[TOKENIZER]
    listed = json.loads((ours / "checkpoint.json").read_text())["files"]
    assert set(listed) == {"model.safetensors", TOKENIZER, SETTINGS, "chat_template.jinja"}
    ids = found.tokenizer.encode("the").tolist()
    assert (ids[0], found.tokenizer.decode(ids)) == (0, "the")

    arguments = [str(ours), "--prompt", "the router", "--max-new-tokens", "3"]
    assert run_command(generate.app, arguments) == 0
    assert capsys.readouterr().out.startswith("the router")

    assert command("export", ours, published) == 0
    theirs = AutoTokenizer.from_pretrained(published)
    assert theirs("the tokens").input_ids == found.tokenizer.encode("the tokens").tolist()
    ends = json.loads((published / "generation_config.json").read_text())
    assert ends == {"bos_token_id": 0, "eos_token_id": 1}
    assert not (published / "notes.txt").exists()

    (ours / TOKENIZER).write_bytes(FILES[TOKENIZER])
    assert run_command(generate.app, arguments) == 64
    assert "tokenizer.json is damaged" in capsys.readouterr().err


def test_without_a_tokenizer_importing_works_and_generating_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    their_model().save_pretrained(tmp_path / "theirs")
    assert command("import", tmp_path / "theirs", tmp_path / "ours") == 0
    assert "theirs has no tokenizer.json" in capsys.readouterr().err
    assert run_command(generate.app, [str(tmp_path / "ours")]) == 64
    assert "Copy its tokenizer.json beside its config.json" in capsys.readouterr().err
    assert command("export", tmp_path / "ours", tmp_path / "published") == 0
    assert "has no tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({TOKENIZER: b"{"}, "tokenizer.json is not a tokenizer"),
        ({TOKENIZER: b"\xff"}, "tokenizer.json is not a tokenizer"),
        ({TOKENIZER: b'{"model": {"type": "BPE"}}'}, "tokenizer.json is not a tokenizer"),
        ({SETTINGS: b"[]"}, "tokenizer_config.json is not a JSON object"),
        ({SETTINGS: b"{"}, "tokenizer_config.json is not JSON"),
        ({}, "ids up to 279, but config.json has vocab_size=279"),
    ],
)
def test_a_bad_tokenizer_is_refused(files: Any, message: str, tmp_path: Path, capsys: Any) -> None:
    their_model(vocab_size=279).save_pretrained(tmp_path / "theirs")
    write(FILES | files, tmp_path / "theirs")
    assert command("import", tmp_path / "theirs", tmp_path / "ours") == 64
    assert message in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()
