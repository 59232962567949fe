"""Does the mixture pay? It and a dense Llama of equal active size, trained on equal tokens.

    python -m benchmarks.dense_twin --data tinyshakespeare --results twin.jsonl
        [--preset tiny] [--steps 300 1500] [--seeds 3] [--rates 2e-3 3e-3]
        [--only mixture dense] [--change initializer_range=0.02 seq_aux_weight=1e-4 ...]

Both see the same batches in the same order, with the AdamW, warm-up, cosine and clipping of
``train.py``; the mixture also has its bias update and its sequence loss. The dense twin is
transformers' Llama of the same width, layers, heads and initial standard deviation. Its
feed-forward is as wide as it takes to have at least as many weights as one token meets in the
mixture, embedding and head left out. With the first seed and the fewest steps each tries every
learning rate; the best one is used for everything else. The numbers are losses on the held-out text
after the last step, in nats a token; ``--results`` also keeps the training loss. ``--change`` sets
a field of the mixture or an option of its training, for ablations.

Finished runs are kept in ``--results``, one line each: an interrupted benchmark runs only
those that are missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.machine import machine, options_of
from moe_model import LanguageModel, ModelConfig, ModelOutput
from moe_model.balance import bias_rate_at, update_expert_bias
from moe_model.training.batches import TrainingBatches, held_out_batches
from moe_model.training.corpus import Corpus, load_documents, make_tokenizer
from moe_model.training.machine import choose_dtype
from moe_model.training.options import Options
from moe_model.training.resolving import resolve
from moe_model.training.setup import EVALUATION_SEQUENCES
from moe_model.training.step import (
    CLIP_NORM,
    evaluate,
    learning_rate_at,
    loss_shares,
    make_optimizer,
    mixed_precision,
    set_learning_rate,
    weights_at,
)

MODELS = ("mixture", "dense")
CPU = torch.device("cpu")


class DenseTwin(nn.Module):
    """A Llama whose active size is that of a mixture; called as :class:`LanguageModel` is."""

    def __init__(self, mixture: ModelConfig) -> None:
        super().__init__()
        D, H, L = mixture.hidden_size, mixture.num_attention_heads, mixture.num_hidden_layers
        body = mixture.active_parameters() - 2 * mixture.vocab_size * D
        attention_and_norms = L * (4 * D * D + 2 * D) + D
        width = -(-(body - attention_and_norms) // (3 * D * L))
        config = LlamaConfig(
            vocab_size=mixture.vocab_size, hidden_size=D, num_hidden_layers=L,
            num_attention_heads=H, num_key_value_heads=H, intermediate_size=width,
            max_position_embeddings=mixture.max_position_embeddings,
            rms_norm_eps=mixture.rms_norm_eps, initializer_range=mixture.initializer_range,
            tie_word_embeddings=False,
        )  # fmt: skip
        self.llama = LlamaForCausalLM(config)

    def forward(self, ids_BS: Tensor, *, targets: Sequence[Tensor] = ()) -> ModelOutput:
        logits_BSV = self.llama(ids_BS, use_cache=False).logits
        losses = tuple(
            F.cross_entropy(logits_BSV.float().flatten(0, 1), targets_BS.flatten(), reduction="sum")
            for targets_BS in targets
        )
        return ModelOutput(logits_BSV, (), logits_BSV, (), losses)


def build(name: str, config: ModelConfig, seed: int) -> LanguageModel | DenseTwin:
    torch.manual_seed(seed)
    if name == "dense":
        return DenseTwin(config)
    model = LanguageModel(config)
    model.init_weights(torch.Generator().manual_seed(seed))
    return model


def train(name: str, options: Options, config: ModelConfig, corpus: Corpus) -> tuple[float, float]:
    """Held-out loss after ``options.steps`` steps, and mean training loss of their last tenth."""
    model = build(name, config, options.seed).train()
    optimizer = make_optimizer(model, options.lr)
    batches = TrainingBatches(
        corpus.training, batch_size=options.batch_size, seq_len=options.seq_len, seed=options.seed
    )
    dtype = choose_dtype(options.dtype, CPU)
    learnt = []
    for step in range(1, options.steps + 1):
        set_learning_rate(optimizer, learning_rate_at(step, options))
        drawn = batches.draw()
        (batch,) = drawn.micro_batches
        weights = weights_at(step, options) if name == "mixture" else {}
        with mixed_precision(CPU, dtype):
            targets = batch.all_targets(options.seq_len, ahead=False)
            output = model(batch.tokens_BN[:, : options.seq_len], targets=targets)
        shares = loss_shares(output, list(weights), drawn, 1)
        added = (w * s.sum() for w, s in zip(weights.values(), shares[1:], strict=True))
        sum(added, shares[0]).backward()
        learnt.append(shares[0].item())
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        if isinstance(model, LanguageModel):
            E = config.n_routed_experts
            counts = [one.expert_ids_TK.flatten().bincount(minlength=E) for one in output.routings]
            rate = bias_rate_at(step, options.steps, options.bias_update_rate)
            update_expert_bias(model.routers, torch.stack(counts), rate)
    held_out = held_out_batches(
        corpus.held_out, options.batch_size, options.seq_len, EVALUATION_SEQUENCES
    )
    return evaluate(model, held_out, dtype), statistics.mean(learnt[-options.steps // 10 :])


class Results:
    """Held-out losses of runs, computed when they are asked for and not known yet."""

    def __init__(self, asked: argparse.Namespace) -> None:
        fields = {field.name for field in dataclasses.fields(ModelConfig)}
        pairs = (change.partition("=") for change in asked.change)
        changes = {name: json.loads(value) for name, _, value in pairs}
        of_model = {name: value for name, value in changes.items() if name in fields}
        of_run = {name: value for name, value in changes.items() if name not in fields}
        self.options = resolve(
            Options(preset=asked.preset, data=asked.data, device="cpu", run="twin", **of_run)
        )
        documents = load_documents(*self.options.data)
        tokenizer = make_tokenizer(self.options.tokenizer, documents, None)
        self.config = ModelConfig.preset(asked.preset, vocab_size=len(tokenizer), **of_model)
        self.corpus = Corpus.build(documents, tokenizer, self.options.seq_len, 0)
        self.file: Path = asked.results
        self.rows: list[dict[str, Any]] = []
        if self.file.exists():
            self.rows = [json.loads(line) for line in self.file.read_text("utf-8").splitlines()]

    def loss(self, name: str, steps: int, seed: int, rate: float) -> float:
        """Of that run, which is trained now where ``--results`` does not have it."""
        options = dataclasses.replace(self.options, steps=steps, seed=seed, lr=rate)
        told = {"model": name, "steps": steps, "seed": seed, "lr": rate, "recipe": self._recipe}
        for row in self.rows:
            if told.items() <= row.items():
                return float(row["loss"])
        started = time.perf_counter()
        held_out, training = train(name, options, self.config, self.corpus)
        row = {**told, "loss": held_out, "training_loss": training}
        row["seconds"] = round(time.perf_counter() - started)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)
        said = f"{name}, {steps} steps, seed {seed}, {rate}: {held_out:.4f} ({training:.4f})"
        print(said, flush=True)
        return held_out

    @property
    def _recipe(self) -> dict[str, Any]:
        """All else that decides a loss, so that a run of another recipe is not taken for it."""
        names = ("bias_update_rate", "seq_aux_weight", "batch_size", "dtype", "optimizer")
        training = {name: getattr(self.options, name) for name in names}
        return {**self.config.to_dict(), **training, "text": self.corpus.digest}


def main() -> None:
    """Train what is missing and print a Markdown table."""
    asked = options_of(
        __doc__, data="tinyshakespeare", preset="tiny", steps=[300, 1500], seeds=3,
        rates=[2e-3, 3e-3], only=MODELS, change=[], results=Path("twin.jsonl"),
    )  # fmt: skip
    results = Results(asked)
    first = min(asked.steps)
    best = {}
    for name in asked.only:
        tried = {rate: results.loss(name, first, 0, rate) for rate in asked.rates}
        best[name] = min(tried, key=tried.__getitem__)
    losses = {
        (name, steps): [results.loss(name, steps, seed, best[name]) for seed in range(asked.seeds)]
        for steps in sorted(asked.steps)
        for name in asked.only
    }
    print(f"\n{machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| steps | model | learning rate | held-out loss of each seed | mean |")
    print("|---|---|---|---|---|")
    for (name, steps), values in losses.items():
        each = ", ".join(f"{value:.3f}" for value in values)
        mean = statistics.mean(values)
        print(f"| {steps:,} | {name} | {best[name]:g} | {each} | {mean:.3f} |")


if __name__ == "__main__":
    main()
