"""What the log says about a model before its first step, from its configuration."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from microscope_tui.probe import families
from microscope_tui.probe.sites import Site
from microscope_tui.probe.step_sums import Row

_ALWAYS_NORMALISE = ("mixtral", "minimax", "gpt_oss", "granitemoe")
"""Families that normalise the weights whatever their configuration says."""


def describe(
    model: nn.Module, sites: Sequence[Site], rows: Sequence[Row], passes: int
) -> dict[str, Any]:
    """Arguments of ``RunRecorder`` that follow from the model."""
    config = families.text_config(model)
    kinds = ["softmax" if r.kind == "probabilities" else r.kind or "unknown" for r in rows]
    return {
        "model": {
            "name": getattr(config, "model_type", None) or type(model).__name__,
            "layers": [sites[row.place].depth for row in rows],
            "layer_names": [row.name for row in rows],
            "num_experts": _one([row.num_experts for row in rows]),
            "top_k": _one([row.top_k for row in rows]),
            "num_shared_experts": _first(config, ("n_shared_experts", "num_shared_experts")),
            "score_function": _one(kinds),
            "norm_top_k": _normalises(config),
            "capacity_factor": None,
            "parameters": sum(p.numel() for p in model.parameters()),
        },
        "balance": balance(model, config, sites),
        "config": {"dtype": dtype_name(model), "micro_batches": passes},
        "versions": {"torch": str(torch.__version__)} | _transformers(model),
    }


def profile(model: nn.Module) -> str:
    """``finetune`` where the weights were loaded, or only some of them are trained."""
    loaded = bool(getattr(getattr(model, "config", None), "_name_or_path", ""))
    frozen = any(not p.requires_grad for p in model.parameters())
    return "finetune" if loaded or frozen else "pretrain"


def _normalises(config: Any) -> Any:
    """Whether the weights of the chosen experts are made to sum to one; ``None`` if not known."""
    configured = _first(config, ("norm_topk_prob", "route_norm", "norm_top_k_prob"))
    always = getattr(config, "model_type", None) in _ALWAYS_NORMALISE
    return True if configured is None and always else configured


def balance(model: nn.Module, config: Any, sites: Sequence[Site] = ()) -> dict[str, Any]:
    """How the routers are kept even, as far as the model and its configuration tell."""
    weight = _first(config, ("router_aux_loss_coef", "aux_loss_coef", "aux_loss_alpha"))
    asked = getattr(config, "output_router_logits", None)
    home = _home(model)
    adds_loss = home is None or hasattr(home, "load_balancing_loss_func")
    balance: dict[str, Any] = {}
    if weight is not None and adds_loss:
        balance = {"method": "aux", "aux_weight": weight}
        if asked is not None:
            balance["output_router_logits"] = bool(asked)
        if home is not None and asked and len(sites) > 1:
            balance["pools_layers"] = True
    elif any(families.bias_of(site) is not None for site in sites):
        balance = {"method": "bias"} | ({} if home is None else {"updates_bias": False})
    elif home is not None:
        balance = {"method": "none"}
    if frozen := sum(map(_is_frozen, sites)):
        balance["frozen_routers"] = frozen
    return balance


def _home(model: nn.Module) -> Any:
    """The file of transformers that the model is written in; FSDP2 makes a class of its own."""
    for kind in type(model).__mro__:
        if kind.__module__.startswith("transformers.models."):
            return sys.modules[kind.__module__]
    return None


def _is_frozen(site: Site) -> bool:
    """Nothing trains the router: it was excluded, or an adapter like LoRA leaves it out."""
    weights = [p for p in site.router.parameters() if p.dim() >= 2] if site.router else []
    return bool(weights) and not any(p.requires_grad for p in weights)


def _first(config: Any, names: tuple[str, ...]) -> Any:
    return next((v for name in names if (v := getattr(config, name, None)) is not None), None)


def _one(values: list[Any]) -> Any:
    """One value where all routers share it, else the list."""
    return values[0] if len(set(values)) == 1 else values


def dtype_name(model: nn.Module) -> str:
    """``fp32``, ``bf16`` …: that of the first weights."""
    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    kind = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return names.get(kind, str(kind))


def _transformers(model: nn.Module) -> dict[str, str]:
    if not type(model).__module__.startswith("transformers."):
        return {}
    import transformers

    return {"transformers": transformers.__version__}
