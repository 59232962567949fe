"""Generating with the latent cache against transformers, token by token in turn.

    python -m benchmarks.decoding [--tokens 40] [--rounds 3]

The ``shakespeare`` preset with 256 tokens of vocabulary (115M parameters), random weights, one
sequence, 1,024 tokens in the cache, then single tokens; and reading those 1,024 tokens at once. All
variants take turns, a few tokens each, so that a slow moment of the machine hits all of them; the
ratio is that of the medians. Both sides cache latents; transformers expands them anew for every
token.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable

import torch
from transformers import DynamicCache

from benchmarks.machine import machine, options_of
from benchmarks.transformers_peer import EXPERTS, peer
from moe_model import LanguageModel, ModelConfig
from moe_model.attention import LatentCache
from moe_model.decoder import Decoder

CACHED = 1024
AT_A_TIME = 4
"""Tokens before the next variant has its turn."""


class Theirs:
    """transformers with its cache, cut back to the prompt after every turn."""

    def __init__(self, model: LanguageModel, experts: str) -> None:
        self.model = peer(model, experts).eval()

    @torch.inference_mode()
    def read(self, ids: list[int]) -> None:
        self.cache = DynamicCache(config=self.model.config)
        self.logits = self.model(torch.tensor([ids]), cache=self.cache, use_cache=True).logits

    @torch.inference_mode()
    def step(self, token: int) -> torch.Tensor:
        output = self.model(torch.tensor([[token]]), cache=self.cache, use_cache=True)
        return output.logits[0, -1]

    def forget(self, tokens: int) -> None:
        self.cache.crop(-tokens)


class Ours:
    """A decoder with prepared weights."""

    def __init__(self, model: LanguageModel, weights: torch.dtype | None) -> None:
        self.decoder = Decoder(model, CACHED + 64, weights=weights)

    def read(self, ids: list[int]) -> None:
        self.decoder.cache.used = 0
        self.decoder.read(ids)

    def step(self, token: int) -> torch.Tensor:
        return self.decoder.read([token])[0][0]

    def forget(self, tokens: int) -> None:
        self.decoder.cache.used -= tokens


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    arguments = options_of(__doc__, tokens=40, rounds=3)
    torch.manual_seed(0)
    config = ModelConfig.preset("shakespeare", vocab_size=256, max_position_embeddings=CACHED + 64)
    model = LanguageModel(config).eval()
    ids = torch.randint(256, (CACHED + arguments.tokens,)).tolist()
    prompt, following = ids[:CACHED], ids[CACHED:]
    variants: dict[str, Theirs | Ours] = {f"transformers, {e}": Theirs(model, e) for e in EXPERTS}
    variants |= {
        "ours, fp32": Ours(model, torch.float32),
        "ours, fp16 weights": Ours(model, torch.float16),
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    reading: dict[str, list[float]] = {name: [] for name in variants}
    logits: dict[str, torch.Tensor] = {}
    for _ in range(arguments.rounds):
        for name, variant in variants.items():
            reading[name].append(seconds(lambda v=variant: v.read(prompt)))
        for start in range(0, len(following), AT_A_TIME):
            for name, variant in variants.items():
                for token in following[start : start + AT_A_TIME]:
                    started = time.perf_counter()
                    logits[name] = variant.step(token)
                    times[name].append(time.perf_counter() - started)
    reference = logits["transformers, eager"]
    report(config, times, reading, {n: (v - reference).abs().max() for n, v in logits.items()})
    half_prefill(model, prompt, arguments.rounds)


def report(config: ModelConfig, times: dict, reading: dict, difference: dict) -> None:
    """One line per variant, with the ratio to the faster of transformers."""
    print(f"{machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{config.parameters():,} parameters, {CACHED} tokens cached, batch 1\n")
    print(
        "| | tokens/s | ratio | reading the prompt, tokens/s | ratio | largest logit difference |"
    )
    print("|---|---|---|---|---|---|")
    step = {name: statistics.median(values) for name, values in times.items()}
    read = {name: statistics.median(values) for name, values in reading.items()}
    best_step = min(v for name, v in step.items() if name.startswith("transformers"))
    best_read = min(v for name, v in read.items() if name.startswith("transformers"))
    for name in times:
        print(
            f"| {name} | {1 / step[name]:.1f} | {best_step / step[name]:.2f} | "
            f"{CACHED / read[name]:,.0f} | {best_read / read[name]:.2f} | {difference[name]:.1e} |"
        )


@torch.inference_mode()
def half_prefill(model: LanguageModel, prompt: list[int], rounds: int) -> None:
    """Reading the prompt in bf16, in turn with transformers in fp32."""
    theirs = [peer(model, experts).eval() for experts in EXPERTS]
    half = copy.deepcopy(model).bfloat16()
    ids = torch.tensor([prompt])
    calls: list[Callable[[], object]] = [lambda m=m: m(ids, use_cache=True) for m in theirs]
    calls.append(
        lambda: half(ids, cache=LatentCache(model.config, 1, CACHED, dtype=torch.bfloat16))
    )
    runs = [[seconds(call) for call in calls] for _ in range(2 * rounds + 1)][1:]
    medians = [statistics.median(column) for column in zip(*runs, strict=True)]
    print(
        f"\nreading the prompt in bf16: {CACHED / medians[-1]:,.0f} tokens/s, "
        f"{min(medians[:-1]) / medians[-1]:.2f} x transformers in fp32"
    )


if __name__ == "__main__":
    main()
