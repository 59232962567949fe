"""What the log says about a run before its first step."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

import torch

from moe_model.config import ModelConfig
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


def layer_names(config: ModelConfig) -> list[str]:
    """What the routers are called on a screen."""
    layers = config.num_hidden_layers
    return [
        f"L{depth}" if depth < layers else f"mtp.{depth - layers}" for depth in config.router_depths
    ]


def dtype_name(dtype: torch.dtype) -> str:
    """The number format as the command line spells it."""
    return next(name for name, known in DTYPES.items() if known == dtype)
