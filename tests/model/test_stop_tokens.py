"""Every token that ends a text ends it, from the published folder to the next published folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from moe_model import CharTokenizer, CheckpointError, character_files, generate, read_checkpoint
from moe_model.command import run_command
from moe_model.huggingface.read import read_stop_ids
from tests.model.conftest import make_model, write_checkpoint
from tests.model.llamas import random_llama, save as save_llama, story, upcycle
from tests.model.published import change_config, command, their_model

VOCABULARY = "".join(map(chr, range(33, 33 + 97)))


def published(folder: Path, generation: dict[str, Any] | None, config: dict[str, Any]) -> Path:
    """A model of transformers, with a tokenizer of characters that itself names no end."""
    their_model().save_pretrained(folder)
    for name, content in character_files(VOCABULARY).items():
        (folder / name).write_bytes(content)
    (folder / "generation_config.json").unlink()
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation), "utf-8")
    change_config(folder, **config)
    return folder


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        pytest.param({"eos_token_id": [7, 9]}, {"eos_token_id": [9, 4]}, [7, 9, 4], id="both"),
        pytest.param({"eos_token_id": 7}, {"eos_token_id": 7}, [7], id="the same"),
        pytest.param({"eos_token_id": [7, 9]}, {"eos_token_id": None}, [7, 9], id="generation"),
        pytest.param(None, {"eos_token_id": [4, 5]}, [4, 5], id="config"),
        pytest.param({}, {"eos_token_id": ...}, [], id="none"),
    ],
)
def test_the_lists_of_both_files_travel_through_import_and_export(
    generation: dict[str, Any] | None, config: dict[str, Any], expected: list[int], tmp_path: Path
) -> None:
    source = published(tmp_path / "theirs", generation, config)
    assert command("import", source, tmp_path / "ours") == 0
    assert read_checkpoint(tmp_path / "ours").stop_ids == tuple(expected)
    assert command("export", tmp_path / "ours", tmp_path / "again") == 0
    assert read_stop_ids(tmp_path / "again", 97) == expected
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    ends = theirs.generation_config.eos_token_id
    assert (ends if isinstance(ends, list) else [ends]) == (expected or [None])


def test_transformers_and_the_command_stop_at_the_same_token(tmp_path: Path, capsys: Any) -> None:
    """At the second of two that are named, well before the limit."""
    source = published(tmp_path / "theirs", {}, {"eos_token_id": None})
    prompt_S = torch.arange(3)
    theirs = AutoModelForCausalLM.from_pretrained(source).eval()
    options = {"max_new_tokens": 12, "do_sample": False}
    free = theirs.generate(prompt_S[None], **options)[0].tolist()[3:]
    end = free[5]
    unused = next(token for token in range(97) if token not in free)
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [unused, end]}))
    theirs = AutoModelForCausalLM.from_pretrained(source).eval()
    stopped = theirs.generate(prompt_S[None], **options, pad_token_id=unused)[0].tolist()[3:]
    assert stopped == free[: free.index(end) + 1]

    assert command("import", source, tmp_path / "ours") == 0
    capsys.readouterr()
    flags = ["--prompt", VOCABULARY[:3], "--max-new-tokens=12", "--temperature=0"]
    assert run_command(generate.app, [str(tmp_path / "ours"), *flags]) == 0
    text = CharTokenizer(VOCABULARY).decode([0, 1, 2, *stopped[:-1]])
    assert capsys.readouterr().out == f"{text}\n"


def test_an_upcycled_llama_keeps_those_of_its_source(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(story(9000), "utf-8")
    save_llama(random_llama(vocab_size=128), tmp_path / "llama")
    change_config(tmp_path / "llama", eos_token_id=[5, 6])
    (tmp_path / "llama" / "generation_config.json").unlink()
    assert upcycle(tmp_path / "llama", tmp_path / "ours", tmp_path / "text.txt") == 0
    assert read_checkpoint(tmp_path / "ours").stop_ids == (5, 6)


IMPOSSIBLE = "</s>", True, [3, 97], [3, -1], 1.5, {"id": 3}


@pytest.mark.parametrize(
    "content",
    [*(json.dumps({"eos_token_id": ends}) for ends in IMPOSSIBLE), "{", "[]", "[" * 10_000],
    ids=lambda content: content[:30],
)
def test_a_damaged_file_or_an_impossible_token_is_refused(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = published(tmp_path / "theirs", {}, {})
    (source / "generation_config.json").write_text(content, "utf-8")
    assert command("import", source, tmp_path / "ours") == 64
    message = "it must be a token from 0 to 96" if "eos" in content else "is not "
    assert message in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("vocabulary", "facts", "message"),
    [
        (VOCABULARY + "é", {}, "it has 98 tokens, but vocab_size=97"),
        (VOCABULARY, {"stop_ids": [3, 97]}, "stop_ids=.3, 97. for a vocab_size of 97"),
        (VOCABULARY, {"stop_ids": ["a"]}, "stop_ids='a'"),
        (VOCABULARY, {"stop_ids": [-1]}, "stop_ids=-1"),
        (VOCABULARY, {"stop_ids": 3}, "'int' object is not iterable"),
    ],
)
def test_a_checkpoint_whose_tokens_do_not_fit_its_model_is_refused(
    vocabulary: str, facts: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path, make_model(), vocabulary, **facts)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path)
