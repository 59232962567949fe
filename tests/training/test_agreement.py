"""What ranks compare before they train together: the options, and what the run starts from."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_model import CharTokenizer, read_checkpoint
from moe_model.training.corpus import Corpus, Document, Documents
from moe_model.training.options import ModelOverrides, Options, flag_name
from moe_model.training.resolving import option_facts
from moe_model.training.setup import start_facts


def test_every_option_is_compared_but_where_the_others_came_from_and_the_device() -> None:
    flags = {flag_name(field.name) for field in dataclasses.fields(Options)}
    apart = {"--config", "--device", "--model"}
    assert set(option_facts(Options())) == flags - apart | {"what --resume finds"}
    model = ModelOverrides(hidden_size=32)
    assert option_facts(Options(model=model))["--model.hidden_size"] == "32"


def test_two_spellings_of_a_folder_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spellings = [Path("ck"), Path("./a/../ck"), tmp_path / "ck"]
    found = {option_facts(Options(checkpoint_dir=path))["--checkpoint-dir"] for path in spellings}
    assert found == {str(tmp_path / "ck")}


def corpora_of(*texts: str) -> list[Corpus]:
    documents = [Document(f"{place}.txt", text) for place, text in enumerate(texts)]
    tokenizer = CharTokenizer("".join(sorted(set("".join(texts)))))
    return [Corpus.build(Documents("x", lambda: documents), tokenizer, seq_len=4, ahead=0)]


def start_facts_of(*texts: str, dtype: torch.dtype = torch.float32) -> dict[str, str]:
    return start_facts(corpora_of(*texts), None, dtype)


@pytest.mark.parametrize(
    ("other", "differ"),
    [
        (start_facts_of("abcd" * 40, "dcba" * 40), set()),
        (start_facts_of("dcba" * 40, "abcd" * 40), {"text"}),
        (start_facts_of("abcd" * 40 + "dcba" * 40), {"text"}),
        (start_facts_of("abcd" * 40, "dcbe" * 40), {"text", "tokenizer"}),
        (start_facts_of("abcd" * 40, "dcba" * 40, dtype=torch.bfloat16), {"number"}),
    ],
    ids=["same", "other order", "one document", "another letter", "number format"],
)
def test_start_facts_differ_where_text_tokenizer_or_dtype_differ(other: Any, differ: Any) -> None:
    one = start_facts_of("abcd" * 40, "dcba" * 40)
    assert {name.split()[1] for name in one if one[name] != other[name]} == differ


def test_checkpoints_of_one_step_differ_in_facts(train: Callable[..., int], tmp_path: Path) -> None:
    found = []
    for run, seed in (("one", 0), ("other", 1)):
        assert train(f"--run={run}", "--steps=1", f"--seed={seed}") == 0
        checkpoint = read_checkpoint(tmp_path / "ck" / run)
        facts = start_facts(corpora_of("abcd" * 40), checkpoint, torch.float32)
        found.append(facts["the checkpoint (--resume)"])
        resumed = Options(resume="auto", run=run, checkpoint_dir=tmp_path / "ck")
        assert option_facts(resumed)["what --resume finds"] == "step 1"
    assert all(fact.startswith("step 1, sha256 ") for fact in found)
    assert found[0] != found[1]
