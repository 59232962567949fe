"""Llamas to upcycle: random ones, and one that has learned a little."""

import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from moe_model import character_files, python_docs, run_command
from moe_model.upcycle.__main__ import app

SHAPE = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 64, "attn_implementation": "eager",
}  # fmt: skip


def random_llama(seed: int = 0, kind: str = "llama", **fields: Any) -> Any:
    """Weights large enough that nothing hides in the rounding or below the eps of a norm.

    Args:
        seed: Of the weights.
        kind: Its model type in transformers.
        fields: Of its config, where they differ.
    """
    config = AutoConfig.for_model(kind, **{**SHAPE, **fields})
    attention = SHAPE["attn_implementation"]
    llama = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in llama.named_parameters():
            parameter.normal_(std=1.0 if "embed" in name else 0.15, generator=generator)
            if parameter.dim() == 1 and not name.endswith(".bias"):
                parameter += 1
    return llama


def story(words: int, seed: int = 0) -> str:
    """Sentences with a grammar, so that there is something to learn within seconds."""
    rng = random.Random(seed)
    nouns, verbs = ["cat", "dog", "king", "queen", "tree"], ["sees", "finds", "likes", "holds"]
    sentences = (
        f"the {rng.choice(nouns)} {rng.choice(verbs)} a {rng.choice(nouns)}.\n"
        for _ in range(words // 5)
    )
    return "".join(sentences)


def trained_llama(steps: int = 80) -> LlamaForCausalLM:
    """A Llama with grouped queries and tied embeddings that has read stories."""
    characters = sorted(set(python_docs("--text")))
    ids = torch.tensor([characters.index(character) for character in story(20_000)])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fields = {"vocab_size": len(characters), "tie_word_embeddings": True}
        llama = LlamaForCausalLM(LlamaConfig(**{**SHAPE, **fields}))
        optimizer = torch.optim.AdamW(llama.parameters(), lr=5e-3)
        for _ in range(steps):
            windows = ids[torch.randint(len(ids) - 65, (8, 1)) + torch.arange(65)]
            logits = llama(windows[:, :-1], use_cache=False).logits
            optimizer.zero_grad()
            F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).backward()
            optimizer.step()
    return llama.eval()


def save(llama: Any, folder: Path, **how: Any) -> None:
    """Save ``llama`` with a tokenizer of the characters of the text that comes with Python."""
    llama.save_pretrained(folder, **how)
    for name, content in character_files("".join(sorted(set(python_docs("--text"))))).items():
        (folder / name).write_bytes(content)


def upcycle(src: Path, dst: Path, text: Path, *more: str) -> int:
    if "--calibration-tokens" not in more:
        more = ("--calibration-tokens", "1024", *more)
    return run_command(app, [str(src), str(dst), "--text", str(text), *more])
