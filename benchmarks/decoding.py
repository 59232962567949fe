"""Generating with the latent cache against transformers and llama.cpp, token by token in turn.

    python -m benchmarks.decoding [--tokens 40] [--rounds 3] [--peers-python PYTHON]

The ``shakespeare`` preset with 256 tokens of vocabulary (115M parameters), random weights, one
sequence, 1,024 tokens in the cache, then single tokens; and reading those 1,024 tokens at once. All
variants take turns, a few tokens each, so that a slow moment of the machine hits all of them; the
ratios are those of the medians. Queries have a latent, because llama.cpp requires one: its rank 384
makes as many weights as without, 384 · (768 + 768) = 768 · 768.

transformers caches latents and expands them anew for every token; its fastest backend counts.
llama.cpp runs in PYTHON (``pip install llama-cpp-cffi==0.4.42 cffi gguf``) and is left out where
that has another version or none; it caches the keys and values of all heads in fp16. The bandwidth
bound is a sum over as many bytes as the active weights and the latent cache have.
"""

from __future__ import annotations

import copy
import json
import statistics
import sys
import tempfile
import time
import timeit
from pathlib import Path
from subprocess import PIPE, Popen, run

import numpy as np
import torch
from transformers import DeepseekV3ForCausalLM, DynamicCache

from benchmarks.machine import machine, options_of
from benchmarks.transformers_peer import EXPERTS, gemm_peak, peer, their_name
from moe_model import LanguageModel, ModelConfig
from moe_model.decoder import Decoder

CACHED = 1024
LENGTH = CACHED + 64
AT_A_TIME = 4
"""Tokens before the next variant has its turn."""
LLAMA_CPP = str(Path(__file__).with_name("llama_cpp_peer.py"))
NEEDED = "llama-cpp-cffi==0.4.42 cffi gguf"


class Theirs:
    """transformers; one model for all backends of its experts."""

    def __init__(self, model: DeepseekV3ForCausalLM, experts: str) -> None:
        self.model = model
        self.experts = experts

    def start(self) -> None:
        self.cache = DynamicCache(config=self.model.config)

    @torch.inference_mode()
    def read(self, ids: list[int]) -> float:
        """Seconds for these tokens."""
        # batched_mm copies the weights for every pair of token and expert: 10 GB for the prompt.
        able = len(ids) == 1 or self.experts in EXPERTS
        self.model.config._experts_implementation = self.experts if able else "grouped_mm"
        started = time.perf_counter()
        output = self.model(torch.tensor([ids]), cache=self.cache, use_cache=True)
        self.logits = output.logits[0, -1]
        return time.perf_counter() - started


class Ours:
    """A decoder with prepared weights, or that runs the model itself."""

    def __init__(self, model: LanguageModel, weights: torch.dtype | None) -> None:
        self.decoder = Decoder(model, LENGTH, weights=weights)

    def start(self) -> None:
        self.decoder.cache.used = 0

    def read(self, ids: list[int]) -> float:
        started = time.perf_counter()
        self.logits = self.decoder.read(ids)[0][-1]
        return time.perf_counter() - started


class LlamaCpp:
    """llama.cpp in a process of its own, which measures itself."""

    def __init__(self, python: str, file: Path, cache: str = "F16") -> None:
        options = [cache, str(torch.get_num_threads()), str(LENGTH), str(file)]
        command = [python, LLAMA_CPP, "read", *options]
        self.process = Popen(command, stdin=PIPE, stdout=PIPE, text=True)
        self.build = self.process.stdout.readline().strip()

    def start(self) -> None:
        self._ask("start")

    def read(self, ids: list[int]) -> float:
        return self._ask("read", *ids)

    @property
    def logits(self) -> torch.Tensor:
        return torch.tensor(self._ask("logits"))

    def _ask(self, *words: object) -> float | list[float] | None:
        print(*words, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


def llama_cpp(python: str, model: LanguageModel, ids: list[int]) -> dict[str, LlamaCpp]:
    """Both precisions of weights; prints its build, and how its logits after ``ids`` differ from
    ours with everything in fp32, or why there is none."""
    problem = missing(python)
    if problem:
        print(f"llama.cpp: not measured: {python}: {problem}; needs pip install {NEEDED}")
        return {}
    config = json.dumps(model.config.to_dict())
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "weights.npz")
        np.savez(weights, **{their_name(n): t.numpy() for n, t in model.state_dict().items()})
        files = {kind: Path(folder, f"{kind}.gguf") for kind in ("F32", "F16")}
        for kind, file in files.items():
            run([python, LLAMA_CPP, "write", kind, config, weights, file], check=True)
        exact = LlamaCpp(python, files["F32"], cache="F32")
        variants = {f"llama.cpp, {kind}": LlamaCpp(python, file) for kind, file in files.items()}
    exact.read(ids[:-1])
    exact.read(ids[-1:])
    with torch.inference_mode():
        difference = (model(torch.tensor([ids])).logits_BSV[0, -1] - exact.logits).abs().max()
    print(f"{exact.build}; all in fp32, its logits differ from ours by {difference:.1e} at most")
    exact.process.communicate()
    return variants


def missing(python: str) -> str:
    """What ``python`` lacks to run llama.cpp, if anything."""
    try:
        found = run([python, LLAMA_CPP, "check"], capture_output=True, text=True)
    except OSError as error:
        return str(error.strerror)
    if found.returncode == 0:
        return ""
    return (found.stderr.strip().splitlines() or [f"exit code {found.returncode}"])[-1]


def work(config: ModelConfig) -> tuple[int, float]:
    """The numbers that a token reads, and the FLOP of the products that read the prompt."""
    active = config.active_parameters() - config.vocab_size * config.hidden_size  # a look-up
    entries = config.num_hidden_layers * CACHED * (config.kv_lora_rank + config.qk_rope_head_dim)
    head = config.qk_head_dim + config.v_head_dim
    attention = config.num_hidden_layers * config.num_attention_heads * head * CACHED  # causal
    return active + config.hidden_size + entries, CACHED * (2.0 * active + attention)


def main() -> None:
    arguments = options_of(__doc__, tokens=40, rounds=3, peers_python=sys.executable)
    torch.manual_seed(0)
    config = ModelConfig.preset(
        "shakespeare", vocab_size=256, max_position_embeddings=LENGTH, q_lora_rank=384
    )
    model = LanguageModel(config).eval()
    for name, values in model.state_dict().items():
        if "norm" in name or "bias" in name:  # ones and zeros in a new model
            values.uniform_(0.9, 1.1)
    ids = torch.randint(256, (CACHED + arguments.tokens,)).tolist()
    prompt, following = ids[:CACHED], ids[CACHED:]
    print(f"{machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{config.parameters():,} parameters, {CACHED} tokens cached, batch 1")
    theirs = peer(model).eval()
    variants: dict[str, Theirs | LlamaCpp | Ours] = {
        f"transformers, {experts}": Theirs(theirs, experts) for experts in (*EXPERTS, "batched_mm")
    }
    variants |= llama_cpp(arguments.peers_python, model, prompt)
    variants["ours, fp32"] = Ours(model, torch.float32)
    variants["ours, fp16 weights"] = Ours(model, torch.float16)
    readers = variants | {"ours, bf16": Ours(copy.deepcopy(model).bfloat16(), None)}
    numbers, flops = work(config)
    bounds = {"bound, fp32": torch.ones(numbers), "bound, fp16": torch.ones(numbers // 2)}
    times: dict[str, list[float]] = {name: [] for name in (*variants, *bounds)}
    reading: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(arguments.rounds):
        for name, reader in readers.items():
            reader.start()
            reading[name].append(reader.read(prompt))
        for start in range(0, len(following), AT_A_TIME):
            turn = following[start : start + AT_A_TIME]
            for name, variant in variants.items():
                times[name] += [variant.read([token]) for token in turn]
            for name, as_many_bytes in bounds.items():
                times[name] += timeit.repeat(as_many_bytes.sum, number=1, repeat=len(turn))
    del reading["transformers, batched_mm"]  # grouped_mm read it
    reference = variants["transformers, eager"].logits
    difference = {n: f"{(v.logits - reference).abs().max():.1e}" for n, v in variants.items()}
    report(times, reading, difference, flops)


def report(times: dict, reading: dict, difference: dict, flops: float) -> None:
    """One line per variant."""
    step = {name: statistics.median(values) for name, values in times.items()}
    read = {name: statistics.median(values) for name, values in reading.items()}
    peaks = {name: gemm_peak(getattr(torch, name)) for name in ("float32", "bfloat16")}
    print("\n| | tokens/s | x transformers | x llama.cpp | reading the prompt, tokens/s ", end="")
    print("| x transformers | x llama.cpp | of the largest product | largest logit difference |")
    print("|---" * 9 + "|")
    for name in read | step:
        peak = peaks["bfloat16" if "bf16" in name else "float32"]
        share = f"{flops / read[name] / peak:.0%}" if name in read else "-"
        cells = (speeds(step, name, 1), speeds(read, name, CACHED), share)
        print(f"| {name} | {' | '.join(cells)} | {difference.get(name, '-')} |")


def speeds(seconds: dict[str, float], name: str, tokens: int) -> str:
    """Tokens per second, and how many times those of transformers and of llama.cpp."""
    if name not in seconds:
        return "- | - | -"
    best = min(value for other, value in seconds.items() if other.startswith("transformers"))
    alike = seconds.get("llama.cpp, F16" if "16" in name else "llama.cpp, F32")
    shown = f"{alike / seconds[name]:.2f}" if alike else "-"
    return f"{tokens / seconds[name]:,.1f} | {best / seconds[name]:.2f} | {shown}"


if __name__ == "__main__":
    main()
