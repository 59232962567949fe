"""The machine a run is on: device, number format, memory."""

from __future__ import annotations

import os
import random
import resource
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from moe_model.command import UsageError
from moe_model.config import ModelConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str, *, deterministic: bool = False) -> torch.device:
    """``auto`` takes the GPU where there is one; ``UsageError`` for a GPU that is not there.

    ``deterministic`` asks for the same bits each time, before anything runs on a GPU: attention
    adds up its gradients in any order there otherwise, and cuBLAS may. A CPU needs none of this.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: this torch finds no usable GPU: use --device cpu.")
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto`` takes bf16 where the hardware multiplies it, else fp16 on a GPU and fp32 on a CPU.

    A CPU without bf16 instructions converts to fp32 and back around every product, which is slower
    than fp32; one with them is measured to train this model about 1.4 times as fast.
    """
    native = has_native_bf16(device)
    if name == "auto":
        if native:
            return torch.bfloat16
        return torch.float16 if device.type == "cuda" else torch.float32
    if name == "bf16" and device.type == "cuda" and not native:
        raise UsageError(
            f"--dtype bf16: {torch.cuda.get_device_name(device)} has no bf16: use --dtype fp16."
        )
    return DTYPES[name]


def has_native_bf16(device: torch.device) -> bool:
    """Whether ``device`` has instructions for bf16 products, rather than an emulation."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # A torch too old to ask says nothing, which leaves the safe answer: fp32.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def mixed_precision(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Run matrix products in ``dtype``; weights and everything delicate stay fp32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def loss_scale(device: torch.device, dtype: torch.dtype) -> torch.amp.GradScaler:
    """Finds the factor that keeps fp16 gradients above zero; does nothing for other formats."""
    return torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)


def refuse_too_large(config: ModelConfig, device: torch.device, parts: int = 1) -> None:
    """``UsageError`` where weights, gradients and optimizer alone exceed the memory of ``device``.

    16 bytes a parameter: weight, gradient and two moments in fp32; ``parts`` ranks share them.
    """
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    needed = 16 * config.parameters() // parts
    if needed > memory:
        main = config.parameters(multi_token_prediction=False)
        raise UsageError(
            f"--preset: {main / 1e9:.1f}B parameters ({config.active_parameters() / 1e9:.2f}B "
            f"active per token) need {needed / 1e9:,.0f} GB to train and {device.type} has "
            f"{memory / 1e9:,.0f} GB: choose a smaller preset, or set --model.num_hidden_layers, "
            "--model.n_routed_experts and other fields lower."
        )


def seed_step(seed: int, step: int, rank: int) -> None:
    """Every random number of a step depends on the seed, the step and the rank, on nothing else.

    So there is no state of a generator to be saved, and none that a resumed run could miss: what
    was drawn between two steps, by whomever, changes nothing.
    """
    number = random.Random(f"{seed}/{step}/{rank}").getrandbits(63)
    random.seed(number)
    torch.manual_seed(number)  # that of the CPU and those of all GPUs


def memory_bytes(device: torch.device) -> int:
    """Peak memory on a GPU, else what the process holds now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text("ascii").split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
