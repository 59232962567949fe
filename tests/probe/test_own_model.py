"""The probe on this project's own model, whose trainer counts for itself."""

from pathlib import Path

import torch

from microscope_tui.probe import attach
from moe_model import LanguageModel, ModelConfig
from tests.probe.layers import records


def test_the_probe_counts_what_the_model_counts_for_itself(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig.preset("tiny", vocab_size=64)).train()
    with attach(model, tmp_path) as probe:
        valid_BS = torch.ones(2, 16, dtype=torch.bool)
        valid_BS[1, 9:] = False
        model(torch.randint(0, 64, (2, 16)), valid_BS)
        probe.step()
    (line,) = records(tmp_path)
    own = model.readings.report(model.routers)
    assert line["tokens_per_expert"] == own.tokens_per_expert
    assert line["tokens"] == own.tokens
    for name in ("entropy", "mean_entropy", "selected_mass", "z_loss", "max_logit", "margin"):
        torch.testing.assert_close(
            torch.tensor(line["router"][name]), torch.tensor(own.router[name]), rtol=1e-3, atol=1e-5
        )
