"""``python -m moe_model.generate``: several prompts, and options that do not fit together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from moe_model import (
    WEIGHTS,
    CharTokenizer,
    LanguageModel,
    app,
    run_command,
    write_description,
    write_tensors,
)


@pytest.fixture
def folder(make_model: Callable[..., LanguageModel], tmp_path: Path) -> str:
    """A checkpoint with a character tokenizer of 97 characters."""
    model = make_model()
    tokenizer = CharTokenizer("\n" + "".join(map(chr, range(32, 128))))
    write_tensors(tmp_path / WEIGHTS, model.state_dict())
    write_description(tmp_path, model.config, 3, tokenizer=tokenizer.to_dict())
    return str(tmp_path)


PROMPTS = ["--the router sends", "a", "\n", "an expert that is dead"]


def test_several_prompts_are_written_as_each_alone_one_after_the_other(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--device=cpu", "--max-new-tokens=50", "--top-k=20", "--min-p=0.01"]
    flags += ["--repetition-penalty=1.2", "--seed=4"]
    alone = []
    for prompt in PROMPTS:
        assert run_command(app, [folder, "--prompt", prompt, *flags]) == 0
        alone.append(capsys.readouterr().out)
        assert len(alone[-1]) == len(prompt) + 50 + 1
    together = [argument for prompt in PROMPTS for argument in ("--prompt", prompt)]
    assert run_command(app, [folder, *together, *flags]) == 0
    captured = capsys.readouterr()
    assert captured.out == "\n".join(alone)
    assert captured.err.startswith("200 tokens in ")
    assert "4.00 tokens a pass" in captured.err


def test_a_prompt_of_which_the_rules_leave_one_token_is_greedy(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = set()
    for flag in ("--temperature=0", "--top-k=1", "--min-p=1", "--top-p=0.000001"):
        assert run_command(app, [folder, "--prompt=ab", "--max-new-tokens=30", flag]) == 0
        texts.add(capsys.readouterr().out)
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--top-k=-1"], "--top-k -1 is out of range: choose 1 or more, or 0 for all tokens"),
        (["--min-p=2"], "--min-p 2.0 is out of range: choose 0 to 1"),
        (["--repetition-penalty=0"], "--repetition-penalty 0.0 is out of range: choose above 0"),
        (["--prompt=a", "--prompt=b", "--draft"], "--draft supports one prompt, not 2"),
        (["--prompt=a", "--prompt=b", "--weights=fp16"], "--weights fp16 supports one prompt"),
        (["--prompt=a", "--prompt="], "--prompt is empty: pass at least one character"),
        (["--prompt=a", "--prompt=\x00"], "do not occur in the training text"),
        (["--prompt=a", "--chat"], "--chat: this model has no chat template: omit --chat"),
        (["--draft"], "--draft: num_nextn_predict_layers=0"),
        (["--device=tpu"], "tpu"),
        pytest.param(
            ["--device=cuda"],
            "--device cuda: torch finds no usable GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(
    flags: list[str], message: str, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(app, [folder, *flags]) == 64
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
