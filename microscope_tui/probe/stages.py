"""The routers of all ranks together, where a rank may hold only a stage of a pipeline.

Routers of the same depth and path are replicas, if their weights agree and they are in one stage;
all others are rows of the log.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from microscope_tui.probe.find_routers import sites_in
from microscope_tui.probe.forward_hooks import COMPILED_STAGE
from microscope_tui.probe.ranks import along
from microscope_tui.probe.sites import Adapter, Site, is_size, setting
from microscope_tui.probe.step_sums import shortened
from microscope_tui.probe.weights import inside, local_part

_EXPERTS = ("ep", "expert", "experts", "expert_parallel")
"""Names of mesh dimensions over which experts are split."""


def modules_of(model: Any) -> list[nn.Module]:
    """The modules in what ``attach`` was given: one or several models, or stages of a pipeline.

    Without what DDP, ``torch.compile`` and PEFT put around them.
    """
    return [*map(_unwrapped, _given(model))]


def check_stages(model: Any) -> None:
    """``ValueError``: a stage in what ``attach`` was given is compiled as a whole."""
    for stage in (one for one in _given(model) if not isinstance(one, nn.Module)):
        # ``torch.compile`` wraps a module, ``module.compile`` changes how it is called.
        if any(
            hasattr(one, "_orig_mod") or getattr(one, "_compiled_call_impl", None) is not None
            for one in _with_inner(stage.submod)
        ):
            raise ValueError(COMPILED_STAGE)


def sites_of(
    model: Any, routers: Mapping[str, Adapter] | None, depths: Mapping[str, int]
) -> list[Site]:
    """The routers of this rank; with several modules, the number of one begins its paths."""
    found: list[Site] = []
    modules = modules_of(model)
    stages = [getattr(one, "stage_index", None) for one in _given(model)]
    for number, module in enumerate(modules):
        start = f"{number}." if len(modules) > 1 else ""
        own = {p.removeprefix(start): a for p, a in (routers or {}).items() if p.startswith(start)}
        for site in sites_in(module, own) if own or not routers else ():
            site.start, site.path, site.stage = start, start + site.path, stages[number]
            if path := inside(site.path, depths):
                site.depth, site.is_placed = depths[path], True
            found.append(site)
    return found


def unite(everyone: Sequence[Sequence[Site]], rank: int) -> list[Site]:
    """The routers of all ranks; of those that are not on this rank, copies.

    ``ValueError``: it is unknown which of them are the same.
    """
    found: dict[tuple[int, str], Site] = {}
    holders: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
    for number, site in ((number, site) for number, own in enumerate(everyone) for site in own):
        key = site.depth, site.path.removeprefix(site.start)
        first = found.setdefault(key, site)
        if first.num_experts != site.num_experts or number in holders[key]:
            raise different(site.path, f"another router on rank {holders[key][0]}")
        if first.stage != site.stage:
            places = f"stages {first.stage} and {site.stage}"
            raise different(site.path, f"one path in {places} of the pipeline")
        holders[key].append(number)
        if number == rank:  # all ranks treat it as the first that holds it
            found[key], site.is_placed = site, first.is_placed
    for key, site in found.items():
        site.holders = holders[key]
    return [*found.values()]


def different(path: str, what: str) -> ValueError:
    """An error, to be raised: routers share ``path`` but differ, as ``what`` describes."""
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
    weight = _matrix_of(site)
    if weight is None:
        return None
    if _is_sharded(weight):
        return tuple(weight.device_mesh.mesh.flatten().tolist())
    return int(_bits_of(weight))


def marks_of(sites: Sequence[Site], device: torch.device) -> Tensor:
    """``[S · 3]``, of every router: whether this rank has a whole matrix, 20 bits of its sum, and
    their square. Their sums over ranks show whether all are equal, see ``check_sums``."""
    marks_S3 = torch.zeros(len(sites), 3, dtype=torch.float64, device=device)
    for mark_3, site in zip(marks_S3, sites, strict=True):
        weight = _matrix_of(site)
        if weight is not None and not _is_sharded(weight):
            mark = (_bits_of(weight) % 2**20).to(mark_3)
            mark_3.copy_(torch.stack([torch.ones_like(mark), mark, mark * mark]))
    return marks_S3.flatten()


def check_sums(sites: Sequence[Site], marks: Tensor) -> None:
    """``ValueError``: routers of one depth and path differ, by the sum of ``marks_of``."""
    for site, (number, total, squares) in zip(sites, marks.view(-1, 3).tolist(), strict=True):
        if int(number) * int(squares) != int(total) ** 2 and not site.is_placed:
            ranks = shortened([*map(str, site.holders)])
            raise different(site.path, f"weights that are not the same on ranks {ranks}")


def _matrix_of(site: Site) -> Any:
    weights = () if site.router is None else site.router.parameters()
    return next((one for one in weights if one.dim() > 1 and one.numel()), None)


def _is_sharded(weight: Any) -> bool:
    return any(placement.is_shard() for placement in getattr(weight, "placements", ()))


def _bits_of(weight: Any) -> Tensor:
    return local_part(weight).flatten().view(torch.int16).sum()


def expert_ranks(sites: Sequence[Site]) -> int:
    """Over how many ranks experts are split, by their mesh or by the number of those here."""
    blocks = [site.block for site in sites if site.block is not None]
    parts = [along(blocks, _EXPERTS)[1]]
    for site in sites:
        own = setting((site.block, site.experts), ("num_local_experts",), is_size)
        parts.append(site.num_experts // (own or site.num_experts))
    return max(parts)


def _given(model: Any) -> Sequence[Any]:
    return model if isinstance(model, list | tuple) else [model]


def _unwrapped(model: Any) -> Any:
    """The model itself, without DDP, ``torch.compile`` and PEFT around it, also in a stage."""
    if not isinstance(model, nn.Module):
        model = model.submod
    *_, inner = _with_inner(model)
    return inner


def _with_inner(model: Any) -> Iterator[Any]:
    """A model, what it wraps, and so on."""
    while True:
        yield model
        inner = getattr(model, "_orig_mod", None)
        if inner is None and type(model).__name__ == "DistributedDataParallel":
            inner = model.module
        if inner is None and hasattr(model, "get_base_model"):
            inner = model.get_base_model()
        if not isinstance(inner, nn.Module) or inner is model:
            return
        model = inner
