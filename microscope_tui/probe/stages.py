"""The routers of all ranks together, where a rank may hold only a stage of a pipeline.

Routers of the same depth and path are replicas, if their weights agree; all others are rows of the
log. The numbers in module paths are the depth, if stages keep those of the whole model. A
``PipelineStage`` also shows how many layers precede a stage that counts its own from 0.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from microscope_tui.probe.find_routers import sites_in
from microscope_tui.probe.ranks import along
from microscope_tui.probe.sites import Adapter, Site, is_size, setting
from microscope_tui.probe.weights import inside, local_part

Layer = tuple[str, str]
"""Path of a list of modules, and a number in it."""
_EXPERTS = ("ep", "expert", "experts", "expert_parallel")
"""Names of mesh dimensions over which experts are split."""


class Part(NamedTuple):
    """A module that a rank trains."""

    start: str
    """Its number, if there are several, as paths in ``ForwardHooks.model`` begin."""
    stage: int | None
    """Its number in a pipeline of torch."""
    layers: list[Layer]
    """In the outermost lists of modules."""
    sites: list[Site]


def split(model: Any) -> tuple[list[nn.Module], list[int | None]]:
    """The modules in what ``attach`` was given, and their stages in a pipeline of torch."""
    given = [*model] if isinstance(model, list | tuple) else [model]
    stages = [None if isinstance(one, nn.Module) else one.stage_index for one in given]
    modules = [one if isinstance(one, nn.Module) else one.submod for one in given]
    return [_unwrapped(module) for module in modules], stages


def parts_of(
    modules: Sequence[nn.Module],
    stages: Sequence[int | None],
    routers: Mapping[str, Adapter] | None,
    depths: Mapping[str, int],
) -> list[Part]:
    parts: list[Part] = []
    for number, (module, stage) in enumerate(zip(modules, stages, strict=True)):
        start = f"{number}." if len(modules) > 1 else ""
        own = {p.removeprefix(start): a for p, a in (routers or {}).items() if p.startswith(start)}
        sites = sites_in(module, own) if own or not routers else []
        for site in sites:
            site.path = start + site.path
            if path := inside(site.path, depths):
                site.depth, site.is_placed = depths[path], True
        paths = [path for path, one in module.named_modules() if not isinstance(one, nn.Identity)]
        layers = dict.fromkeys(map(_layer, paths))
        parts.append(Part(start, stage, [layer for layer in layers if layer[1]], sites))
    return parts


def unite(everyone: Sequence[Sequence[Part]], rank: int) -> list[Site]:
    """The routers of all ranks; of those that are not on this rank, copies.

    Raises:
        ValueError: it is unknown which of them are the same.
    """
    shifts = _shifts({part.stage: part.layers for parts in everyone for part in parts})
    found: dict[tuple[int, str], Site] = {}
    holders: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
    placed = set[tuple[int, str]]()
    everything = [
        (n, p, site) for n, parts in enumerate(everyone) for p in parts for site in p.sites
    ]
    for number, part, site in everything:
        path = site.path.removeprefix(part.start)
        shift = 0 if site.is_placed else shifts.get((part.stage, _layer(path)[0]), 0)
        key = site.depth + shift, path
        first = found.setdefault(key, site)
        if first.num_experts != site.num_experts or number in holders[key]:
            raise different(site.path, f"another router on rank {holders[key][0]}")
        holders[key].append(number)
        if number == rank:
            found[key] = site
        if site.is_placed or part.stage is not None:
            placed.add(key)
    for key, site in found.items():
        site.depth, site.holders, site.is_placed = key[0], holders[key], key in placed
    return [*found.values()]


def different(path: str, what: str) -> ValueError:
    return ValueError(
        f"{path} has {what}: different layers, or replicas that differ; pass attach(..., depths="
        f"{{{path!r}: DEPTH}}) on every rank, with its number in the whole model"
    )


def check_replicas(sites: Sequence[Site], marks: Sequence[Sequence[Any]]) -> None:
    """Raise ``ValueError`` if routers of one depth and path differ.

    ``marks``: of every router, the results of ``mark_of`` by rank.
    """
    for site, by_rank in zip(sites, marks, strict=True):
        own = {by_rank[rank]: rank for rank in reversed(site.holders)}
        own.pop(None, None)
        if len(own) > 1 and not site.is_placed:
            ranks = sorted(own.values())
            raise different(site.path, f"other weights on rank {ranks[0]} than on rank {ranks[1]}")


def mark_of(site: Site) -> Any:
    """The sum of a router's bits, or the ranks that have a part of it each; ``None`` if this rank
    holds no matrix of it."""
    weights = () if site.router is None else site.router.parameters()
    weight: Any = next((one for one in weights if one.dim() > 1 and one.numel()), None)
    if weight is None:
        return None
    if any(placement.is_shard() for placement in getattr(weight, "placements", ())):
        return tuple(weight.device_mesh.mesh.flatten().tolist())
    return int(local_part(weight).flatten().view(torch.int16).sum())


def expert_ranks(sites: Sequence[Site]) -> int:
    """Over how many ranks experts are split, by their mesh or by the number of those here."""
    blocks = [site.block for site in sites if site.block is not None]
    parts = [along(blocks, _EXPERTS)[1]]
    for site in sites:
        own = setting((site.block, site.experts), ("num_local_experts",), is_size)
        parts.append(site.num_experts // (own or site.num_experts))
    return max(parts)


def _shifts(stages: Mapping[int | None, list[Layer]]) -> dict[tuple[int | None, str], int]:
    """How many layers precede a stage, in lists that stages count from 0 each."""
    known = sorted((n, layers) for n, layers in stages.items() if n is not None)
    times = Counter(layer for _, layers in known for layer in layers)
    again = {path for (path, _), n in times.items() if n > 1}
    shifts: dict[tuple[int | None, str], int] = {}
    before = Counter[str]()
    for stage, layers in known:
        shifts |= {(stage, path): before[path] for path in again}
        before.update(path for path, _ in layers)
    return shifts


def _layer(path: str) -> Layer:
    """Of the first number in a path; empty without one."""
    found = re.match(r"(.*?\.|)(\d+)(\.|$)", path)
    return (found[1], found[2]) if found else ("", "")


def _unwrapped(model: Any) -> Any:
    """The model itself, without DDP, ``torch.compile`` and PEFT around it."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and type(model).__name__ == "DistributedDataParallel":
            inner = model.module
        if inner is None and hasattr(model, "get_base_model"):
            inner = model.get_base_model()
        if not isinstance(inner, nn.Module) or inner is model:
            return model
        model = inner
