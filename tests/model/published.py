"""Folders as Hugging Face publishes them, made small by transformers, and ways to spoil them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DeepseekV3ForCausalLM
from transformers.modeling_layers import MtpModel
from transformers.utils import logging

from moe_model import LanguageModel, read_checkpoint, run_command
from moe_model.huggingface.__main__ import app
from tests.model.conftest import fill

logging.set_verbosity_error()
logging.disable_progress_bar()

TOLERANCE = 2e-5
BIAS_MEAN, BIAS_SPREAD = -0.6, 0.3
"""Masking with zero instead of minus infinity only shows with negative biases."""

SHAPE: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "first_k_dense_replace": 1,
    "intermediate_size": 48, "moe_intermediate_size": 24, "n_routed_experts": 16,
    "n_shared_experts": 1, "num_experts_per_tok": 4, "num_attention_heads": 2,
    "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 12,
    "max_position_embeddings": 64, "routed_scaling_factor": 2.5, "n_group": 1, "topk_group": 1,
    "q_lora_rank": None, "rms_norm_eps": 1e-5,
}  # fmt: skip
"""Four groups are possible, and a swapped split of keys and values shows."""

YARN = {
    "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0,
    "original_max_position_embeddings": 8, "mscale": 0.7, "mscale_all_dim": 1.0,
}  # fmt: skip
"""Sequences of 24 tokens go beyond the original length."""

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
"""Of four pairs one is unchanged, one is between, and two are slowed down by the whole factor."""


def their_model(seed: int = 0, **fields: Any) -> DeepseekV3ForCausalLM:
    """Random weights, large enough that nothing hides in the rounding."""
    return of_type("deepseek_v3", seed, **fields)


def of_type(model_type: str, seed: int = 0, **fields: Any) -> Any:
    """The same for another model type, without the fields that its config does not have."""
    shape = SHAPE
    if model_type == "deepseek_v2":
        unknown = {"n_group", "topk_group", "routed_scaling_factor"}
        shape = {name: value for name, value in SHAPE.items() if name not in unknown}
    if model_type == "glm4_moe_lite":
        shape = {name: value for name, value in SHAPE.items() if name != "first_k_dense_replace"}
    config = {"num_key_value_heads": SHAPE["num_attention_heads"], **shape, **fields}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **config)).eval()
    fill(model, seed)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            generator = torch.Generator().manual_seed(seed)
            buffer.normal_(BIAS_MEAN, BIAS_SPREAD, generator=generator)
    return model


def their_logits(folder: Path, ids_BS: Tensor) -> Tensor:
    """Logits of the model that transformers loads from a folder, in fp32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits: Tensor = model(ids_BS, use_cache=False).logits
    return logits


@torch.no_grad()
def their_ahead_logits(depths: MtpModel, hidden_BSD: Tensor, next_ids: Tensor) -> list[Tensor]:
    """Logits of every depth of multi-token prediction, each from the depth before."""
    positions_1S = torch.arange(hidden_BSD.shape[1]).unsqueeze(0)
    logits = []
    for depth in range(len(depths.layers)):
        ids_BS = next_ids[:, depth : depth + hidden_BSD.shape[1]]
        hidden_BSD = depths.forward_layer(depth, hidden_BSD, positions_1S, None, input_ids=ids_BS)
        logits.append(depths.shared_head(hidden_BSD))
    return logits


def our_logits(model: LanguageModel, ids_BS: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids_BS).logits_BSV


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Equal within the tolerance, and large enough to prove something."""
    assert expected.abs().mean() > 0.3, "too small to prove anything"
    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=0)


def command(*arguments: str | Path) -> int:
    return run_command(app, [str(argument) for argument in arguments])


def imported(src: Path) -> LanguageModel:
    """The model that importing ``src`` on the command line leads to."""
    dst = src.parent / f"{src.name}.imported"
    assert command("import", src, dst) == 0
    return read_checkpoint(dst).load_model()


def tensors(folder: Path) -> dict[str, Tensor]:
    return {k: t for p in sorted(folder.glob("*.safetensors")) for k, t in load_file(p).items()}


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Let ``change`` work on the tensors of an unsharded folder."""
    content = {name: tensor.clone() for name, tensor in tensors(folder).items()}
    change(content)
    save_file(content, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path, **fields: Any) -> None:
    """Set fields of ``config.json``; ``...`` removes one."""
    path = folder / "config.json"
    known = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({n: value for n, value in known.items() if value is not ...}))
