"""Whether a training that resumes has the MoE weights of its checkpoint.

A checkpoint whose weights have other names than the model's is loaded in part, and routers and
experts are what is left out. The Trainer of transformers does so with families whose experts are
saved one by one (huggingface/transformers#48805).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from microscope_tui.probe.sites import Site

_FIRST = 4096
"""Numbers of every weight that are looked at: a sample costs nothing and no two are alike."""


def marks(sites: Sequence[Site]) -> list[float | None]:
    """A number per router that tells its weights and those of its experts from others; ``None``
    where this process holds only a part of them."""
    return [_mark(site) for site in sites]


def differing(sites: Sequence[Site], kept: Sequence[float | None]) -> list[str]:
    """Names of the routers whose weights, or those of their experts, are not those of ``kept``."""
    if len(kept) != len(sites):
        return []
    return [
        site.name
        for site, old, new in zip(sites, kept, marks(sites), strict=True)
        if old is not None and new is not None and abs(new - old) > 1e-5 * abs(old)
    ]


def _mark(site: Site) -> float | None:
    total = 0.0
    for weight in (site.block or site.module).parameters():
        if hasattr(weight, "device_mesh") or not weight.numel():
            return None
        total += _size(weight)
    return total


def _size(weight: Tensor) -> float:
    return float(torch.linalg.vector_norm(weight.detach().flatten()[:_FIRST].double()))
