"""``--dense-twin``: a dense model of equal active size, comparable with the mixture."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from moe_model import PRESETS, LanguageModel, ModelConfig
from moe_model.training.options import Options
from moe_model.training.setup import twin_of
from moe_model.training.step import make_optimizer
from tests.training.conftest import SHORT, GetTrained
from tests.training.story import ReadLog, Train, edit, steps

SIZES = {"vocab_size": 31, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
DENSE = "--model.first_k_dense_replace=3"
SIZES |= {"intermediate_size": 16, "moe_intermediate_size": 16, "initializer_range": 0.1}


@pytest.mark.parametrize("preset", PRESETS)
def test_the_twin_has_at_least_the_active_weights_and_hardly_more(preset: str) -> None:
    mixture = ModelConfig.preset(preset, **{"vocab_size": 65, **PRESETS[preset]})
    twin = mixture.dense_twin()
    assert twin.parameters() == twin.active_parameters()
    more = twin.active_parameters() - mixture.active_parameters()
    assert 0 <= more < 3 * mixture.hidden_size * mixture.num_hidden_layers


def test_the_twin_begins_with_the_values_of_the_mixture() -> None:
    mixture = LanguageModel(ModelConfig.preset("tiny", **SIZES))
    mixture.init_weights(torch.Generator().manual_seed(3))
    twin = twin_of(mixture, seed=3)
    ours, theirs = twin.state_dict(), mixture.state_dict()
    same = [name for name in ours if name in theirs and ours[name].shape == theirs[name].shape]
    assert len(same) == len(ours) - 3 * SIZES["num_hidden_layers"]  # but for the feed-forwards
    assert all(ours[name].equal(theirs[name]) for name in same)
    assert twin.routers == []


def test_a_twin_has_a_log_without_routers_and_resumes_bit_for_bit(
    trained: GetTrained, train: Train, train_until: Any, read_log: ReadLog
) -> None:
    flags = (*SHORT, "--dense-twin", "--save-every=2")
    whole = trained(*flags)
    assert whole.code == 0
    assert "verdict    dense model: no routers" in whole.narration
    assert whole.log[0]["model"]["layers"] == []
    assert whole.log[0]["balance"]["method"] == "none"
    train_until(3, "--run=r", *flags)
    assert train("--run=r", "--resume=auto", *flags) == 0
    losses = [[line["loss"] for line in steps(log)] for log in (read_log("r"), whole.log)]
    assert losses[0][-2:] == losses[1][-2:]


def test_a_model_whose_layers_are_all_dense_has_no_losses_of_routers(
    copied: GetTrained, train: Train, read_log: ReadLog
) -> None:
    """Also one from before its options were refused."""
    path = copied("--preset=small", "--tokenizer=char", *SHORT, DENSE).checkpoints / "latest"
    edit(path, "options/seq_aux_weight", 1e-4)
    edit(path, "options/balance", "bias", seal=True)
    assert train("--run=r", "--resume=auto", "--steps=5") == 0
    heads = [record for record in read_log("r") if record["kind"] == "run"]
    assert [head["balance"]["method"] for head in heads] == ["none", "none"]
    assert not any(line["losses"] for line in steps(read_log("r")))
    assert train("--run=mtp", "--steps=1", DENSE, "--mtp", "--balance=aux") == 0


def test_a_mixture_cannot_become_its_twin(copied: GetTrained, train: Train, capsys: Any) -> None:
    copied(*SHORT)
    assert train("--run=r", "--resume=auto", "--dense-twin") == 64
    assert "--dense-twin: the checkpoint has experts" in capsys.readouterr().err


def test_one_expert_with_weight_1_trains_as_a_feed_forward_does() -> None:
    alone = {"n_routed_experts": 1, "num_experts_per_tok": 1, "n_shared_experts": 0}
    config = ModelConfig.preset("tiny", **SIZES, **alone, routed_scaling_factor=1.0)
    dense_config = ModelConfig.preset("tiny", **SIZES, first_k_dense_replace=3)
    mixture, dense = LanguageModel(config).train(), LanguageModel(dense_config).train()
    mixture.init_weights(torch.Generator().manual_seed(0))
    copied = {**mixture.state_dict()}
    for depth in config.moe_layers:
        mlp = f"layers.{depth}.mlp"
        both = copied[f"{mlp}.experts.gate_up_proj"][0].chunk(2)
        down = copied[f"{mlp}.experts.down_proj"][0]
        for name, weight in zip(("gate", "up", "down"), (*both, down), strict=True):
            copied[f"{mlp}.{name}_proj.weight"] = weight
    dense.load_state_dict({name: copied[name] for name in dense.state_dict()})
    losses: list[list[float]] = []
    for model in (mixture, dense):
        optimizer = make_optimizer(model, Options(lr=3e-3, weight_decay=0.0))
        generator = torch.Generator().manual_seed(1)
        losses.append([])
        for _ in range(30):
            ids = torch.randint(31, (4, 17), generator=generator)
            logits = model(ids[:, :-1]).logits_BSV
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
