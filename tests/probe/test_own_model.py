"""The probe on this project's own model, whose trainer counts for itself."""

from pathlib import Path

import pytest
import torch

from microscope_tui.probe import attach
from moe_model import LanguageModel, ModelConfig
from tests.counted import counted
from tests.probe.layers import records


def test_the_probe_counts_what_the_trainer_counts_for_itself(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig.preset("tiny", vocab_size=64)).train()
    for router in model.routers:
        router.expert_bias.uniform_(-0.1, 0.1)  # it is a part of the margin
    with attach(model, tmp_path) as probe:
        own = counted(model, model(torch.randint(0, 64, (2, 16))).routings)
        probe.step()
    (line,) = records(tmp_path)
    assert line["tokens_per_expert"] == own["tokens_per_expert"]
    assert line["tokens"] == own["tokens"]
    for name in ("entropy", "mean_entropy", "selected_mass", "z_loss", "max_logit", "margin"):
        assert line["router"][name] == pytest.approx(own["router"][name], rel=1e-4), name
