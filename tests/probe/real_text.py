"""Text that comes with Python, its byte pairs, and a small model whose routers stay even on it."""

from functools import cache
from pydoc_data.topics import topics

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

LENGTH, VOCABULARY = 32, 600
TEXT = "\n".join(topics.values())[:60_000]


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer, pairs.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    special = ["<pad>", "<eos>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet,
        show_progress=False,
    )  # fmt: skip
    pairs.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=pairs, pad_token="<pad>", eos_token="<eos>")


class Pieces(Dataset[dict[str, Tensor]]):
    def __init__(self) -> None:
        ids = torch.tensor(tokenizer().encode(TEXT))
        self.pieces_NS = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)

    def __len__(self) -> int:
        return len(self.pieces_NS)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.pieces_NS[index], "labels": self.pieces_NS[index]}


def small_mixtral() -> MixtralForCausalLM:
    """Random weights and two layers; it routes by token from the start."""
    torch.manual_seed(0)
    model = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, num_local_experts=8,
            num_experts_per_tok=2, output_router_logits=True, router_aux_loss_coef=0.02,
            pad_token_id=0, bos_token_id=1, eos_token_id=1, max_position_embeddings=128,
        )
    )  # fmt: skip
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(std=1.0)
        for layer in model.model.layers:
            layer.mlp.gate.weight.normal_(std=0.2)
    return model


def offset(model: MixtralForCausalLM, layer: int) -> None:
    """Add 8 to the logits of the first two experts of a layer: the router alone sees a one in place
    of its first feature, and has 8 for it in these two rows."""
    gate: nn.Module = model.model.layers[layer].mlp.gate

    def one(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0].clone()
        hidden[..., 0] = 1.0
        return hidden, *args[1:]

    gate.register_forward_pre_hook(one)
    with torch.no_grad():
        gate.weight[:, 0] = 0.0
        gate.weight[:2, 0] = 8.0
