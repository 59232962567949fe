"""Models on disk for the command ``probe``: of characters, so that every text can be read."""

import json
import string
from pathlib import Path
from typing import Any

import torch
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.utils import logging

from benchmarks.families.tiny import build
from microscope_tui.commands.options import ProbeOptions
from microscope_tui.extensions.anatomy.probe_command import probe as command
from moe_model import WEIGHTS, LanguageModel, ModelConfig, write_description, write_tensors
from moe_model.tokenizer import CharTokenizer, character_files

logging.disable_progress_bar()
CHARACTERS = "".join(sorted(string.ascii_letters + string.digits + " .,;\n"))
CLASSES = 8
WORDS = "the quick brown fox jumps over the lazy dog. A second line,\nand 3 more words; "


def probe(model: object, *texts: object, **options: Any) -> int:
    return command(
        str(model), *map(str, texts), options=ProbeOptions(**({"device": "cpu"} | options))
    )


def text(length: int) -> str:
    return (WORDS * (1 + length // len(WORDS)))[:length]


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    for name, content in character_files(CHARACTERS).items():
        (folder / name).write_bytes(content)
    return folder


def family(name: str, folder: Path) -> Path:
    return save(build(name), folder)


def own(folder: Path, collapsed: int | None = None, bias: float = 0.0, **fields: Any) -> Path:
    """A checkpoint of this project, with biases of that deviation; layer ``collapsed`` is."""
    torch.manual_seed(0)
    config = ModelConfig.preset("tiny", vocab_size=len(CHARACTERS), **fields)
    folder.mkdir(parents=True)
    model = LanguageModel(config)
    for router in model.routers:
        router.expert_bias.normal_(std=bias)
    if collapsed is not None:
        model.routers[model.router_depths.index(collapsed)].collapse()
    write_tensors(folder / WEIGHTS, model.state_dict())
    tokenizer = CharTokenizer(CHARACTERS).to_dict()
    write_description(folder, config, step=0, tokenizer=tokenizer, stop_ids=[])
    return folder


def planted(folder: Path) -> Path:
    """A Mixtral that sends character c to the expert of its class, ``expert_of(c)``, and with a
    smaller weight to the one after it: nothing else reaches its routers."""
    config = MixtralConfig(
        vocab_size=len(CHARACTERS), hidden_size=CLASSES, intermediate_size=4, num_hidden_layers=2,
        num_attention_heads=1, num_key_value_heads=1, num_local_experts=CLASSES,
        num_experts_per_tok=2, max_position_embeddings=64, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = MixtralForCausalLM(config)
    with torch.no_grad():
        for token, character in enumerate(CHARACTERS):
            model.model.embed_tokens.weight[token] = 0.0
            model.model.embed_tokens.weight[token, expert_of(character)] = 1.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.experts.down_proj.zero_()
            eye = torch.eye(CLASSES)
            layer.mlp.gate.weight.copy_(2 * eye + eye.roll(1, dims=0))
    return save(model, folder)


def expert_of(character: str) -> int:
    return CHARACTERS.index(character) % CLASSES


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
