"""Routers of other training code, recognised by the names of their classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from microscope_tui.probe.sites import Choice, Scores, Site


def site(path: str, module: nn.Module, parent: nn.Module) -> Site | None:
    """The site at ``module`` if it is a router of a framework that is known here."""
    home = type(module).__module__
    for package, kind, make in _KNOWN:
        if type(module).__name__ == kind and home.split(".")[0] == package:
            made: Site = make(path, module, parent)
            return made
    return None


def _site(path: str, module: Any, parent: nn.Module, read: Any, experts: int, top_k: int) -> Site:
    return Site(
        path=path,
        module=module,
        read=read,
        before=False,
        num_experts=int(experts),
        top_k=int(top_k),
        router=module,
        block=parent,
        scores=Scores(module, None, None),
    )


def _moe_model(path: str, module: Any, parent: nn.Module) -> Site:
    """The router of this project's own model; a capacity keeps what it does not drop."""

    def read(module: nn.Module, args: tuple[Any, ...], output: Any) -> Choice:
        valid = args[1] if len(args) > 1 else None
        return Choice(
            output.expert_ids_TK,
            output.weights_TK,
            output.logits_TE,
            output.kept_TK,
            None if valid is None else valid.reshape(-1),
        )

    config = module.config
    made = _site(path, module, parent, read, config.n_routed_experts, config.num_experts_per_tok)
    made.scores = Scores(module, None, config.scoring_func)
    made.plain_choice = config.n_group == 1
    made.drops = config.capacity_factor is not None
    return made


def _megatron(path: str, module: Any, parent: nn.Module) -> Site:
    """``(probabilities, map)``: a token's experts are the true entries of its row of the map."""
    top_k = int(module.config.moe_router_topk)

    def read(module: nn.Module, args: tuple[Any, ...], output: Any) -> Choice:
        map_TE = output[1]
        chosen_TK = map_TE.to(torch.uint8).topk(top_k, dim=-1)
        return Choice(chosen_TK.indices.masked_fill(chosen_TK.values == 0, -1))

    return _site(path, module, parent, read, module.config.num_moe_experts, top_k)


def _torchtitan(path: str, module: Any, parent: nn.Module) -> Site:
    """``(weights, ids, counts)`` of its token-choice router."""

    def read(module: nn.Module, args: tuple[Any, ...], output: Any) -> Choice:
        ids = [part for part in output[1:] if part.dim() >= 2 and not part.is_floating_point()]
        return Choice(ids[0].flatten(0, -2), output[0].flatten(0, -2))

    return _site(path, module, parent, read, module.num_experts, module.top_k)


def _deepspeed(path: str, module: Any, parent: nn.Module) -> Site:
    """Its gate gives dispatch masks after the drop; what was chosen is the top k of its logits.

    Raises:
        ValueError: the gate samples, so that its logits do not tell what it chose.
    """
    top_k, noise = int(module.k), getattr(module, "noisy_gate_policy", None)
    if top_k == 2 or noise:
        raise ValueError(
            f"{path} is a DeepSpeed gate that samples its choice (k={top_k}, "
            f"noisy_gate_policy={noise!r}), which its outputs do not name: use k=1 or k>2 without "
            "noise, or pass an Adapter for it"
        )

    def read(module: Any, args: tuple[Any, ...], output: Any) -> Choice:
        weight = module.wg.weight.float()
        logits_TE = nn.functional.linear(args[0].reshape(-1, weight.shape[-1]).float(), weight)
        return Choice(logits_TE.topk(top_k, dim=-1).indices, logits_TE=logits_TE)

    made = _site(path, module, parent, read, module.wg.weight.shape[0], top_k)
    made.scores = Scores(module, None, "softmax")
    return made


_KNOWN: tuple[tuple[str, str, Any], ...] = (
    ("moe_model", "Router", _moe_model),
    ("megatron", "TopKRouter", _megatron),
    ("torchtitan", "TokenChoiceTopKRouter", _torchtitan),
    ("deepspeed", "TopKGate", _deepspeed),
)
