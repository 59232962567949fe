"""Routers of other training code; ``find_routers.py`` recognises them by their class names."""

import sys
from typing import Any

import torch
from torch import Tensor, nn

from microscope_tui.probe.sites import SCORE_KINDS, Choice, Scores, Site, site_at_router
from microscope_tui.probe.weights import local_part


def moe_model(path: str, module: Any, parent: nn.Module) -> Site:
    """The router of this project's model; ``kept_TK`` is what a capacity does not drop."""

    def read(module: nn.Module, args: tuple[Any, ...], output: Any) -> Choice:
        return Choice(output.expert_ids_TK, output.weights_TK, output.logits_TE, output.kept_TK)

    config = module.config
    return site_at_router(
        path, module, parent, read, config.n_routed_experts, config.num_experts_per_tok,
        config.scoring_func, plain_choice=config.n_group == 1,
        drops=config.capacity_factor is not None,
    )  # fmt: skip


def megatron(path: str, module: Any, parent: nn.Module) -> Site:
    """Megatron's router: its output is ``(probabilities, map)``.

    A token's experts are the true entries of its row of the map. A capacity has already changed
    the map, so that the choice is then recomputed from the logits. ``ValueError``: there is a
    capacity, and the router did not choose by these logits.
    """
    config, top_k, E = module.config, int(module.config.moe_router_topk), module.num_experts
    kind, balancing = config.moe_router_score_function, config.moe_router_load_balancing_type
    changed = [name for name in _MEGATRON_CHANGES if getattr(config, name, None)]
    drops = config.moe_expert_capacity_factor is not None
    if changed and drops:
        raise ValueError(
            f"{path} drops tokens (moe_expert_capacity_factor="
            f"{config.moe_expert_capacity_factor}) and chooses with {changed[0]}: what it chose "
            "before the drop is not known; switch one of them off, or pass an Adapter for it"
        )

    def read(module: Any, args: tuple[Any, ...], output: Any) -> Choice:
        map_TE = output[1]
        logits_TE = None if changed else module.gating(args[0]).reshape(-1, E)
        ids_TK = _ids(_before_drop(module, logits_TE) if drops else map_TE, top_k)
        # Tokens are in the order [S, B]: only the router's own mask has it too.
        real_T = torch.ones(len(map_TE), dtype=torch.bool, device=map_TE.device)
        if len(args) > 1 and args[1] is not None:
            real_T = ~args[1].reshape(-1).bool()
        kept_TK = map_TE.gather(1, ids_TK) if drops else None
        return Choice(ids_TK, None, logits_TE, kept_TK, real_T)

    return site_at_router(
        path, module, parent, read, E, top_k, kind if kind in SCORE_KINDS else None, drops=drops,
        plain_choice=not config.moe_router_num_groups and balancing != "sinkhorn",
        balance=_megatron_balance(config),
    )  # fmt: skip


def _megatron_balance(config: Any) -> dict[str, Any]:
    """How Megatron balances; several auxiliary losses have a weight each, which is then unknown."""
    kind, weight = config.moe_router_load_balancing_type, config.moe_aux_loss_coeff
    balance = {"method": "aux", "aux_weight": weight if isinstance(weight, float | int) else None}
    if config.moe_router_enable_expert_bias:
        rate = config.moe_router_bias_update_rate
        balance |= {"method": "bias", "update": "sign", "bias_update_rate": rate}
    elif kind == "quantile_balancing":
        balance = {"method": "bias", "update": "quantile"}
    elif kind in ("sinkhorn", "none"):
        balance = {"method": kind}
    return balance | {"z_loss_weight": config.moe_z_loss_coeff, "names": _MEGATRON_NAMES}


_MEGATRON_NAMES = {
    "aux_weight": "--moe-aux-loss-coeff", "bias_update_rate": "--moe-router-bias-update-rate",
    "capacity_factor": "--moe-expert-capacity-factor", "top_k": "--moe-router-topk",
    "z_loss_weight": "--moe-z-loss-coeff",
}  # fmt: skip
_MEGATRON_CHANGES = (
    "moe_input_jitter_eps", "moe_router_force_load_balancing", "moe_enable_routing_replay",
)  # fmt: skip
"""Settings with which recomputed logits are not those that the router chose by."""


def _before_drop(module: Any, logits_TE: Tensor | None) -> Tensor:
    """What the router's own code chooses by its logits."""
    home = next(c for c in type(module).__mro__ if c.__name__ == "TopKRouter").__module__
    chosen = sys.modules[home].topk_routing_with_score_function(
        logits_TE,
        module.topk,
        use_pre_softmax=module.config.moe_router_pre_softmax,
        num_groups=module.config.moe_router_num_groups,
        group_topk=module.config.moe_router_group_topk,
        score_function=module.score_function,
        expert_bias=module.expert_bias,
    )
    map_TE: Tensor = chosen[1]
    return map_TE


def _ids(map_TE: Tensor, top_k: int) -> Tensor:
    """Ids ``[T, K]`` of the true entries, −1 where a row has fewer."""
    chosen_TK = map_TE.to(torch.uint8).topk(top_k, dim=-1)
    return chosen_TK.indices.masked_fill(chosen_TK.values == 0, -1)


def torchtitan(path: str, module: Any, parent: nn.Module) -> Site:
    """``(weights, ids, scores)`` of its token-choice router; the selection bias is its parent's."""

    def read(module: nn.Module, args: tuple[Any, ...], output: Any) -> Choice:
        weights_BLK, ids_BLK = map(local_part, output[:2])
        return Choice(ids_BLK.flatten(0, -2), weights_BLK.flatten(0, -2))

    made = site_at_router(path, module, parent, read, module.num_experts, module.top_k, None)
    made.scores = Scores(module.gate, 0, module.score_func)
    made.plain_choice = module.num_expert_groups is None
    if (rate := getattr(parent, "load_balance_coeff", None)) is not None:
        made.balance = {"method": "bias", "update": "sign", "bias_update_rate": rate}
        made.balance["names"] = {"bias_update_rate": "load_balance_coeff"}
    return made


def deepspeed(path: str, module: Any, parent: nn.Module) -> Site:
    """DeepSpeed's gate, which returns the routes after the drop.

    The choice before it is the top k of the logits; if the gate samples and drops nothing, it is
    the routes. ``ValueError``: the gate samples and drops, so that its choice cannot be read.
    """
    top_k, noise = int(module.k), getattr(module, "noisy_gate_policy", None)
    drops = bool(getattr(module, "drop_tokens", True))
    samples = noise == "Jitter" or (noise == "RSample" and top_k == 1)
    samples |= top_k == 2 and getattr(module, "top2_2nd_expert_sampling", True)
    if samples and drops:
        raise ValueError(
            f"{path} is a DeepSpeed gate that samples its choice (k={top_k}, "
            f"noisy_gate_policy={noise!r}) and drops tokens, so its outputs do not name what it "
            "chose: set drop_tokens=False or top2_2nd_expert_sampling=False, use no noise, or "
            "pass an Adapter for it"
        )

    def read(module: Any, args: tuple[Any, ...], output: Any) -> Choice:
        weight = module.wg.weight.float()
        logits_TE = nn.functional.linear(args[0].reshape(-1, weight.shape[-1]).float(), weight)
        routes_TK = _routes(output, top_k)
        choice = Choice(routes_TK, logits_TE=logits_TE)
        if not samples:
            choice = choice._replace(ids_TK=logits_TE.topk(top_k, dim=-1).indices)
        if drops:
            kept_TE = nn.functional.one_hot(routes_TK + 1, len(weight) + 1).sum(dim=1)[:, 1:] > 0
            choice = choice._replace(kept_TK=kept_TE.gather(1, choice.ids_TK))
        if len(args) > 1 and args[1] is not None:
            choice = choice._replace(real_T=args[1].reshape(-1).bool())
        return choice

    return site_at_router(
        path, module, parent, read, module.wg.weight.shape[0], top_k, "softmax",
        plain_choice=not samples, drops=drops,
    )  # fmt: skip


def _routes(output: Any, top_k: int) -> Tensor:
    """Ids of the experts that will run ``[T, K]``, −1 for a dropped choice; from a list of ids, or
    from a mask ``[T, E, C]`` of their places."""
    if len(output) == 4:
        return _ids(output[2].any(dim=-1), top_k)
    return torch.stack(tuple(output[3]), dim=-1).long()
