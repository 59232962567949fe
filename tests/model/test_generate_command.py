"""``python -m moe_model.generate``: options that have the same effect or do not fit, and output."""

import io
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings, strategies as st

from moe_model import run_command
from moe_model.command import REPLACEMENT
from moe_model.generate import app, pieces
from tests.model.conftest import make_model, write_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> str:
    write_checkpoint(tmp_path, make_model(), "\n" + "".join(map(chr, range(32, 128))))
    return str(tmp_path)


def test_rules_that_leave_one_token_are_greedy(folder: str, capsys: Any) -> None:
    texts = set()
    for flag in ("--temperature=0", "--top-k=1", "--top-p=0.000001"):
        assert run_command(app, [folder, "--prompt", "--ab", "--max-new-tokens=30", flag]) == 0
        texts.add(capsys.readouterr().out)
    assert len(texts) == 1


def test_the_seed_decides_the_text(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for seed in (1, 2, 1):
        assert run_command(app, [folder, "--max-new-tokens=30", f"--seed={seed}"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[2] != texts[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--top-k=-1"], "top-k -1 is out of range: choose 1 or more, or 0 for all tokens"),
        (["--max-new-tokens=0"], '"0" for --max-new-tokens. Must be >= 1'),
        (["--prompt=a", "--prompt=b"], "--prompt specified multiple times"),
        (["--prompt="], "the prompt has 0 tokens: it needs at least one"),
        (["--prompt=\x00"], "do not occur in the training text"),
        (["--draft"], "num_nextn_predict_layers=0: this model was trained without"),
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


class Output(io.StringIO):
    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.mark.parametrize("is_terminal", [True, False], ids=["terminal", "pipe"])
def test_generated_text_cannot_control_a_terminal_and_is_data_in_a_pipe(
    is_terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that takes nothing but escape, after a prompt with every kind of control."""
    model = make_model()
    with torch.no_grad():
        model.norm.weight.zero_()[0] = 1
        model.lm_head.weight[:, 0] = 0
    write_checkpoint(tmp_path, model, "\x1b\n\t\r\x9b\u202e\xa0é]")
    output = Output(is_terminal)
    monkeypatch.setattr(sys, "stdout", output)
    prompt = "\xa0é\n\t\x1b]\r\x9b\u202e"
    flags = ["--prompt", prompt, "--max-new-tokens=3", "--temperature=0"]
    assert run_command(app, [str(tmp_path), *flags]) == 0
    on_terminal = f"\xa0é\n\t{REPLACEMENT}]{REPLACEMENT * 6}\n"
    assert output.getvalue() == (on_terminal if is_terminal else f"{prompt}\x1b\x1b\x1b\n")


class Bytes:
    def __init__(self, tokens: list[bytes]) -> None:
        self.tokens = tokens

    def decode(self, ids: list[int]) -> str:
        text = b"".join(self.tokens[i] for i in ids).decode(errors="replace")
        return text.removeprefix(" ")  # as those of SentencePiece


@given(st.text(max_size=40), st.integers(1, 4), st.integers(0, 1))
@settings(max_examples=60)
def test_text_in_pieces_is_the_text(text: str, size: int, missing: int) -> None:
    """Tokens of ``size`` bytes, after a prompt: most are not whole characters, nor is the end."""
    data = text.encode("utf-8", "ignore")
    data = data[: len(data) - missing]
    tokens = [data[i : i + size] for i in range(0, len(data), size)] + [b">"]
    whole = data.decode(errors="replace")
    last = len(tokens) - 1
    assert "".join(pieces(range(last), Bytes(tokens), [last])) == whole


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [(BrokenPipeError(), 130, ""), (OSError(28, "No space left"), 1, "output: No space left")],
)
def test_an_output_that_fails_ends_the_text_in_one_line(
    error: OSError, code: int, said: str, folder: str, monkeypatch: Any, capsys: Any
) -> None:
    """The pipe breaks at the line break after Ctrl-C, which its reader has got too."""
    interrupt = KeyboardInterrupt() if code == 130 else None
    monkeypatch.setattr("moe_model.generate.put", mock.Mock(side_effect=[interrupt, error]))
    assert run_command(app, [folder, "--max-new-tokens=1"]) == code
    sys.stdout = sys.__stdout__
    assert said in capsys.readouterr().err
