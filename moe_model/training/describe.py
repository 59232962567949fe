"""What the log says about a run before its first step."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

import torch

from moe_model.config import ModelConfig
from moe_model.training.checkpoint import LATEST, PREVIOUS
from moe_model.training.machine import DTYPES

if TYPE_CHECKING:
    from moe_model.training.setup import Run


def describe(run: Run) -> dict[str, Any]:
    """The arguments of a ``RunRecorder``: model, balancing, settings, how often experts count."""
    options, config = run.options, run.model.config
    return {
        "run": options.run,
        "planned_steps": options.steps,
        "resumed_at_step": run.resumed_at_step,
        "judgement": run.judgement,
        "world_size": run.world.size,
        "counts_every": options.counts_every,
        "model": {
            "name": "deepseek-v3",
            "layers": list(config.router_depths),
            "layer_names": layer_names(config),
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
    """What is about to run, and how to watch it."""
    config, options, world = run.model.config, run.options, run.world
    over = f", {world.size} processes ({options.parallel})" if world.size > 1 else ""
    lines = [
        f"{options.run}: {config.parameters():,} parameters, {config.active_parameters():,} active "
        f"per token, on {run.device.type} in {dtype_name(run.dtype)}{over}"
    ]
    if run.goes_on_from is not None:
        lines.append(f"goes on after step {run.progress.step} from {run.goes_on_from}")
    return [*lines, f"watch it: moe-microscope {options.log_dir / options.run}"]


def places(run: Run, reason: str) -> dict[str, str]:
    """Where things are, and how to go on or back, by what they are called on the screen."""
    options = run.options
    checkpoints = options.checkpoint_dir / options.run
    found = {
        "checkpoint": str(checkpoints / LATEST),
        "log": str(options.log_dir / options.run),
    }
    again = f"train.py --run {options.run} --resume"
    if reason == "signal":
        found["go on"] = f"{again} auto"
    if reason == "collapse":
        found["go back"] = f"{again} {checkpoints / PREVIOUS}, with another setting"
        found["go on"] = f"{again} auto --on-collapse log"
    return found


def layer_names(config: ModelConfig) -> list[str]:
    """What the routers are called on a screen."""
    layers = config.num_hidden_layers
    return [
        f"L{depth}" if depth < layers else f"mtp.{depth - layers}" for depth in config.router_depths
    ]


def dtype_name(dtype: torch.dtype) -> str:
    """The number format as the command line spells it."""
    return next(name for name, known in DTYPES.items() if known == dtype)
