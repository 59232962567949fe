"""The header of the run log, and the lines printed before and after training."""

from __future__ import annotations

import platform
import shlex
from pathlib import Path
from typing import Any

import torch

from moe_model import LanguageModel
from moe_model.training.checkpoint import BEST, LATEST
from moe_model.training.machine import DTYPES
from moe_model.training.options import Options
from moe_model.training.resume import newest_before
from moe_model.training.run import Run


def describe(run: Run) -> dict[str, Any]:
    """The arguments of a ``RunRecorder``: model, balancing, settings, how often experts count."""
    options, config = run.options, run.model.config
    return {
        "run": options.run,
        "planned_steps": options.steps,
        "resumed_at_step": run.resumed_at_step,
        "judgement": run.judgement,
        "profile": options.profile,
        "world_size": run.world.size,
        "counts_every": options.counts_every,
        "model": {
            "name": "deepseek-v3",
            "layers": list(run.model.router_depths),
            "layer_names": layer_names(run.model),
            "num_experts": config.n_routed_experts,
            "top_k": config.num_experts_per_tok,
            "num_shared_experts": config.n_shared_experts,
            "score_function": config.scoring_func,
            "norm_top_k": config.norm_topk_prob,
            "capacity_factor": config.capacity_factor,
            "parameters": config.parameters(),
            "active_parameters": config.active_parameters(),
        },
        "balance": {
            "method": options.balance,
            "bias_update_rate": options.bias_update_rate,
            "seq_aux_weight": options.seq_aux_weight,
            "aux_weight": options.aux_weight,
            "z_loss_weight": options.z_loss_weight,
        },
        "config": {
            **options.to_dict(),
            "device": run.device.type,
            "dtype": dtype_name(run.dtype),
            "model": config.to_dict(),
        },
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
    }


def introduction(run: Run) -> list[str]:
    """Lines about the run that starts, and how to watch it."""
    config, options, world = run.model.config, run.options, run.world
    over = f", {world.size} processes ({options.parallel})" if world.size > 1 else ""
    lines = [
        f"{options.run}: {config.parameters():,} parameters, {config.active_parameters():,} active "
        f"per token, on {run.device.type} in {dtype_name(run.dtype)}{over}"
    ]
    if run.resumed_from is not None:
        lines.append(f"resumes after step {run.progress.step} from {run.resumed_from}")
    if config.num_experts_per_tok == 1 and config.norm_topk_prob:
        lines.append(
            "warning: one expert a token with normalised weights: every weight is "
            f"{config.routed_scaling_factor:g} for every score, so the language loss does not "
            "train the router: add --model.no-norm_topk_prob, or choose "
            "--model.num_experts_per_tok 2"
        )
    return [*lines, f"watch it: moe-microscope {options.log_dir / options.run}"]


def places(run: Run, reason: str, onset: int | None = None) -> dict[str, str]:
    """Paths, and commands to resume or to go back, by their label on the screen.

    You can paste every command into a shell.

    Args:
        onset: First step of the collapse, if any; used to suggest a checkpoint before it.
    """
    options = run.options
    checkpoints = options.checkpoint_dir / options.run
    found = {
        "checkpoint": str(checkpoints / LATEST),
        "log": str(options.log_dir / options.run),
    }
    if reason == "signal":
        found["resume"] = _again(run, "auto")
    if reason == "collapse":
        found["go back"] = _back(run, checkpoints, onset or run.progress.step)
        found["resume"] = f"{_again(run, 'auto')} --on-collapse log"
    if reason == "finished":
        best = shlex.quote(str(checkpoints / (BEST if (checkpoints / BEST).exists() else LATEST)))
        found["try it"] = f"python -m moe_model.generate {best}"
    return found


def _back(run: Run, checkpoints: Path, onset: int) -> str:
    sound = newest_before(checkpoints, onset)
    if sound is None:
        return f"no checkpoint before step {onset}: start again with another setting"
    path, step = sound
    return f"{_again(run, str(path))}  # step {step}; append the setting to change"


def _again(run: Run, resume: str) -> str:
    """The command line that resumes the run; omitted options keep their values."""
    options, size = run.options, run.world.size
    start = f"torchrun --nproc-per-node {size} -- train.py" if size > 1 else "python train.py"
    words = [f"{start} --run {shlex.quote(options.run)} --resume {shlex.quote(resume)}"]
    for name in ("log_dir", "checkpoint_dir"):
        folder = getattr(options, name)
        if folder != getattr(Options(), name):
            words.append(f"--{name.replace('_', '-')} {shlex.quote(str(folder))}")
    return " ".join(words)


def layer_names(model: LanguageModel) -> list[str]:
    """Names of the trained routers as a screen shows them."""
    layers = model.config.num_hidden_layers
    return [
        f"L{depth}" if depth < layers else f"mtp.{depth - layers}" for depth in model.router_depths
    ]


def dtype_name(dtype: torch.dtype) -> str:
    """The number format as the command line spells it."""
    return next(name for name, known in DTYPES.items() if known == dtype)
