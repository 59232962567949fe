"""The process of a run and its machine: device, number format, memory, lock, signals.

Only one process trains a run: two would mix their logs and delete each other's checkpoints.
Ctrl-C, SIGTERM and a lost terminal finish the step and save. Batch systems send SIGTERM some
seconds before SIGKILL, enough for a step and a checkpoint. A second Ctrl-C exits at once. Signals
that were ignored at the start stay ignored, as nohup requires, except SIGTERM.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from moe_model import ModelConfig, UsageError, say
from moe_model.training.distributed import World

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

LOCK = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto`` takes bf16 where the hardware multiplies it, else fp16 on a GPU and fp32 on a CPU.

    A CPU without bf16 instructions converts to fp32 and back around every product, which is slower
    than fp32. A CPU with them trains this model about 1.4 times as fast (measured).
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
    # An older torch cannot answer; fp32 is the safe choice.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def refuse_too_large(config: ModelConfig, device: torch.device, parts: int = 1) -> None:
    """Raise ``UsageError`` if weights, gradients and optimizer state exceed the memory of
    ``device``.

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


@contextmanager
def run_lock(folder: Path, world: World) -> Iterator[None]:
    """While entered, no other process can train in ``folder``, which is created. A collective.

    A folder in which nothing was saved is removed again, with the parents made for it. The
    operating system holds the lock and releases it when the process ends, even after a crash. On a
    file system without locks it prints a warning instead.

    Raises:
        UsageError: On all ranks, if another process trains there.
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


class StopRequest:
    """While entered, a signal sets :attr:`requested`; a Ctrl-C after that interrupts at once.

    SIGINT and SIGHUP are left alone where the process was started with them ignored.
    """

    def __init__(self, *, to_the_end: bool = False) -> None:
        """``to_the_end``: the process ends with the block, so SIGTERM and SIGHUP are ignored after
        it. torchrun sends SIGTERM to every rank as soon as the first has ended; without this the
        slower ranks would report 143."""
        self.requested = False
        self._to_the_end = to_the_end
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in _SIGNALS:
            if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # Not a Python handler: those are removed while Python shuts down.
            ignored = self._to_the_end and number != signal.SIGINT
            signal.signal(number, signal.SIG_IGN if ignored else handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            # A closing terminal sends several, and torchrun repeats what the scheduler sent.
            if number != signal.SIGINT:
                return
            raise KeyboardInterrupt
        self.requested = True
        if sys.__stderr__ is None:
            return  # closed from the start: descriptor 2 may now be any file, such as the run log
        name = signal.Signals(number).name
        line = f"\n{name}: saving, then stopping; press Ctrl-C to exit without saving.\n"
        # Not through sys.stderr: the signal may have come in the middle of a write to it.
        with suppress(OSError):
            os.write(2, line.encode())
