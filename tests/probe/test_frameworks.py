"""Routers of other training code, as far as their published layout can be checked here."""

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from microscope_tui.probe import attach


class TopKGate(nn.Module):
    def __init__(self, k: int, noisy_gate_policy: str | None = None) -> None:
        super().__init__()
        self.wg, self.k = nn.Linear(8, 4, bias=False), k
        self.noisy_gate_policy = noisy_gate_policy

    def forward(self, x_TD: Tensor) -> Any:
        return self.wg(x_TD)


TopKGate.__module__ = "deepspeed.moe.sharded_moe"


@pytest.mark.parametrize(("k", "policy"), [(2, None), (1, "RSample"), (1, "Jitter")])
def test_a_deepspeed_gate_that_samples_is_refused(k: int, policy: Any, tmp_path: Path) -> None:
    model = nn.Sequential(TopKGate(k, policy))
    with pytest.raises(ValueError, match=r"samples its choice.*pass an Adapter"):
        attach(model, tmp_path)


def test_a_deepspeed_gate_without_sampling_is_accepted(tmp_path: Path) -> None:
    with attach(nn.Sequential(TopKGate(1)), tmp_path) as probe:
        assert [site.num_experts for site in probe.sites] == [4]
