"""Which weight of a model belongs to which router or expert, and what an adapter on it adapts.

PEFT wraps what it adapts (``base_layer``) and keeps a copy of what it trains as a whole
(``modules_to_save``); paths here are without such wrappers. What cannot be found (for example in
the flat parameter of FSDP1) belongs to nothing.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from microscope_tui.probe.sites import Site

_WRAPPERS = re.compile(
    r"(^|\.)(base_layer|modules_to_save\.\w+|_fsdp_wrapped_module|_orig_mod"
    r"|_checkpoint_wrapped_module)(?=\.|$)"
)


class Owner(NamedTuple):
    """To which router, or to whose experts, a weight belongs."""

    place: int = -1
    """Of the router in the model."""
    part: str = ""
    """``router`` or ``experts``; empty: to none."""
    path: str = ""
    """Of the module or weight, without the number of the expert."""
    expert: int | None = None
    """This number, in a list with a module for each expert."""


class Weight(NamedTuple):
    """A parameter ``name`` of ``module``: a weight of the model, or a matrix of an adapter."""

    module: nn.Module
    name: str
    tensor: Tensor
    path: str
    """Of an adapter, that of what it adapts."""
    adapter: str
    """Where the adapter is, the same for all its matrices; else empty."""
    owner: Owner


def weights_of(model: nn.Module, sites: Sequence[Site]) -> Iterator[Weight]:
    """The weights of the model and of its adapters, in the order of the model."""
    here = {place: site for place, site in enumerate(sites) if site.here}
    modules, owners = dict(model.named_modules()), _owners(model, here)
    wraps = {n for n, m in modules.items() if isinstance(getattr(m, "base_layer", None), nn.Module)}
    for full, tensor in model.named_parameters():
        if "original_module" in full:  # PEFT trains a copy of it
            continue
        home, _, name = full.rpartition(".")
        path, adapter = plain_path(full), ""
        around = (n for n in _up(home) if n in wraps and not full.startswith(f"{n}.base_layer."))
        if holder := next(around, ""):
            target = getattr(modules[holder], "parameter_name", "weight")
            path, adapter = plain_path(f"{holder}.{target}"), holder
        found = inside(path, owners)
        owner = owners.get(found, Owner())
        owner = owner._replace(path=owner.path + path[len(found) :])
        yield Weight(modules[home], name, tensor, path, adapter, owner)


def _owners(model: nn.Module, sites: Mapping[int, Site]) -> dict[str, Owner]:
    """By path of a module or weight. What was replaced after ``attach`` is not found."""
    modules = {plain_path(name): module for name, module in model.named_modules()}
    path_of = {id(module): plain_path(name) for name, module in model.named_modules()}
    owners: dict[str, Owner] = {}
    for place, site in sites.items():
        above = plain_path(site.path).rpartition(".")[0]
        block = site.block or modules.get(above, site.module)
        start = path_of.get(id(block), "?")
        router = path_of.get(id(site.router), site.path)
        own = {router: Owner(place, "router", router)} if site.router is not None else {}
        for path, module in block.named_modules():
            if not isinstance(module, nn.ModuleList | nn.ModuleDict) or "shared" in path:
                continue
            if len(module) == site.num_experts > 1:
                home = plain_path(f"{start}.{path}")
                part = "experts" if "expert" in path else ""
                for number, (name, _) in enumerate(module.named_children()):
                    own[plain_path(f"{home}.{name}")] = Owner(place, part, home, number)
        experts = [plain_path(f"{start}.{name}") for name in _experts_in(block, site.num_experts)]
        if site.experts is not None:
            experts = [path_of.get(id(site.experts), site.path)]
        own |= {one: Owner(place, "experts", one) for one in experts if not inside(one, own)}
        owners = own | owners
    return owners


def _experts_in(block: nn.Module, num_experts: int) -> list[str]:
    """By their names, else all weights that have a row for each expert."""
    own = [(n, shape_of(p)) for n, p in block.named_parameters() if "shared" not in n]
    return [n for n, _ in own if "expert" in n] or [
        n for n, shape in own if shape[:1] == (num_experts,) and len(shape) > 1
    ]


def shape_of(parameter: Any) -> tuple[int, ...]:
    """The shape of the whole parameter: ZeRO-3 leaves it empty, and 4-bit weights are packed."""
    packed = getattr(getattr(parameter, "quant_state", None), "shape", None)
    return tuple(getattr(parameter, "ds_shape", None) or packed or parameter.shape)


def inside(path: str, places: Collection[str]) -> str:
    """The path, or else the innermost module above it, that is in ``places``."""
    return next((one for one in _up(path) if one in places), "")


def local_part(tensor: Any) -> Tensor:
    """What this rank holds of a DTensor."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local.detach()


def plain_path(path: str) -> str:
    """A path without what PEFT, FSDP and ``torch.compile`` put into it."""
    return _WRAPPERS.sub("", path).removeprefix(".")


def _up(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition(".")[0]
