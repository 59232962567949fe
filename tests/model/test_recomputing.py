"""What is computed a second time in the backward pass decides as it did the first time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moe_model import LanguageModel, Router


@pytest.mark.parametrize("policy", ["position", "weight"])
def test_recomputing_drops_the_same_pairs_where_scores_come_out_slightly_otherwise(
    make_model: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    """On a GPU a product may round otherwise the second time; here every product does."""
    kept: list[Tensor] = []
    decide, noise = Router._within_capacity, torch.Generator().manual_seed(0)

    def otherwise(self: Router, x_TD: Tensor) -> Tensor:
        return x_TD * (1 + 0.05 * torch.empty_like(x_TD).normal_(generator=noise))

    def noted(self: Router, *given: Tensor) -> Tensor:
        kept.append(decide(self, *given))
        return kept[-1]

    monkeypatch.setattr(Router, "_jittered", otherwise)
    monkeypatch.setattr(Router, "_within_capacity", noted)
    model = make_model(capacity_factor=0.6, drop_policy=policy).train()
    model.recompute = True
    ids_BS = torch.randint(0, 97, (4, 16), generator=torch.Generator().manual_seed(1))
    model(ids_BS).logits_BSV.square().mean().backward()
    half = len(kept) // 2
    assert half == len(model.routers) > 1
    for first, second in zip(kept[:half], kept[half:][::-1], strict=True):
        assert not first.all()
        assert torch.equal(first, second)
