"""A model small enough that a test takes milliseconds."""

from pathlib import Path
from typing import Any

import pytest
import torch

from moe_model import WEIGHTS, LanguageModel, ModelConfig, write_description, write_tensors
from moe_model.tokenizer import CharTokenizer

SMALL = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "first_k_dense_replace": 1,
    "intermediate_size": 48, "moe_intermediate_size": 24, "n_routed_experts": 8,
    "n_shared_experts": 1, "num_experts_per_tok": 2, "num_attention_heads": 2,
    "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "max_position_embeddings": 64,
}  # fmt: skip


@torch.no_grad()
def fill(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.empty_like(parameter).normal_(std=0.2, generator=generator)
        parameter.copy_(noise if parameter.dim() > 1 else 1 + noise)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


def make_config(**fields: Any) -> ModelConfig:
    return ModelConfig(**{**SMALL, **fields})


def make_model(seed: int = 0, **fields: Any) -> LanguageModel:
    """A small model whose weights are large enough that nothing hides in the rounding."""
    model = LanguageModel(make_config(**fields))
    fill(model, seed)
    return model


def make_biased(**fields: Any) -> LanguageModel:
    """A model of the shape of ``published``, whose expert biases are negative."""
    from tests.model.published import BIAS_MEAN, BIAS_SPREAD, SHAPE

    model = make_model(**{**SHAPE, **fields}).eval()
    generator = torch.Generator().manual_seed(2)
    for router in model.routers:
        router.expert_bias.normal_(BIAS_MEAN, BIAS_SPREAD, generator=generator)
    return model


@pytest.fixture(name="ids_BS")
def _sequences() -> torch.Tensor:
    return torch.randint(97, (4, 24), generator=torch.Generator().manual_seed(1))


def write_checkpoint(folder: Path, model: LanguageModel, vocabulary: str, **facts: Any) -> None:
    """Write a checkpoint of step 3 with a tokenizer of characters to an empty folder."""
    write_tensors(folder / WEIGHTS, model.state_dict())
    tokenizer = CharTokenizer(vocabulary).to_dict()
    write_description(folder, model.config, 3, tokenizer=tokenizer, **facts)
