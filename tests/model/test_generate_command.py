"""``python -m moe_model.generate``: options that have the same effect, or do not fit together."""

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


def test_a_prompt_of_which_the_rules_leave_one_token_is_greedy(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = set()
    for flag in ("--temperature=0", "--top-k=1", "--min-p=1", "--top-p=0.000001"):
        assert run_command(app, [folder, "--prompt", "--ab", "--max-new-tokens=30", flag]) == 0
        texts.add(capsys.readouterr().out)
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--top-k=-1"], "--top-k -1 is out of range: choose 1 or more, or 0 for all tokens"),
        (["--min-p=2"], "--min-p 2.0 is out of range: choose 0 to 1"),
        (["--repetition-penalty=0"], "--repetition-penalty 0.0 is out of range: choose above 0"),
        (["--prompt=a", "--prompt=b"], "--prompt specified multiple times"),
        (["--prompt="], "--prompt is empty: pass at least one character"),
        (["--prompt=\x00"], "do not occur in the training text"),
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
