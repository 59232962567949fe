"""The routers of all ranks together, where a rank may hold only a stage of a pipeline.

Routers of the same depth and path are replicas, if their weights agree; all others are rows of the
log. The numbers in module paths are the depth, if stages keep those of the whole model. A
``PipelineStage`` also shows how many layers precede a stage that counts its own from 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from microscope_tui.probe.find_routers import sites_in
from microscope_tui.probe.sites import Adapter, Site, is_size, setting
from microscope_tui.probe.weights import inside

Layer = tuple[str, int]
"""Path of a list of modules, and a number in it."""
_EXPERTS = ("ep", "expert", "experts", "expert_parallel")
"""Names of mesh dimensions over which experts are split."""


class Part(NamedTuple):
    """A module that a rank trains."""

    stage: int | None
    """Its number in the pipeline, if that is known."""
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
        start = _start(number, modules)
        own = {p.removeprefix(start): a for p, a in (routers or {}).items() if p.startswith(start)}
        sites = sites_in(module, own) if own or not routers else []
        for site in sites:
            path = inside(start + site.path, depths)
            site.depth = depths.get(path, site.depth)
            site.is_placed |= stage is not None or bool(path)
        layers = [
            (path, int(n))
            for path, part in module.named_modules()
            if _layer(path)[1] < 0
            for n, child in part.named_children()
            if n.isdigit() and not isinstance(child, nn.Identity)
        ]
        parts.append(Part(stage, layers, sites))
    return parts


def unite(everyone: Sequence[Sequence[Part]], rank: int) -> list[Site]:
    """The routers of all ranks; of those that are not on this rank, copies.

    Raises:
        ValueError: it is unknown which of them are the same.
    """
    shifts = _shifts({part.stage: part for parts in everyone for part in parts})
    found: dict[tuple[int, str], Site] = {}
    holders: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
    for number, parts in enumerate(everyone):
        for part, site in each(parts):
            key = site.depth + shifts.get((part.stage, site.depth, _layer(site.path)), 0), site.path
            first = found.setdefault(key, site)
            if first.num_experts != site.num_experts or number in holders[key]:
                raise different(site.path, f"another router on rank {holders[key][0]}")
            holders[key].append(number)
            if number == rank:  # all ranks treat it as the first that holds it
                found[key], site.is_placed = site, first.is_placed
    for number in {id(parts): number for number, parts in enumerate(everyone)}.values():
        _refuse_mixed(number, everyone[number], found.values())
    for number, part in enumerate(everyone[rank]):
        for site in part.sites:
            site.path = _start(number, everyone[rank]) + site.path
    for key, site in found.items():
        site.depth, site.holders = key[0], holders[key]
    return [*found.values()]


def each(parts: Iterable[Part]) -> Iterator[tuple[Part, Site]]:
    return ((part, site) for part in parts for site in part.sites)


def _refuse_mixed(rank: int, parts: Sequence[Part], sites: Iterable[Site]) -> None:
    """A rank that has a layer of some number, and no stage, has its routers too."""
    unknown = [part for part in parts if part.stage is None]
    layers = {layer for part in unknown for layer in part.layers}
    own = {site.path for _, site in each(unknown)}
    for site in sites:
        if _layer(site.path) in layers and site.path not in own and not site.is_placed:
            raise different(site.path, f"no router on rank {rank}, which has its layer")


def different(path: str, what: str) -> ValueError:
    return ValueError(
        f"{path} has {what}: different layers, or replicas that differ; pass attach(..., depths="
        f"{{{path!r}: DEPTH}}) on every rank, with its number in the whole model"
    )


def check_replicas(sites: Sequence[Site], marks: Sequence[Sequence[Any]]) -> None:
    """Raise ``ValueError`` if routers of one depth and path differ; ``marks``: of every rank."""
    for place, site in enumerate(sites):
        own = {marks[rank][place]: rank for rank in reversed(site.holders) if marks[rank]}
        own.pop(None, None)
        if len(own) > 1 and not site.is_placed:
            ranks = sorted(own.values())
            raise different(site.path, f"other weights on rank {ranks[0]} than on rank {ranks[1]}")


def marks_of(sites: Sequence[Site]) -> list[Any]:
    """Of every router the sum of its bits, or the ranks that have a part of it each; ``None`` if
    this rank holds no whole matrix."""
    marks: list[Any] = [None] * len(sites)
    sums: dict[int, Tensor] = {}
    for place, site in enumerate(sites):
        weights = () if site.router is None else site.router.parameters()
        weight: Any = next((one for one in weights if one.dim() > 1 and one.numel()), None)
        if any(placement.is_shard() for placement in getattr(weight, "placements", ())):
            marks[place] = tuple(weight.device_mesh.mesh.flatten().tolist())
        elif weight is not None:
            local = weight.to_local() if hasattr(weight, "to_local") else weight
            kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
            bits = local.detach().view(kinds.get(local.element_size(), torch.uint8))
            sums[place] = bits.long().sum()
    for place, total in zip(
        sums, torch.stack([*sums.values()]).tolist() if sums else (), strict=True
    ):
        marks[place] = total
    return marks


def rule(sites: Sequence[Site], counting: Sequence[bool], tensor: int) -> str:
    """How the ranks share the work, and how many count a router, as far as that is known."""
    holders, rest = [set(site.holders) for site in sites], len(counting)
    stages = len({tuple(rank in some for some in holders) for rank in range(rest)})
    shares: list[str] = []
    for size, name in ((stages, "stages"), (tensor, "tensor"), (expert_ranks(sites), "experts")):
        if size > 1 and rest % size == 0:
            shares.append(f"{size} {name}")
            rest //= size
    shares += [f"{rest} data"] if rest > 1 else []
    counted = sorted({sum(counting[rank] for rank in some) for some in holders})
    on = " to ".join(map(str, counted))
    return f"{len(counting)} ranks: {' × '.join(shares)}; each router is counted on {on}"


def expert_ranks(sites: Sequence[Site]) -> int:
    """Over how many ranks experts are split, by their mesh or by the number of those here."""
    for site in sites:
        for parameter in () if site.block is None else site.block.parameters():
            mesh: Any = getattr(parameter, "device_mesh", None)
            for dimension, name in enumerate(getattr(mesh, "mesh_dim_names", None) or ()):
                if name in _EXPERTS:
                    return int(mesh.size(dimension))
        own = setting((site.block, site.experts), ("num_local_experts",), is_size)
        if own is not None and own < site.num_experts:
            return site.num_experts // int(own)
    return 1


def _shifts(parts: Mapping[int | None, Part]) -> dict[tuple[int | None, int, Layer], int]:
    """How many layers precede a stage and layer, in lists that stages count from 0 each; not for a
    router whose depth is not the number of the layer."""
    stages = sorted((n, part.layers) for n, part in parts.items() if n is not None)
    every = [layer for _, layers in stages for layer in layers]
    again = {path for path, n in every if every.count((path, n)) > 1}
    shifts: dict[tuple[int | None, int, Layer], int] = {}
    before: defaultdict[str, int] = defaultdict(int)
    for stage, layers in stages:
        own = [layer for layer in layers if layer[0] in again]
        shifts |= {(stage, n, (path, n)): before[path] for path, n in own}
        for path, _ in own:
            before[path] += 1
    return shifts


def _start(number: int, parts: Sequence[Any]) -> str:
    """Of the paths in a module: its number, if there are several."""
    return f"{number}." if len(parts) > 1 else ""


def _layer(path: str) -> Layer:
    """Of the first number in a path: what is before it, and the number, else −1."""
    parts = path.split(".")
    at = next((at for at, part in enumerate(parts) if part.isdigit()), -1)
    return ".".join(parts[: max(0, at)]), int(parts[at]) if at >= 0 else -1


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
