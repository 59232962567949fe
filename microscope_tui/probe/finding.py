"""Finding the routers of a model.

In nearly all of transformers the module that holds the experts is called with the hidden states,
the chosen ids and their weights, in this order and whatever the router does to choose them (bias,
groups, hashing, sampling): its arguments are the truth. What is different has a reader of its own
in ``families.py`` (transformers) or ``frameworks.py`` (other training code).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from microscope_tui.probe import families, frameworks
from microscope_tui.probe.adapter import Adapter
from microscope_tui.probe.sites import Choice, Scores, Site, place

_IDS = ("top_k_index", "router_indices", "topk_ids", "expert_indices")
_WEIGHTS = ("top_k_weights", "routing_weights", "topk_weights", "expert_weights")


def find_sites(model: nn.Module, routers: Mapping[str, Adapter] | None) -> list[Site]:
    """All routers of ``model`` in forward order.

    Args:
        routers: Adapters by module path; only these are watched where there are any.

    Raises:
        ValueError: no router is found, or a path of ``routers`` is not in the model.
    """
    sites = _adapted(model, routers) if routers else _known(model)
    if not sites:
        raise ValueError(_nothing_found(model))
    return place(sites, model)


def _adapted(model: nn.Module, routers: Mapping[str, Adapter]) -> list[Site]:
    modules = dict(model.named_modules())
    order = {path: position for position, path in enumerate(modules)}
    missing = [path for path in routers if path not in modules]
    if missing:
        known = ", ".join(path for path in modules if path and path.count(".") < 3)
        raise ValueError(
            f"routers names {', '.join(map(repr, missing))}, which the model does not have; its "
            f"modules are {known[:600]}"
        )
    for path, adapter in routers.items():
        if not isinstance(adapter, Adapter):
            raise TypeError(f"routers[{path!r}] is {adapter!r}: pass Adapter(ids, ...)")
    return [
        Site(
            path=path,
            module=modules[path],
            read=_through(routers[path]),
            before=False,
            num_experts=routers[path].num_experts,
            top_k=routers[path].top_k,
            router=modules[path],
        )
        for path in sorted(routers, key=order.__getitem__)
    ]


def _through(adapter: Adapter) -> Any:
    def read(module: nn.Module, args: tuple[Any, ...], output: Any) -> Choice:
        return Choice(adapter.ids(module, args, output))

    return read


def _known(model: nn.Module) -> list[Site]:
    modules = dict(model.named_modules())
    sites: list[Site] = []
    taken: list[str] = []
    for path, module in modules.items():
        parent = modules.get(path.rpartition(".")[0], model)
        site = families.site(path, module, parent) or frameworks.site(path, module, parent)
        if site is None and takes_ids(module):
            site = _experts_site(path, module, parent)
        if site is None or any(path.startswith(f"{block}.") for block in taken):
            continue
        if site.scores is None:
            site.scores = families.scores(model, site, modules)
        sites.append(site)
        if site.block is site.module:  # what is inside belongs to it
            taken.append(path)
    families.ernie_blocks(model, sites)
    return sites


def takes_ids(module: nn.Module) -> bool:
    """The module is called with hidden states, expert ids and their weights."""
    try:
        names = list(inspect.signature(type(module).forward).parameters)[1:4]
    except (TypeError, ValueError):
        return False
    return len(names) == 3 and names[1] in _IDS and names[2] in _WEIGHTS


def _experts_site(path: str, module: nn.Module, parent: nn.Module) -> Site | None:
    router = families.router_in(parent)
    split = bool(getattr(module, "_is_expert_parallel", False))
    experts = _experts_of(module, router, split)
    top_k = _top_k(module, router, parent)
    if experts is None or (split and router is None):
        return None
    return Site(
        path=path,
        # Where experts are split over ranks their ids may be local: then the router is asked.
        module=router if split and router is not None else module,
        read=_router_ids if split else _argument_ids,
        before=not split,
        num_experts=experts,
        top_k=top_k,
        router=router,
        block=parent,
        experts=None if split else module,
        plain_choice=families.plain_choice(router, parent),
    )


def _argument_ids(module: nn.Module, args: tuple[Any, ...], output: Any) -> Choice:
    _, ids_TK, weights_TK = args[:3]
    return Choice(ids_TK, weights_TK)


def _router_ids(module: nn.Module, args: tuple[Any, ...], output: Any) -> Choice:
    ids = [part for part in output if isinstance(part, Tensor) and not part.is_floating_point()]
    return Choice(ids[-1])


def _experts_of(module: nn.Module, router: nn.Module | None, split: bool) -> int | None:
    """Experts that a token may choose: of the router where the module holds only some of them."""
    places = (router, module) if split else (module, router)
    for place_ in places:
        for name in ("num_routed_experts", "num_experts", "n_routed_experts", "num_local_experts"):
            value = getattr(place_, name, None)
            if isinstance(value, int):
                return value
    for parameter in module.parameters(recurse=False):
        return int(parameter.shape[0])
    return None


def _top_k(*modules: nn.Module | None) -> int:
    """Choices a token; 0 where only a forward pass can tell."""
    for module in modules:
        for holder in (module, getattr(module, "config", None)):
            for name in ("top_k", "num_experts_per_tok", "top_k_experts", "moe_top_k"):
                value = getattr(holder, name, None)
                if isinstance(value, int) and value >= 1:
                    return value
    return 0


def _nothing_found(model: nn.Module) -> str:
    """What was looked at, so that the right path for an adapter is easy to name."""
    kinds: dict[str, str] = {}
    for path, module in model.named_modules():
        kinds.setdefault(type(module).__name__, path)
    shown = ", ".join(f"{kind} ({path or 'the model'})" for kind, path in kinds.items())
    return (
        f"no MoE layer found in {type(model).__name__}; looked at {len(kinds)} kinds of modules: "
        f"{shown[:1500]}. Name the routers yourself: attach(model, folder, routers={{PATH: "
        "Adapter(ids, num_experts=..., top_k=...)})"
    )


__all__ = ["Scores", "find_sites", "takes_ids"]
