"""Sources, texts and options that cannot work: one message with the reason, and no output."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe_model import USAGE, python_docs
from tests.model.llamas import random_llama, save, story, upcycle
from tests.model.published import change_config, change_tensors

Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama") / "plain"
    save(random_llama(vocab_size=len(set(python_docs("--text")))), folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text(story(4_000))
    return path


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The words with which the command refuses a source, a text or options."""

    def words(src: Path, text: Path, *more: str) -> str:
        assert upcycle(src, tmp_path / "new", text, *more) == USAGE
        return capsys.readouterr().err

    return words


def fields(**fields: Any) -> Damage:
    return lambda folder: change_config(folder, **fields)


def qwen2(**more: Any) -> Damage:
    return fields(architectures=["Qwen2ForCausalLM"], model_type="qwen2", **more)


def lose(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: str) -> Damage:
    return lambda folder: (folder / name).write_text(content)


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def break_weights(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))


SOURCES = [
    (fields(architectures=["GemmaForCausalLM"]), "has architectures=['GemmaForCausalLM']"),
    (fields(architectures=["Qwen3ForCausalLM"]), "has architectures=['Qwen3ForCausalLM']"),
    (qwen2(), "missing keys, such as"),
    (qwen2(use_sliding_window=True, sliding_window=8), "sliding_window=8"),
    (fields(architectures=None), "has architectures=None"),
    (fields(architectures=["MistralForCausalLM"], model_type="mistral", sliding_window=8),
     "sliding_window=8"),
    (fields(attention_bias=True), "missing keys, such as model.layers.0.self_attn.k_proj.bias"),
    (fields(mlp_bias=True), "mlp_bias=true"),
    (fields(hidden_act="gelu"), "hidden_act=gelu"),
    (fields(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}),
     "rope_type=linear"),
    (fields(quantization_config={"quant_method": "fp8"}), "quantization_config"),
    (fields(hidden_size=64), "cannot be read"),
    (fields(num_hidden_layers=2), "unexpected keys, such as model.layers.2."),
    (fields(num_hidden_layers=4), "missing keys, such as model.layers.3."),
    (cut_weights, "cannot be read"),
    (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
     "no *.safetensors: pickled weights are not read"),
    (break_weights, "a loss of nan"),
    (lose("config.json"), "config.json cannot be read ([Errno 2] No such file"),
    (lose("model.safetensors"), "no *.safetensors: pickled weights are not read; save"),
    (lose("tokenizer.json"), "has no tokenizer.json"),
    (write("config.json", "{"), "config.json cannot be read (it is not JSON"),
    (write("tokenizer.json", "{}"), "is not a tokenizer"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), SOURCES, ids=[why for _, why in SOURCES])
def test_a_source_that_is_damaged_or_not_exactly_a_llama_is_refused(
    damage: Damage, message: str, plain: Path, text: Path, tmp_path: Path, refused: Any
) -> None:
    damage(shutil.copytree(plain, tmp_path / "spoiled"))
    errors = refused(tmp_path / "spoiled", text)
    assert message in errors
    assert len(errors.splitlines()) == 2 + ("loss" in message)
    assert [path.name for path in tmp_path.iterdir()] == ["spoiled"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--noise", "-1"], "--noise -1.0 is out of range"),
        (["--noise", "nan"], "--noise nan is out of range"),
        (["--num-experts-per-tok", "9"], "num_experts_per_tok=9 is more than n_routed_experts=8"),
        (["--first-k-dense-replace", "3"], "first_k_dense_replace=3 is too large"),
        (["--kv-lora-rank", "49"], "kv_lora_rank=49 is too large for the source"),
        (["--rotary-mixes", "0"], "rotary_mixes=0 is too small"),
        (["--rotary-mixes", "3"], "rotary_mixes=3 is too large for the source"),
        (["--qk-rope-head-dim", "34"], "qk_rope_head_dim=34 is too large for the source"),
        (["--calibration-tokens", "10"], "is less than a window of 64"),
        (["--texts", "x"], "Unknown option"),
    ],
)
def test_impossible_options_are_usage_errors(
    words: list[str], message: str, plain: Path, text: Path, tmp_path: Path, refused: Any
) -> None:
    assert message in refused(plain, text, *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"the cat", "--text has 7 tokens, but a window has 64: use at least 641 tokens"),
        (b"\xff\xfe", "is not UTF-8 text (byte 0 is 0xff)"),
        ("\N{SNOWMAN}".encode() * 2000, "--text: "),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_a_text_that_cannot_be_used_is_refused(
    content: bytes | None, message: str, plain: Path, tmp_path: Path, refused: Any
) -> None:
    if content is not None:
        (tmp_path / "text").write_bytes(content)
    assert message in refused(plain, tmp_path / "text")
    assert not (tmp_path / "new").exists()


def test_existing_files_are_kept(plain: Path, text: Path, tmp_path: Path, refused: Any) -> None:
    (tmp_path / "new").write_text("mine")
    assert "exists: choose another name" in refused(plain, text)
    assert (tmp_path / "new").read_text() == "mine"
