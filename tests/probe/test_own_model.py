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


def test_padding_is_left_out_of_everything(tmp_path: Path) -> None:
    """Padding on the right cannot change what comes before it; a depth of multi-token prediction
    also leaves out the places whose next tokens are padding."""
    torch.manual_seed(0)
    fields = {"num_nextn_predict_layers": 2}
    model = LanguageModel(ModelConfig.preset("tiny", vocab_size=64, **fields)).train()
    ids_BS, valid_BS = torch.randint(0, 64, (2, 22)), torch.ones(2, 20, dtype=torch.bool)
    valid_BS[1, 9:] = False
    with attach(model, tmp_path) as probe:
        model(ids_BS[:, :20], valid_BS, next_ids=ids_BS[:, 1:])
        probe.step()
        model(ids_BS[:1, :20])
        model(ids_BS[1:, :9])
        probe.step()
    padded, alone = records(tmp_path)
    layers, real = len(model.routers) - 2, int(valid_BS.sum())
    assert padded["router"]["tokens"] == [real] * layers + [real - 1, real - 2]
    assert [sum(row) for row in padded["tokens_per_expert"]] == [
        tokens * model.config.num_experts_per_tok for tokens in padded["router"]["tokens"]
    ]
    assert padded["tokens_per_expert"][:layers] == alone["tokens_per_expert"][:layers]
    for name in ("entropy", "mean_entropy", "selected_mass", "z_loss", "max_logit", "margin"):
        expected = pytest.approx(alone["router"][name][:layers], rel=1e-4)
        assert padded["router"][name][:layers] == expected, name
