"""The benchmark that asks whether the mixture pays compares what it says it compares."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import dense_twin
from moe_model import PRESETS, ModelConfig
from moe_model.training.corpus import Corpus, load_documents, make_tokenizer
from moe_model.training.options import Options
from moe_model.training.resolving import resolve

SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 48,
    "moe_intermediate_size": 16, "num_attention_heads": 2, "kv_lora_rank": 16,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "max_position_embeddings": 32,
}  # fmt: skip
"""That of the runs in this folder."""


def test_the_mixture_is_trained_as_by_the_trainer(
    train: Callable[..., int], read_log: Callable[[str], list[dict[str, Any]]], text_file: Path
) -> None:
    assert train("--run=r", "--steps=20", "--eval-every=20", "--lr=3e-3", "--seed=1") == 0
    expected = next(r["values"]["loss"] for r in read_log("r") if r.get("event") == "eval")
    options = resolve(
        Options(data=(str(text_file),), steps=20, lr=3e-3, seed=1, batch_size=4, seq_len=32,
                dtype="fp32", run="r")
    )  # fmt: skip
    documents = load_documents(*options.data)
    tokenizer = make_tokenizer("char", documents, None)
    config = ModelConfig.preset("tiny", vocab_size=len(tokenizer), **SHAPE)
    corpus = Corpus.build(documents, tokenizer, 32, 0)
    held_out, training = dense_twin.train("mixture", options, config, corpus)
    last = [r["loss"] for r in read_log("r") if r["kind"] == "step"][-2:]
    assert training == pytest.approx(sum(last) / 2, rel=1e-5)
    assert held_out == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("preset", ["tiny", "small"])
def test_the_twin_has_at_least_the_active_weights_and_hardly_more(preset: str) -> None:
    mixture = ModelConfig.preset(preset, **{"vocab_size": 65, **PRESETS[preset]})
    twin = sum(p.numel() for p in dense_twin.DenseTwin(mixture).parameters())
    assert 1 <= twin / mixture.active_parameters() < 1.005
