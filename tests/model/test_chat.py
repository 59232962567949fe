"""A chat template is a stranger's program: only where asked for, in a sandbox, and not for long."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from moe_model import (
    CharTokenizer,
    PretrainedTokenizer,
    answer_to,
    app,
    chat,
    encode_chats,
    run_command,
)
from tests.model.published import command, their_model
from tests.model.test_huggingface_tokenizers import byte_pairs, files_of, with_template, write

PROMPTS = ["the router", "sends é\n</s> tokens", '"{{ 1 }}"']
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
IN_FULL = {"__type": "AddedToken", "content": "<s>"}
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def tokenizer_with(template: str) -> PretrainedTokenizer:
    return PretrainedTokenizer(files_of(byte_pairs(), chat_template=template))


@pytest.mark.parametrize(
    ("settings", "file"),
    [
        ({"chat_template": "{{ 1 }}"}, TEMPLATE),
        (
            {"chat_template": [
                {"name": "tool_use", "template": "{{ 1 }}"},
                {"name": "default", "template": TEMPLATE},
            ]},
            None,
        ),
        ({"chat_template": TEMPLATE, "bos_token": IN_FULL, "pad_token": "</s>"}, None),
        ({"chat_template": TEMPLATE, "eos_token": None}, None),
    ],
    ids=["a file wins", "several by name", "tokens in full", "no end"],
)  # fmt: skip
def test_chats_are_those_of_transformers(
    settings: dict[str, Any], file: str | None, tmp_path: Path
) -> None:
    """The template writes the special tokens: the tokenizer adds none of its own."""
    files = files_of(with_template(), **settings)
    if file is not None:
        files["chat_template.jinja"] = file.encode()
    write(files, tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    expected = theirs.apply_chat_template(chats, add_generation_prompt=True)["input_ids"]
    ours = encode_chats(PretrainedTokenizer(files), PROMPTS)
    assert [ids_S.tolist() for ids_S in ours] == expected


@pytest.mark.parametrize(
    "template",
    [
        ENDLESS,
        "{{ 9 ** (9 ** 9) }}",
    ],
    ids=["a loop", "one product that Python cannot leave"],
)
def test_a_template_that_does_not_end_is_ended(
    template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chat.SECONDS == 5
    monkeypatch.setattr(chat, "SECONDS", 0.3)
    with pytest.raises(ValueError, match=r"did not finish within 0\.3 s: omit --chat"):
        encode_chats(tokenizer_with(template), ["a"])


def test_a_template_has_little_memory() -> None:
    with pytest.raises(ValueError, match="it needs more than 512 MB"):
        encode_chats(tokenizer_with("{{ 'a' * 10 ** 10 }}"), ["a"])


def test_a_template_that_writes_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="the chat template produces no text"):
        encode_chats(tokenizer_with("{{ '' }}"), ["a"])


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{{ 'a' * 5000000 }}", "it produced more than 4,194,304 characters"),
        ("{{ messages[0].__class__.__mro__[1].__subclasses__() }}", "SecurityError: access to"),
        ("{{ cycler.__init__.__globals__.os.system('exit') }}", "SecurityError: access to"),
        ("{% for %}", "TemplateSyntaxError: "),
        ("{{ raise_exception('roles must alternate') }}", "TemplateError: roles must alternate"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError: "),
    ],
)
def test_what_a_template_may_not_do_is_named(template: str, error: str) -> None:
    """Here without the process and its limits, which take a second."""
    chats = [[{"role": "user", "content": "a"}]]
    answer = answer_to({"conversations": chats, "chat_template": template, "special_tokens": {}})
    assert answer["error"].startswith(error)


def test_a_tokenizer_without_a_template_cannot_chat() -> None:
    for tokenizer in (CharTokenizer("ab"), PretrainedTokenizer(files_of(byte_pairs()))):
        with pytest.raises(ValueError, match="this model has no chat template"):
            encode_chats(tokenizer, ["a"])


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[[str], Path]:
    """An imported model with a chat template."""

    def make(template: str) -> Path:
        source = tmp_path / "theirs"
        their_model(vocab_size=300).save_pretrained(source)
        write(files_of(with_template(), chat_template=template), source)
        assert command("import", source, tmp_path / "ours") == 0
        return tmp_path / "ours"

    return make


def test_a_template_is_used_with_chat_only(
    checkpoint: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With it standard output has the answer alone; a hostile one is one line and code 64."""
    folder = str(checkpoint(ENDLESS))
    flags = ["--max-new-tokens=5", "--temperature=0", "--device=cpu"]
    monkeypatch.setattr(chat, "SECONDS", 0.3)
    assert run_command(app, [folder, "--prompt=the router", *flags]) == 0
    assert capsys.readouterr().out.startswith("the router")
    assert run_command(app, [folder, "--prompt=the router", "--chat", *flags]) == 64
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 2
    assert "--chat: the chat template did not finish within" in error[0]


def test_the_answer_in_a_chat_is_that_to_the_rendered_text(
    checkpoint: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(checkpoint("{% for m in messages %}{{ m.content }} to the experts{% endfor %}"))
    flags = ["--max-new-tokens=9", "--seed=2", "--device=cpu"]
    # The tokenizer begins every text with <s>, the template does not.
    assert run_command(app, [folder, "--prompt=<s>the tokens", "--chat", *flags]) == 0
    answer = capsys.readouterr().out
    assert run_command(app, [folder, "--prompt=the tokens to the experts", *flags]) == 0
    assert capsys.readouterr().out == f"the tokens to the experts{answer}"
    assert len(answer) > 2
