"""The whole way: a Llama on disk becomes a checkpoint that loads and is little worse."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, MistralConfig, MistralForCausalLM

from moe_model import FINISHED, CharTokenizer, python_docs, read_checkpoint, run_command
from moe_model.huggingface.write import save_pretrained
from moe_model.upcycle.__main__ import app
from moe_model.upcycle.llama import mean_loss, read_llama, windows_of
from tests.model.llamas import SHAPE, random_llama, save, story, trained_llama, upcycle
from tests.model.published import LLAMA3, assert_same, change_config, our_logits, their_logits

MOST_LOST = 0.05
"""Of what attention brings to the little Llama, the share that may be lost; 0.02 was measured."""


@pytest.fixture(name="trained", scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Llama that has learned a little: two key-value heads, tied embeddings."""
    folder = tmp_path_factory.mktemp("llama") / "trained"
    save(trained_llama(), folder)
    return folder


@pytest.fixture(name="text", scope="session")
def _text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text(story(8_000, seed=1))
    return path


def losses(narration: str) -> list[float]:
    return [float(number) for number in re.findall(r"^loss (\S+)", narration, re.MULTILINE)]


def test_a_llama_becomes_a_checkpoint_that_is_little_worse(
    trained: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = torch.get_rng_state()
    assert upcycle(trained, tmp_path / "new", text) == FINISHED
    assert torch.equal(generator, torch.get_rng_state())
    out, narration = capsys.readouterr()
    source, experts, noisy, _ = losses(narration)
    assert out == ""
    assert experts == pytest.approx(source, abs=1e-5)
    assert noisy == pytest.approx(source, abs=0.01)

    found = read_checkpoint(tmp_path / "new")
    ids = found.tokenizer.encode(story(1_000, seed=2))
    windows = ids[: len(ids) // 64 * 64].view(-1, 64)
    model, llama = found.load_model(), LlamaForCausalLM.from_pretrained(trained).eval()
    before = mean_loss(lambda ids_BS: llama(ids_BS).logits, windows)
    assert before == pytest.approx(llama(windows, labels=windows).loss.item(), rel=1e-5)
    after = mean_loss(lambda ids_BS: model(ids_BS).logits_BSV, windows)
    for layer in llama.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
    blind = mean_loss(lambda ids_BS: llama(ids_BS).logits, windows)
    assert blind > before + 2, "the source has not learned to attend"
    assert after < before + MOST_LOST * (blind - before)
    config = found.config
    assert f"{llama.num_parameters():,}, all active" in narration
    assert "cache: 64 numbers per token and layer -> 64" in narration
    assert f"{config.parameters():,}, {config.active_parameters():,} active" in narration
    assert found.description["upcycled"]["losses"]["source"] == pytest.approx(source, abs=1e-5)

    # The default shape is that of the source.
    assert (config.kv_lora_rank, config.v_head_dim) == (48, 16)
    assert (config.qk_nope_head_dim, config.qk_rope_head_dim) == (8, 16)
    assert config.n_shared_experts * config.moe_intermediate_size == SHAPE["intermediate_size"] / 2
    assert config.moe_layers == (1, 2)


def test_every_part_of_the_shape_can_be_chosen(trained: Path, text: Path, tmp_path: Path) -> None:
    choices = {
        "n_routed_experts": 6, "num_experts_per_tok": 3, "n_shared_experts": 0,
        "first_k_dense_replace": 0, "kv_lora_rank": 20, "qk_nope_head_dim": 5,
        "qk_rope_head_dim": 14, "v_head_dim": 9,
    }  # fmt: skip
    words = ["--rotary-mixes", "1"]
    words += [word for n, v in choices.items() for word in (f"--{n.replace('_', '-')}", str(v))]
    assert upcycle(trained, tmp_path / "special", text, *words) == FINISHED
    found = read_checkpoint(tmp_path / "special")
    assert {name: getattr(found.config, name) for name in choices} == choices
    assert found.load_model()(torch.zeros(1, 64, dtype=torch.int64)).logits_BSV.isfinite().all()


def test_same_seed_same_bytes_and_noise_shows_in_the_loss(
    trained: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So the loss with experts is not that of the dense feed-forwards."""
    runs = (("first", "3", "0.01"), ("second", "3", "0.01"), ("third", "4", "3"))
    for name, seed, noise in runs:
        assert upcycle(trained, tmp_path / name, text, "--seed", seed, "--noise", noise) == FINISHED
    first, second, third = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name, _, _ in runs
    )
    assert first == second
    assert first["model.safetensors"] != third["model.safetensors"]
    source, experts, noisy, _ = losses(capsys.readouterr().err)[-4:]
    assert experts == pytest.approx(source, abs=1e-5)
    assert noisy > source + 0.01


def test_calibration_is_spread_and_never_sees_the_text_that_measures_the_loss() -> None:
    text = "a" * 4500 + "b" * 4500 + "c" * 1000
    calibration_NS, held_out_NS = windows_of(text, CharTokenizer("abc"), 1024, 64)
    assert calibration_NS.shape == (16, 64)
    assert held_out_NS.shape == (15, 64)
    assert set(calibration_NS.flatten().tolist()) == {0, 1}
    assert set(held_out_NS.flatten().tolist()) == {2}


def test_text_that_comes_with_python_is_the_default(trained: Path, tmp_path: Path) -> None:
    words = [str(trained), str(tmp_path / "new"), "--calibration-tokens", "512"]
    assert run_command(app, words) == FINISHED


def test_a_mistral_without_a_window_in_shards_is_a_llama(tmp_path: Path) -> None:
    fields = {name: value for name, value in SHAPE.items() if name != "attn_implementation"}
    mistral = MistralForCausalLM(MistralConfig(**fields, sliding_window=None))
    mistral.load_state_dict(random_llama().state_dict())
    mistral.save_pretrained(tmp_path / "mistral", max_shard_size="100KB")
    assert len(list((tmp_path / "mistral").glob("*.safetensors"))) > 1
    ids_BS = torch.randint(97, (1, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs: Tensor = read_llama(tmp_path / "mistral")(ids_BS).logits
        torch.testing.assert_close(theirs, random_llama()(ids_BS).logits)


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_biases_and_stretched_positions_reach_the_checkpoint_and_its_export(
    kind: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vocabulary = len(set(python_docs("--text")))
    fields: dict[str, Any] = {"attention_bias": True, "rope_parameters": LLAMA3}
    if kind == "qwen2":
        fields = {"num_attention_heads": 3}
    llama = random_llama(kind=kind, num_key_value_heads=1, vocab_size=vocabulary, **fields)
    save(llama, tmp_path / "source")
    if kind == "qwen2":
        change_config(tmp_path / "source", head_dim=...)  # published ones omit it
    exact = ["--kv-lora-rank", "48", "--qk-rope-head-dim", "16", "--rotary-mixes", "1"]
    assert upcycle(tmp_path / "source", tmp_path / "new", text, *exact, "--noise", "0") == FINISHED
    source, _, _, after = losses(capsys.readouterr().err)
    assert after == pytest.approx(source, abs=1e-4)
    found = read_checkpoint(tmp_path / "new")
    assert found.config.attention_bias
    assert found.config.q_lora_rank == 49
    assert (found.config.rope_scaling is None) == (kind == "qwen2")
    save_pretrained(found.load_model(), None, tmp_path / "published")
    ids_BS = torch.randint(vocabulary, (2, 30), generator=torch.Generator().manual_seed(1))
    assert_same(
        their_logits(tmp_path / "published", ids_BS), our_logits(found.load_model(), ids_BS)
    )
