"""Training steps against transformers, step by step in turn, and the share of the machine's peak.

    python -m benchmarks.training [--rounds 12] [--compiled]

7.84M parameters: vocabulary 256, hidden 256, 6 layers of which the first is dense, 4 heads, 8
experts of which each token takes 2. A step is forward, backward and fused AdamW on 8 × 256 tokens,
ours with its counting of tokens per expert. bf16 is autocast: weights, their gradients and AdamW
stay fp32. The ratio is the median over the rounds of (transformers' faster backend in the same
precision ÷ ours) within a round, so that a slow moment of the machine counts for both. Its third
backend, batched_mm, copies the weights of every chosen expert for every token.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.machine import machine, options_of
from benchmarks.transformers_peer import EXPERTS, gemm_peak, peer
from microscope_tui.probe import RoutingCounter
from moe_model import LanguageModel, ModelConfig

CONFIG = ModelConfig(
    vocab_size=256, hidden_size=256, num_hidden_layers=6, first_k_dense_replace=1,
    intermediate_size=688, moe_intermediate_size=176, n_routed_experts=8, n_shared_experts=1,
    num_experts_per_tok=2, num_attention_heads=4, q_lora_rank=128, kv_lora_rank=64,
    qk_nope_head_dim=32, qk_rope_head_dim=32, v_head_dim=64, max_position_embeddings=256,
)  # fmt: skip
BATCH, LENGTH = 8, 256


def flops_per_step() -> float:
    """Of the products alone: 6 per active weight and token, and causal attention."""
    tokens = BATCH * LENGTH
    active = CONFIG.active_parameters() - CONFIG.vocab_size * CONFIG.hidden_size  # a look-up
    head = CONFIG.qk_head_dim + CONFIG.v_head_dim
    attention = CONFIG.num_hidden_layers * CONFIG.num_attention_heads * head * LENGTH / 2
    return tokens * 6 * (active + attention)


def step_of(
    model: torch.nn.Module, forward: Callable[[torch.Tensor], torch.Tensor], half: bool
) -> Callable[[], None]:
    """A training step of ``model`` on always the same tokens."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(CONFIG.vocab_size, (BATCH, LENGTH + 1), generator=generator)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].flatten()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = forward(inputs)
        F.cross_entropy(logits.float().flatten(0, 1), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def ours(model: LanguageModel, half: bool, compiled: bool = False) -> Callable[[], None]:
    model = copy.deepcopy(model).train()
    if compiled:
        for layer in model.layers:
            layer.compile()

    def forward(ids: torch.Tensor) -> torch.Tensor:
        output, counter = model(ids), RoutingCounter(model.config, model.routers)
        counter.add(output.routings)
        return output.logits_BSV

    return step_of(model, forward, half)


def theirs(model: LanguageModel, experts: str, half: bool) -> Callable[[], None]:
    twin = peer(model, experts).train()
    return step_of(twin, lambda ids: twin(ids, use_cache=False).logits, half)


def main() -> None:
    arguments = options_of(__doc__, rounds=12, compiled=False)
    torch.manual_seed(0)
    model = LanguageModel(CONFIG)
    steps: dict[str, Any] = {}
    for name, half in (("fp32", False), ("bf16", True)):
        steps |= {f"transformers, {name}, {e}": theirs(model, e, half) for e in EXPERTS}
        steps[f"ours, {name}"] = ours(model, half)
        if arguments.compiled:
            steps[f"ours, {name}, compiled"] = ours(model, half, compiled=True)
    for step in steps.values():
        step()
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(arguments.rounds):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - started)
    peaks = {"fp32": gemm_peak(torch.float32), "bf16": gemm_peak(torch.bfloat16)}
    best = {
        name: min((times[f"transformers, {name}, {e}"] for e in EXPERTS), key=statistics.median)
        for name in peaks
    }
    print(f"{machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(
        f"{CONFIG.parameters():,} parameters, {BATCH} x {LENGTH} tokens, "
        f"{flops_per_step() / 1e9:.1f} GFLOP a step; largest product measured: "
        + ", ".join(f"{peak / 1e9:.0f} GFLOP/s in {name}" for name, peak in peaks.items())
    )
    print("\n| | step | tokens/s | ratio | share of the peak |\n|---|---|---|---|---|")
    for name, values in times.items():
        median, precision = statistics.median(values), name.split(", ")[1]
        pairs = zip(best[precision], values, strict=True)
        ratio = statistics.median([their_s / own_s for their_s, own_s in pairs])
        share = flops_per_step() / median / peaks[precision]
        print(
            f"| {name} | {median * 1e3:.0f} ms | {BATCH * LENGTH / median:,.0f} | {ratio:.2f} | "
            f"{share:.0%} |"
        )


if __name__ == "__main__":
    main()
