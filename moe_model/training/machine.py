"""What the machine gives a run: number format, memory, and the lock on its folder.

Only one process trains a run: two would mix their logs and delete each other's checkpoints.
"""

import errno
import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from moe_model import ModelConfig, UsageError, say
from moe_model.training.help import BYTES_PER_PARAMETER, BYTES_PER_WEIGHT, main_memory
from moe_model.training.world import World, number_of

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

LOCK = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto`` takes bf16 where the hardware multiplies it, else fp16 on a GPU and fp32 on a CPU.

    A CPU without bf16 instructions is slower than in fp32, one with them 1.4 times as fast.
    ``UsageError`` if bf16 is named and the GPU does not have it.
    """
    native = _has_native_bf16(device)
    if name == "auto":
        if native:
            return torch.bfloat16
        return torch.float16 if device.type == "cuda" else torch.float32
    if name == "bf16" and device.type == "cuda" and not native:
        raise UsageError(
            f"--dtype bf16: {torch.cuda.get_device_name(device)} has no bf16: use --dtype fp16."
        )
    return DTYPES[name]


def _has_native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # An older torch cannot answer; fp32 is the safe choice.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def refuse_too_large(
    config: ModelConfig, device: torch.device, parts: int = 1, expert_parallel: int = 1
) -> None:
    """``UsageError`` if a model needs more memory than this machine has.

    Every process builds the whole model in main memory first.

    Args:
        parts: Ranks that share weights, gradients and optimizer state.
        expert_parallel: Ranks that share those of the experts, where it is more than ``parts``.
    """
    here = max(1, number_of("LOCAL_WORLD_SIZE"))  # torchrun sets it
    size = config.parameters()
    experts = size - config.parameters(routed_experts=False)
    needed = (size - experts) // parts + experts // max(parts, expert_parallel)
    needed *= BYTES_PER_PARAMETER
    needs = [("train", needed * here, device.type, main_memory())]
    if device.type == "cuda":
        needs = [("train", needed, "cuda", torch.cuda.get_device_properties(device).total_memory)]
    needs.append(("build", BYTES_PER_WEIGHT * size * here, "main memory", main_memory()))
    for what, needed, place, memory in needs:
        if needed > memory:
            main = config.parameters(multi_token_prediction=False)
            raise UsageError(
                f"--preset: {main / 1e9:.1f}B parameters ({config.active_parameters() / 1e9:.2f}B "
                f"active per token) need {needed / 1e9:,.0f} GB to {what} and {place} has "
                f"{memory / 1e9:,.0f} GB for the processes of this machine ({here}): choose a "
                "smaller preset, or set --model.num_hidden_layers, --model.n_routed_experts and "
                "other fields lower."
            )


@contextmanager
def run_lock(folder: Path, world: World) -> Iterator[None]:
    """While entered, no other process can train in ``folder``, which is created. A collective.

    A folder in which nothing was saved is removed again, with the parents made for it. The
    operating system holds the lock and releases it when the process ends, even after a crash. On a
    file system without locks it prints a warning instead.

    Raises:
        UsageError: On rank 0, if another process trains there; the other ranks end too, see
            :meth:`World.share_fault`.
        OSError: If the folder cannot be made.
    """
    with ExitStack() as stack:
        with world.together():
            if world.is_main:
                _lock(folder, stack)
        yield


def _lock(folder: Path, stack: ExitStack) -> None:
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    file = stack.enter_context((folder / LOCK).open("w"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(
            f"{folder}: another process is training this run: stop it first, or choose another "
            "--run."
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        say(
            f"train.py: {folder} is on a disk without file locks: make sure that no other process "
            "trains this run."
        )
    stack.callback(_tidy, folder, made)  # before the lock is released


def _tidy(folder: Path, made: list[Path]) -> None:
    """If ``folder`` holds nothing but the lock, remove it and each empty folder of ``made``."""
    with suppress(OSError):
        if [path.name for path in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
            for path in made:
                path.rmdir()
