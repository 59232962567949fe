"""``--optimizer muon``: torch's own Muon for hidden matrices, AdamW for everything else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from moe_model import TRAINING_STATE, LanguageModel, ModelConfig, read_checkpoint
from moe_model.training import WEIGHT_DECAY, make_optimizer, set_learning_rate
from tests.training.story import KilledError, Log, before_step, die, from_step, story

BY_ADAMW = (
    "embed_tokens",
    "lm_head",
    "norm",
    "router",
    "experts.gate_up_proj",
    "experts.down_proj",
)


def small_model() -> LanguageModel:
    fields = {"hidden_size": 16, "num_hidden_layers": 2, "moe_intermediate_size": 8}
    config = ModelConfig.preset("tiny", vocab_size=20, num_nextn_predict_layers=1, **fields)
    return LanguageModel(config)


def by_adamw(name: str) -> bool:
    return any(part in name for part in BY_ADAMW) and "shared_experts" not in name


def give_gradients(model: LanguageModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_hidden_matrices_move_as_with_torchs_muon_and_the_rest_as_with_its_adamw() -> None:
    model = small_model()
    twin = copy.deepcopy(model)
    ours = make_optimizer(model, 1e-2, "muon")
    named = dict(twin.named_parameters())
    muon = torch.optim.Muon(
        [p for name, p in named.items() if not by_adamw(name)],
        lr=1e-2, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    rest = [p for name, p in named.items() if by_adamw(name)]
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in rest if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in rest if p.dim() == 1], "weight_decay": 0.0},
        ],
        lr=1e-2, betas=(0.9, 0.95), fused=True,
    )  # fmt: skip
    for step in range(3):
        for optimizer in (ours, muon, adamw):
            set_learning_rate(optimizer, 1e-2 / (step + 1))
        give_gradients(model, step)
        give_gradients(twin, step)
        for optimizer in (ours, muon, adamw):
            optimizer.step()
            optimizer.zero_grad()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, named[name]), name
        assert parameter.grad is None, name


def test_every_weight_moves_in_a_step_of_muon() -> None:
    model = small_model()
    before = copy.deepcopy(dict(model.named_parameters()))
    give_gradients(model, 0)
    make_optimizer(model, 1e-2, "muon").step()
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert not still


def test_a_resumed_run_with_muon_is_the_run_that_never_stopped(
    trainer: ModuleType,
    train: Callable[..., int],
    read_log: Callable[[str], Log],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ("--steps=6", "--save-every=3", "--mtp")
    assert train("--run=whole", *flags, "--optimizer=muon") == 0
    before_step(trainer, monkeypatch, 5, die)
    with pytest.raises(KilledError):
        train("--run=cut", *flags, "--optimizer=muon")
    monkeypatch.undo()
    assert train("--run=cut", "--resume=auto", "--optimizer=adamw") == 64
    assert "was trained with --optimizer muon: omit it" in capsys.readouterr().err
    assert train("--run=cut", "--resume=auto") == 0
    assert from_step(story(read_log("cut")), 0) == from_step(story(read_log("whole")), 4)
    ends = [read_checkpoint(tmp_path / "ck" / run / "latest").folder for run in ("whole", "cut")]
    for name in ("model.safetensors", TRAINING_STATE):
        assert (ends[0] / name).read_bytes() == (ends[1] / name).read_bytes(), name


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_muon_learns(dtype: str, train: Callable[..., int], read_log: Callable[[str], Log]) -> None:
    assert train("--run=r", "--steps=30", "--optimizer=muon", "--lr=1e-2", f"--dtype={dtype}") == 0
    losses = [row["loss"] for row in read_log("r") if row["kind"] == "step"]
    assert losses[-1] < losses[0] - 0.5
